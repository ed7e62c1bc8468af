"""Two jobs in one folder of an object store: real processes, killed and stopped, and moto's S3 over HTTP."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from sat_ssvae.addresses import contents_at, path_of, swap
from sat_ssvae.cli import main
from sat_ssvae.data.convert import PackConfig
from sat_ssvae.data.pack import pack
from sat_ssvae.errors import UserError
from sat_ssvae.jobs import store_lock
from sat_ssvae.jobs.ledger import claimed
from sat_ssvae.jobs.settings import Part
from sat_ssvae.jobs.store_lock import locked

from .object_store import proxied
from .processes import unmeasured

WHOLE = Part(1, 1)
HOLD = """
import sys, time
from sat_ssvae.addresses import path_of
from sat_ssvae.errors import UserError
from sat_ssvae.jobs import store_lock
from sat_ssvae.jobs.settings import Part
store_lock.BEAT = 0.1
try:
    with store_lock.locked(path_of(sys.argv[1]), "pack", Part(1, 1)) as claim:
        print("held", flush=True)
        while True:
            claim.check()
            time.sleep(0.05)
except UserError as error:
    print(error)
"""
COMMAND = """
import sys
from sat_ssvae.cli import main
from sat_ssvae.jobs import store_lock
store_lock.BEAT = 0.2
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(store_lock, "BEAT", 0.1)


@contextmanager
def owner(folder):
    """A process that holds the lock of a folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unmeasured()) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("jump", [0, 86400, -86400])
def test_a_second_job_is_refused_whatever_the_clock_says(store, monkeypatch, jump):
    folder, now = path_of(f"{store}/out"), time.time
    with owner(folder) as process:
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        with pytest.raises(UserError) as caught, locked(folder, "pack", WHOLE):
            pass
        by = f"process {process.pid} on {socket.gethostname()}"
        assert str(caught.value) == (
            f"{folder}: another pack works there ({by}); wait for it, or choose another folder"
        )
        assert process.poll() is None
        with locked(folder, "stats", WHOLE):  # another kind of job
            pass


def test_a_killed_job_keeps_nobody_out_for_long(store, monkeypatch, caplog):
    monkeypatch.setattr(store_lock, "PATIENCE", 0.5)
    folder = path_of(f"{store}/out")
    with owner(folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    began = time.monotonic()
    with locked(folder, "pack", WHOLE) as claim:
        assert time.monotonic() - began >= 0.5
        claim.check()
    assert f"locked by process {process.pid} on {socket.gethostname()}; waiting up to 0 s for a sign" in caplog.text
    assert list(folder.glob(".*.held")) == []


def test_a_job_that_was_stopped_and_taken_over_ends(store, monkeypatch):
    monkeypatch.setattr(store_lock, "PATIENCE", 0.5)
    folder = path_of(f"{store}/out")
    with owner(folder) as process:
        process.send_signal(signal.SIGSTOP)
        with locked(folder, "pack", WHOLE) as claim:
            process.send_signal(signal.SIGCONT)
            said = process.stdout.read()
            assert re.fullmatch(
                rf"{folder}: another pack took over \(process {os.getpid()} on .*\), since .* finished is kept\n", said
            )
            time.sleep(0.3)
            claim.check()  # the other one left this lock alone


def test_parts_work_beside_each_other_but_not_beside_the_whole(store):
    folder = path_of(f"{store}/out")
    with claimed(folder, "pack", Part(2, 4)), claimed(folder, "pack", Part(3, 4)):
        for part, what in ((Part(2, 4), "pack of part 2/4"), (WHOLE, "pack")):
            with pytest.raises(UserError, match=f"another {what} works there"), claimed(folder, "pack", part):
                pass
    with (
        claimed(folder, "pack", WHOLE),
        pytest.raises(UserError, match="another pack of part 3/4 works there"),
        claimed(folder, "pack", Part(3, 4)),
    ):
        pass


def test_dead_parts_do_not_keep_the_whole_out(store, monkeypatch):
    monkeypatch.setattr(store_lock, "PATIENCE", 0.3)
    folder = path_of(f"{store}/out")
    for name in (".pack.part-1-of-2.held", ".pack.part-2-of-2.held", ".pack.held"):
        assert swap(folder / name, None, b"of another version")
    with claimed(folder, "pack", WHOLE):
        assert [path.name for path in folder.glob(".*.held")] == [".pack.held"]


def test_swap_writes_only_over_what_was_expected(store):
    for file in (path_of(f"{store}/a"), path_of(f"memory://{store.removeprefix('s3://')}/a")):
        assert not swap(file, b"1", b"2") and contents_at(file) is None
        assert swap(file, None, b"1") and not swap(file, None, b"2")
        assert not swap(file, b"2", b"3") and swap(file, b"1", b"2")
        assert contents_at(file) == b"2"


def test_a_lost_answer_is_not_another_owner(store, monkeypatch):
    folder = path_of(f"{store}/out")
    with proxied(monkeypatch, mute=1) as proxy, locked(folder, "pack", WHOLE) as claim:
        assert proxy.count == 1
        proxy.mute = 2
        while proxy.count < 2:
            time.sleep(0.05)
        beat = contents_at(folder / ".pack.held")
        while contents_at(folder / ".pack.held") == beat:
            time.sleep(0.05)
        claim.check()


def test_a_server_without_conditional_requests(store, monkeypatch):
    folder = path_of(f"{store}/out")
    with proxied(monkeypatch, conditions=False), locked(folder, "pack", WHOLE) as claim:
        with pytest.raises(UserError, match="another pack works there"), locked(folder, "pack", WHOLE):
            pass
        claim.check()


@pytest.mark.slow
def test_packing_goes_on_after_a_kill(store, tiny_videos, tmp_path, monkeypatch, capsys):
    """While the first one lives, a second is refused; killed, it is continued, with the same bytes as anywhere."""
    pack(tiny_videos, tmp_path / "local", PackConfig(samples_per_shard=2, workers=1))
    words = ["pack", str(tiny_videos), "--output", f"{store}/out", "samples_per_shard=2", "workers=1"]
    with (
        proxied(monkeypatch, hold=lambda path: "clips-000001.tar" in path) as proxy,
        subprocess.Popen([sys.executable, "-c", COMMAND, *words], env=unmeasured()) as first,
    ):
        try:
            assert proxy.held.wait(timeout=300)
            with pytest.raises(SystemExit) as ended:
                main(words)
        finally:
            first.send_signal(signal.SIGKILL)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2
    assert line.startswith(f"error: {store}/out: another pack works there (process {first.pid} on ")
    kept = path_of(f"{store}/out/clips-000000.tar").stat().st_mtime
    monkeypatch.setattr(store_lock, "PATIENCE", 1.0)
    assert main(words) == 0
    assert path_of(f"{store}/out/clips-000000.tar").stat().st_mtime == kept
    for file in (tmp_path / "local").glob("clips-*"):
        assert path_of(f"{store}/out/{file.name}").read_bytes() == file.read_bytes()


CLIPS = ["data.num_frames=5", "data.resolution=32", "data.num_workers=0"]


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["check-data", "{videos}", "--output", "{store}/report", *CLIPS], "report"),
        (["stats", "{store}/vae", "--data", "{videos}", *CLIPS], "vae"),
        (["encode", "{vae}", "{videos}", "{store}/latents", "captions=none", *CLIPS], "latents"),
    ],
)
def test_every_command_notices_another_one(store, tiny_videos, narrow_vae, capsys, words, folder):
    if folder == "vae":
        for file in narrow_vae.iterdir():
            swap(path_of(f"{store}/vae/{file.name}"), None, file.read_bytes())
    words = [word.format(videos=tiny_videos, store=store, vae=narrow_vae) for word in words]
    with locked(path_of(f"{store}/{folder}"), words[0], WHOLE), pytest.raises(SystemExit) as ended:
        main(words)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and f"{store}/{folder}: another {words[0]} works there (process" in line
