"""Servers and commands that misbehave: one line or a counted skip, nothing wrong is kept, nothing secret is shown."""

import gzip
import http.server
import logging
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from sat_ssvae.addresses import without_secrets
from sat_ssvae.config import parse_config
from sat_ssvae.data import remote
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.remote import ShardCache
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.errors import UserError

from .servers import serving
from .shard_files import meta, write_tar

PAGE = b"<html>Please log in</html>"


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """Serves /WAY/NAME in the way that it is asked for; /meta/WAY/NAME misbehaves only for the tar."""

    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[Counter[str]] = Counter()

    def do_GET(self):
        *ways, name = self.path.partition("?")[0].strip("/").split("/")
        type(self).requests[name] += 1
        data = type(self).files[name]
        way = "well" if ways[0] == "meta" and name.endswith(".jsonl") else ways[-1]
        if way == "status":
            self.wfile.write(b"what?\r\n\r\n")
        elif way == "loop":
            self.head({"Location": self.path}, 302)
        elif way == "unavailable":
            self.send_error(503)
        elif way == "page":
            self.head({"Content-Length": len(PAGE)}, then=PAGE)
        elif way == "zipped":
            zipped = gzip.compress(data)
            self.head({"Content-Length": len(zipped), "Content-Encoding": "gzip"}, then=zipped)
        elif way == "length":
            self.head({"Content-Length": "many"}, then=data)
        elif way == "chunk":
            self.head({"Transfer-Encoding": "chunked"}, then=b"%x\r\n" % len(data) + data[:100])
        else:
            self.head({"Content-Length": len(data)}, then=data)

    def head(self, headers, status=200, then=b""):
        self.protocol_version = "HTTP/1.1"
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(then)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, tiny_video, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    tar = write_tar(tmp_path / "a.tar", [(f"{n}.mp4", tiny_video) for n in range(3)], [meta(str(n)) for n in range(3)])
    names = (tar, tmp_path / "a.meta.jsonl")
    Misbehaving.files, Misbehaving.requests = {path.name: path.read_bytes() for path in names}, Counter()
    with serving(Misbehaving) as address:
        yield address


def clips_of(path, cache, skips=None):
    values = {"path": path, "cache": str(cache), "num_frames": 5, "resolution": 32, "num_workers": 0}
    return list(fixed_clips(parse_config(DataConfig, values), stride=100, skips=skips))


@pytest.mark.parametrize("way", ["status", "loop", "unavailable", "page", "zipped", "length", "chunk"])
def test_a_server_that_misbehaves_is_one_line_or_a_skip(server, tmp_path, caplog, way):
    cache, signed = tmp_path / "cache", "a.tar?X-Signature=secret"
    with pytest.raises(UserError, match=r"unreachable: .*check the address") as caught:
        clips_of(f"{server}/{way}/{signed}", cache)
    assert "\n" not in str(caught.value) and "/a.tar?... (" in str(caught.value)
    skips = SkipLog(tmp_path / "skipped.jsonl", max_share=1)
    assert clips_of(f"{server}/meta/{way}/{signed}", cache, skips) == []
    assert skips.counts == {"unreachable": 3}
    assert not list(cache.glob("*.tar")) and not list(cache.glob("*.partial"))
    shown = caplog.text + str(caught.value) + skips.path.read_text()
    assert "secret" not in shown and "/a.meta.jsonl?... (" in shown
    assert len(clips_of(f"{server}/well/{signed}", cache)) == 3


def test_what_cannot_be_had_is_not_asked_for_at_every_sample(server, tmp_path, monkeypatch):
    """With a server that does not answer, each of a shard's thousand samples would take minutes."""
    skips = SkipLog(max_share=1)
    clips_of(f"{server}/meta/unavailable/a.tar", tmp_path / "cache", skips)
    assert skips.counts == {"unreachable": 3} and Misbehaving.requests["a.tar"] == remote.TRIES
    cache = ShardCache(tmp_path / "cache")
    for _ in range(2):
        monkeypatch.setattr(remote, "REST", 0.0)
        with pytest.raises(VideoError, match="unreachable"):
            cache.fetch(f"{server}/unavailable/a.tar", tmp_path / "cache" / "b.tar")
    assert Misbehaving.requests["a.tar"] == 3 * remote.TRIES


@pytest.mark.parametrize("address", ["http://[bad/a.tar", "{server}/well/a b.tar", "{server}/well/ä.tar"])
def test_an_address_that_is_none_is_one_line(server, tmp_path, address):
    with pytest.raises(UserError, match="unreachable"):
        clips_of(address.format(server=server), tmp_path / "cache")


def test_a_command_that_hangs_ends_with_all_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "PIPE_TIMEOUT", 1.0)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"it printed nothing for 1 seconds"):
        clips_of(f"pipe:(echo $BASHPID >> {tmp_path}/pids; exec sleep 300) | cat; : a.tar", tmp_path / "cache")
    assert time.monotonic() - began < 60
    pids = (tmp_path / "pids").read_text().split()
    assert 1 <= len(pids) <= 1 + remote.TRIES  # a busy machine may not have come to it
    while any(running(pid) for pid in pids):  # a killed process goes a moment later
        assert time.monotonic() - began < 60
        time.sleep(0.05)


def running(pid):
    """Whether a process is there and not just waiting to be noticed by its parent."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_a_command_may_take_its_time_while_it_prints(tmp_path, monkeypatch, tiny_video):
    monkeypatch.setattr(remote, "PIPE_TIMEOUT", 1.0)
    write_tar(tmp_path / "a.tar", [("a.mp4", tiny_video)], [meta("a")])
    slowly = "for part in 1 2 3 4 5; do sleep 0.4; head -c 8000; done; cat"
    assert len(clips_of(f"pipe:cat {tmp_path}/a.tar | ({slowly})", tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a.tar", "https://host/a.tar"),
        ("https://host/a.tar?X-Amz-Signature=1&b=2: gone", "https://host/a.tar?...: gone"),
        ("https://user:word@host/a.tar", "https://host/a.tar"),
        ("('https://host/a.tar?sig=1', 'b.tar')", "('https://host/a.tar?...', 'b.tar')"),
        ("pipe:curl -f 'https://host/a.tar?sig=1' | cat", "pipe:curl -f 'https://host/a.tar?...' | cat"),
        ("/data/what?.tar", "/data/what?.tar"),
    ],
)
def test_secrets_of_addresses(text, shown):
    assert without_secrets(text) == shown


def test_the_name_in_the_cache_has_no_secrets(tmp_path):
    place = ShardCache(tmp_path).place("https://host/get?token=secret&file=a-0.tar")
    assert place.name.startswith("a-0-") and "secret" not in place.name


def test_the_log_names_a_shard_without_secrets(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_tar(tmp_path / "a.tar", [], [meta("0"), meta("1", duration=0.1)])
    Misbehaving.files["a.meta.jsonl"] = (tmp_path / "a.meta.jsonl").read_bytes()
    assert len(clips_of(f"{server}/well/a.tar?key=secret", tmp_path / "cache")) == 1
    assert "left out: 1 too short" in caplog.text and "secret" not in caplog.text
