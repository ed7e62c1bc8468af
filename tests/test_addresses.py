"""Object stores: S3 as moto's server speaks it, over real HTTP, and a proxy in front of it that fails in real ways."""

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sat_ssvae import addresses
from sat_ssvae.addresses import download, files_at, path_of, upload
from sat_ssvae.errors import UserError
from sat_ssvae.storage import atomic, write_text

from .object_store import CREDENTIALS, forbidden, fresh_clients, full, proxied, unfinished


def test_an_address_has_what_a_path_has(store):
    folder = path_of(f"{store}/deep")
    assert not folder.exists() and list(folder.glob("*")) == []
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "a.txt", "ä\n")
    write_text(folder / "below" / "b c#?.txt", "")
    assert (folder / "a.txt").read_text(encoding="utf-8") == "ä\n" and (folder / "a.txt").is_file()
    assert [str(path) for path in folder.glob("*.txt")] == [f"{store}/deep/a.txt"]
    assert files_at(str(folder)) == [("a.txt", 3), ("below/b c#?.txt", 0)]
    assert (folder / "a.txt").name == "a.txt" and (folder / "a.txt").with_suffix(".tar").stem == "a"
    again = pickle.loads(pickle.dumps(folder))  # noqa: S301 - as processes of a cluster get it
    assert again == folder and again.is_dir()
    (folder / "a.txt").unlink()
    assert not again.joinpath("a.txt").exists()


def test_local_paths_stay_paths(tmp_path):
    assert path_of("a/b") == Path("a/b") and path_of(f"file://{tmp_path}") == tmp_path
    assert path_of(tmp_path) is tmp_path


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket/a", "no such kind of address; there are s3://"),
        ("s3://KEY:word@bucket/a", "holds no credentials, the environment does"),
        ("s3://", "which bucket"),
        ("s3:///a", "which bucket"),
        ("s3://bucket/a::b", "give one address"),
        ("https://host/a.mp4", "https://host/a.mp4: web servers are not read here, download it first"),
        ("gs://bucket/a", "gs:// needs a package: pip install gcsfs"),
    ],
)
def test_what_is_no_address_is_one_line(address, message):
    with pytest.raises(UserError, match=message) as caught:
        path_of(address)
    assert "word" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_block_that_fails_writes_nothing(store):
    target = path_of(f"{store}/a.txt")
    write_text(target, "before")
    with contextlib.suppress(ZeroDivisionError), atomic(target) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "before"
    with atomic(target) as partial:
        partial.unlink()
    assert target.read_text() == "before" and files_at(store) == [("a.txt", 6)]


def test_other_stores_get_a_name_at_the_end(tmp_path):
    """fsspec's file system in memory shows a file while it is written."""
    write_text(path_of("memory://folder/a.txt"), "whole")
    (tmp_path / "gone").write_text("")
    assert files_at("memory://folder") == [("a.txt", 5)]
    assert download("memory://folder/a.txt", tmp_path / "a.txt") and (tmp_path / "a.txt").read_text() == "whole"


SEND = """
import sys
from pathlib import Path
from sat_ssvae.addresses import path_of, upload
upload(Path(sys.argv[1]), path_of(sys.argv[2]))
"""


@pytest.mark.slow
def test_an_upload_killed_in_the_middle_leaves_nothing(store, tmp_path, monkeypatch):
    """40 MiB go in three parts; the second one does not come through."""
    big = tmp_path / "big.tar"
    with big.open("wb") as file:
        file.truncate(40 * 2**20)
    command = [sys.executable, "-c", SEND, str(big), f"{store}/big.tar"]
    with proxied(monkeypatch, hold=lambda path: "partNumber=2" in path) as proxy:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
        assert proxy.held.wait(timeout=120)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert files_at(store) == []
    assert len(unfinished(store)) == 1  # invisible, and S3 charges for it
    upload(big, path_of(f"{store}/big.tar"))
    assert files_at(store) == [("big.tar", 40 * 2**20)]
    assert unfinished(store) == []
    assert download(f"{store}/big.tar", tmp_path / "back") and (tmp_path / "back").stat().st_size == 40 * 2**20


def test_a_dropped_connection_is_tried_again(store, tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(os.urandom(300_000))
    with proxied(monkeypatch, drop=2) as dropped:
        upload(tmp_path / "a.tar", path_of(f"{store}/a.tar"))
    assert dropped.count == 2
    with proxied(monkeypatch, cut=1) as cut:
        download(f"{store}/a.tar", tmp_path / "back")
    assert cut.count == 1 and (tmp_path / "back").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_a_full_store_is_one_line(store, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "PAUSE", 0.01)
    write_text(path_of(f"{store}/a.txt"), "before")
    with proxied(monkeypatch, refuse=full), pytest.raises(OSError, match="quota") as caught:
        write_text(path_of(f"{store}/a.txt"), "after")
    assert caught.value.filename == f"{store}/a.txt" and "\n" not in str(caught.value)
    assert path_of(f"{store}/a.txt").read_text() == "before"


WORK = {
    "read": lambda store, folder: download(f"{store}/a.txt", folder / "a.txt"),
    "write": lambda store, folder: write_text(path_of(f"{store}/a.txt"), ""),
    "list": lambda store, folder: files_at(store),
    "ask": lambda store, folder: path_of(f"{store}/a.txt").is_file(),
}


@pytest.mark.parametrize("work", WORK)
def test_wrong_rights_are_one_line(store, tmp_path, monkeypatch, work):
    with proxied(monkeypatch, refuse=forbidden), pytest.raises(PermissionError) as caught:
        WORK[work](store, tmp_path)
    message = str(caught.value)
    assert re.search("Access Denied|Forbidden", message) and "\n" not in message and "very-secret" not in message


def test_no_credentials_are_one_line(store, monkeypatch):
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    fresh_clients()
    with pytest.raises(PermissionError, match="no credentials in the environment"):
        write_text(path_of(f"{store}/a.txt"), "")


class Refused(Exception):
    """As gcsfs and huggingface_hub say that a server refused."""

    def __init__(self, **attributes):
        super().__init__("Anonymous caller does not have storage.objects.get access\nto the object")
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"code": 401}, PermissionError),
        ({"code": 403}, PermissionError),
        ({"response": SimpleNamespace(status_code=403)}, PermissionError),
        ({"response": SimpleNamespace(status_code=404)}, FileNotFoundError),
        ({"code": 503}, OSError),
    ],
)
def test_a_refusal_is_one_line_whoever_says_it(attributes, kind):
    with pytest.raises(kind, match="access to the object") as caught, addresses.failures("gs://bucket/a.tar"):
        raise Refused(**attributes)
    assert type(caught.value) is kind and caught.value.filename == "gs://bucket/a.tar"


def test_what_is_not_there_is_one_line(store, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "PAUSE", 0.01)
    for address in (f"{store}/none.tar", "s3://no-such-bucket/a.tar"):
        with pytest.raises(FileNotFoundError):
            download(address, tmp_path / "a.tar")
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        write_text(path_of("s3://no-such-bucket/a.txt"), "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fresh_clients()
    with pytest.raises(OSError, match="Could not connect to the endpoint URL"):
        files_at(store)
