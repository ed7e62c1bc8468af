"""Headers of tars that lie: whatever they claim, the samples before them are read, at once and in little memory."""

import errno
import io
import os
import random
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from sat_ssvae.data import tars
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.index import find_stores
from sat_ssvae.data.remote import Remote, ShardCache
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.tars import TarStore, plain_tar
from sat_ssvae.errors import UserError

from .processes import unmeasured
from .shard_files import meta, small, write_tar


def header(name, size, kind=b"0"):
    """A member's header; `size` is an octal number of 33 bits at most, any number base 256."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    if 0 <= size < 8**11:
        block[124:136] = b"%011o\0" % size
    else:
        block[124:136] = bytes([0x80 if size >= 0 else 0xFF]) + (size % 2**88).to_bytes(11, "big")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, data, kind=b"0"):
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


LIES = {
    "negative": header("b.mp4", -512),
    "negative, by a whole header": header("b.mp4", -1024),
    "negative, in a record before": member("b", b"14 size=-1024\n", b"x") + header("b.mp4", 0),
    "more than a disk": header("b.mp4", 2**62),
    "no 64-bit number": header("b.mp4", 2**80),
    "a name of 4 EiB": header("b", 2**62, b"L"),
    "a name of no 64-bit size": header("b", 2**80, b"L"),
    "records of 32 TiB": header("b", 2**45, b"x"),
    "names of names": header("b", 0, b"L") * 3000,
    "a name of slashes": member("b", b"/" * 60000 + b"\0", b"L") + header("b", 0),
    "a name of folders": member("b", b"a/" * 30000 + b"\0", b"L") + header("b", 0),
}

READ = """
import resource, sys
from pathlib import Path
from sat_ssvae.data.tars import TarStore
from sat_ssvae.errors import UserError
from sat_ssvae.data.video_io import VideoError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
for path in sys.argv[1:]:
    store = TarStore(Path(path))
    assert store.media("a") == ("mp4", b"video"), path
    for key in store.keys():
        try:
            store.media(key)
        except VideoError as error:
            assert error.cause in ("truncated", "no video or image"), path
"""


def test_no_header_costs_time_or_memory(tmp_path):
    """In a process of its own: without bounds these take gigabytes, or never end."""
    for number, lie in enumerate(LIES.values()):
        (tmp_path / f"{number}.tar").write_bytes(member("a.mp4", b"video") + lie + bytes(1024))
    done = subprocess.run(
        [sys.executable, "-c", READ, *sorted(map(str, tmp_path.glob("*.tar")))],
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("damaged or cut off after") >= 8
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("first", [header("b.mp4", -512), header("b", 0, b"L") * 3000])
def test_a_tar_that_begins_with_one_is_unreadable(tmp_path, first):
    (tmp_path / "a.tar").write_bytes(first + member("a.mp4", b"video") + bytes(1024))
    with pytest.raises(VideoError, match="unreadable tar"):
        TarStore(tmp_path / "a.tar").keys()


def test_a_file_that_gives_little_at_a_time_is_read_whole(tmp_path):
    """As one on a network may, and any file beyond 2 GiB."""

    class Slow(io.FileIO):
        def read(self, size=-1):
            return super().read(min(size, 1000))

    class Network(Remote):
        def open(self):
            return Slow(self.place)

    tar = write_tar(tmp_path / "a.tar", [("a.mp4", bytes(range(250)) * 30), ("b.mp4", b"b" * 1500)])
    store = TarStore(tar, Network("https://host/a.tar", ShardCache(tmp_path), tar))
    assert store.media("a")[1] == bytes(range(250)) * 30 and store.media("b")[1] == b"b" * 1500


@given(st.text(st.sampled_from("ab/.é_"), max_size=12))
def test_names_are_split_as_webdataset_splits_them(name):
    expected = base_plus_ext(name)
    hidden = name.rpartition("/")[2].startswith(".")
    assert tars.split_name(name) == (("", "") if hidden or expected[0] is None else expected)


def test_a_caption_nested_without_end_is_none(tmp_path, tiny_video):
    members = [("a.mp4", tiny_video), ("a.json", b"[" * 100_000), ("b.mp4", tiny_video)]
    tar = write_tar(tmp_path / "a.tar", members, [meta("a"), meta("b")])
    skips = SkipLog(max_share=1)
    clips = fixed_clips(small(tar), stride=100, skips=skips)
    assert [(clip.key, clip.caption) for clip in clips] == [("a/a", ""), ("a/b", "")]
    assert not skips.counts


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_a_tar_of_a_whole_folder_is_found_by_the_meta_file(tmp_path, tiny_video, form):
    """Its names begin with `./`; a long one takes a header of its own, and a link is no video."""
    folder, long = tmp_path / "in", "long" * 40
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "b.MP4", f"deep/{long}.mp4" if form != "ustar" else "deep/d.mp4"):
        (folder / name).write_bytes(tiny_video)
    (folder / "link.mp4").symlink_to("a.mp4")
    keys = ["a", "b", f"deep/{long}" if form != "ustar" else "deep/d"]
    tar = write_tar(tmp_path / "s.tar", [], [*map(meta, keys), meta("link")])
    subprocess.run(["tar", f"--format={form}", "-cf", tar, "-C", folder, "."], check=True)
    skips = SkipLog(max_share=1)
    assert [clip.key for clip in fixed_clips(small(tar), stride=100, skips=skips)] == [f"s/{key}" for key in keys]
    assert skips.counts == {"not in the tar": 1}
    tar.with_name("s.meta.jsonl").unlink()
    assert len(list(fixed_clips(small(tar), stride=100))) == 3


def test_a_tar_of_hard_links_has_each_of_its_videos(tmp_path, tiny_video):
    """GNU tar stores a file once; the case of the suffix does not matter."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(tiny_video)
    (folder / "b.mp4").hardlink_to(folder / "a.mp4")
    (folder / "b.txt").write_text("a cat")
    (tmp_path / "set").mkdir()
    tar = tmp_path / "set" / "S.TAR"
    subprocess.run(["tar", "--sort=name", "-cf", tar, "-C", folder, "."], check=True)
    assert TarStore(tar).media("b") == ("mp4", tiny_video)
    for place in (tar, tmp_path / "set"):
        assert [clip.caption for clip in fixed_clips(small(place), stride=100)] == ["", "a cat"]


def test_what_a_tar_holds_twice_is_used_once_and_named(tmp_path, tiny_video, caplog):
    members = [("a.mp4", tiny_video), ("a.txt", b"one"), ("a.txt", b"two"), ("b.mp4", tiny_video), ("b.mkv", b"")]
    store = TarStore(write_tar(tmp_path / "a.tar", members))
    assert store.keys() == ["a", "b"] and store.caption("a") == "one" and store.media("b") == ("mp4", tiny_video)
    assert "1 names are there again, such as a.txt; the first is used" in caplog.text
    assert "several videos in 1 samples, such as b; one is used" in caplog.text


def test_links_out_of_a_tar_are_named(tmp_path, tiny_video, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "far.mp4").write_bytes(tiny_video)
    (folder / "a.mp4").symlink_to(tmp_path / "far.mp4")
    for option, keys in (("-c", []), ("-ch", ["a"])):
        subprocess.run(["tar", f"{option}f", tmp_path / "a.tar", "-C", folder, "a.mp4"], check=True)
        assert TarStore(tmp_path / "a.tar").keys() == keys
    (warning,) = caplog.messages
    assert warning.endswith("1 links and sparse files are not read, such as a.mp4; tar -h packs what links lead to")


def test_a_tar_behind_another_is_named(tmp_path, caplog):
    first, second = (write_tar(tmp_path / f"{name}.tar", [(f"{name}.mp4", b"video")]) for name in "ab")
    assert TarStore(first).keys() == ["a"] and not caplog.text
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert TarStore(first).keys() == ["a"] and "what follows its end" in caplog.text


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".TGZ", "w:gz"), (".tar.bz2", "w:bz2")])
def test_a_compressed_archive_is_named(tmp_path, tiny_video, caplog, suffix, mode):
    folder = tmp_path / "set"
    folder.mkdir()
    packed = folder / f"b{suffix}"
    with tarfile.open(packed, mode) as tar:
        tar.addfile(tarfile.TarInfo("0.txt"))
    for path in (folder, packed):
        with pytest.raises(UserError, match=r"b\.\S+: an archive that is compressed .* unpack it"):
            find_stores(str(path), lambda skip: None)
    write_tar(folder / "a.tar", [("0.mp4", tiny_video)])
    assert len(find_stores(str(folder), lambda skip: None)) == 1
    assert f"{packed} is not read" in caplog.text
    disguised = packed.rename(tmp_path / "c.tar")
    with pytest.raises(VideoError, match=r"compressed with .*, unpack it"):
        TarStore(disguised).keys()


@pytest.fixture
def big(tmp_path):
    """A file of more than one block, and its bytes."""
    path, data = tmp_path / "big.mp4", random.Random(0).randbytes(3_000_001)
    path.write_bytes(data)
    return path, data


@pytest.mark.parametrize("most", [0, 1 << 16, None])
def test_a_member_is_the_file_however_much_the_kernel_copies(tmp_path, monkeypatch, big, most):
    """None of it, as where the file system cannot, a part before it fails, and all of it."""
    original, calls = os.sendfile, []

    def sendfile(out, source, offset, count):
        calls.append(count)
        if most is None:
            return original(out, source, offset, count)
        if len(calls) > 1 or not most:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(out, source, offset, most)

    monkeypatch.setattr(os, "sendfile", sendfile)
    with plain_tar(tmp_path / "a.tar") as writer:
        writer.write("0", {"mp4": big[0], "id": b"first"})
        writer.write("1", {"mp4": big[1], "id": b"second"})
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert members == {"0.id": b"first", "0.mp4": big[1], "1.id": b"second", "1.mp4": big[1]}
    assert calls and (tmp_path / "a.tar").stat().st_size % tarfile.RECORDSIZE == 0


def test_a_file_that_becomes_shorter_leaves_nothing_in_the_tar(tmp_path, monkeypatch, big):
    original = os.sendfile

    def sendfile(out, source, offset, count):
        os.truncate(big[0], 1_000_000)
        return original(out, source, offset, count)

    with plain_tar(tmp_path / "a.tar") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "sendfile", sendfile)
            with pytest.raises(VideoError, match="became shorter"):
                writer.write("0", {"mp4": big[0], "id": b"first"})
        writer.write("1", {"id": b"second"})
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["1.id"]


def test_a_tar_that_cannot_grow_is_the_disks_fault(big):
    """Not that of the video, which would be skipped."""
    with pytest.raises(OSError, match="No space left") as caught, plain_tar(Path("/dev/full")) as writer:
        writer.write("0", {"mp4": big[0]})
    assert not isinstance(caught.value, VideoError)
