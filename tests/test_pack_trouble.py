"""Packing what is broken, and packing that is interrupted: what can be used is packed, once."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.video_io import write_video
from sat_ssvae.errors import UserError

from .processes import unmeasured
from .shard_files import contents, records_in, samples_in, skips_in


def test_a_file_that_cannot_be_read_any_more_is_a_skip(tiny_videos, tmp_path, monkeypatch):
    """Deleted meanwhile, or cut off while it is copied; the other ones are packed."""
    from sat_ssvae.data import pack as packing  # the module, not its function

    inputs = shutil.copytree(tiny_videos, tmp_path / "in")
    original = packing.convert

    def convert(item, config, inputs):
        sample = original(item, config, inputs)
        if item.path.name == "bars2.mp4":
            item.path.unlink()
        return sample

    monkeypatch.setattr(packing, "convert", convert)
    report = pack(inputs, tmp_path / "out", PackConfig(workers=1))
    assert report.samples == 4 and report.skipped == {"unreadable file": 1}
    (skip,) = skips_in(tmp_path / "out")
    assert skip["source"] == "bars2.mp4" and "No such file" in skip["detail"]
    assert [sample["__key__"][-1] for sample in samples_in(tmp_path / "out")] == list("0134")


def test_a_file_that_may_not_be_asked_for_is_a_skip(tiny_videos, tmp_path, monkeypatch):
    """As in a folder that one may not enter."""
    original = Path.is_file

    def is_file(path):
        if path.name == "secret.mp4":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    (tmp_path / "clips.csv").write_text(f"path\n{tiny_videos}/bars0.mp4\nsecret.mp4\n")
    report = pack(tmp_path / "clips.csv", tmp_path / "out", PackConfig(workers=1, captions="none"))
    assert report.samples == 1 and report.skipped == {"unreadable file": 1}


def bad_folder(folder, tiny_videos):
    shutil.copytree(tiny_videos, folder)
    good = (folder / "bars0.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "half.mp4").write_bytes(good[: len(good) // 2])
    (folder / "text.mp4").write_text("hello")
    (folder / "noise.avi").write_bytes(os.urandom(5000))
    (folder / "program.exe").write_bytes(b"MZ" * 100)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "notes.txt").write_text("no video of this name")
    (folder / os.fsdecode(b"not-utf8-\xff.mp4")).write_bytes(good)
    (folder / "sub").mkdir()
    shutil.copy(folder / "bars1.mp4", folder / "sub" / "bars1.mp4")
    return folder


@pytest.mark.parametrize("segment_seconds", [None, 1.0])
def test_bad_files_are_counted_and_listed(tiny_videos, tmp_path, segment_seconds):
    folder = bad_folder(tmp_path / "in", tiny_videos)
    output = tmp_path / "out"
    report = pack(folder, output, PackConfig(segment_seconds=segment_seconds, samples_per_shard=3, workers=2))
    assert report.skipped == {"empty file": 1, "not a video": 4, "not an image": 1}
    listed = {skip["source"].partition("@")[0] for skip in skips_in(output)}
    assert listed == {"empty.mp4", "half.mp4", "text.mp4", "noise.avi", "program.exe", "broken.png"}
    sources = {record["source"].partition("@")[0] for record in records_in(output)}
    assert sources == {*(f"bars{number}.mp4" for number in range(5)), "sub/bars1.mp4", "not-utf8-\\udcff.mp4"}
    assert not list(output.glob("*.partial"))
    before = contents(output)
    assert pack(folder, output, PackConfig(segment_seconds=segment_seconds, samples_per_shard=3)) == report
    assert contents(output) == before


def test_nothing_usable(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no video or image"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig())
    (tmp_path / "in" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable video or image \(1 empty file\), see .*skipped.jsonl"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig(captions="none"))
    with pytest.raises(UserError, match="no such file or folder"):
        pack(tmp_path / "gone", tmp_path / "out", PackConfig())


def test_an_output_folder_belongs_to_one_pack(tiny_videos, tiny_shards, tmp_path):
    with pytest.raises(UserError, match="other inputs or settings"):
        pack(tiny_videos, tiny_shards, PackConfig(samples_per_shard=3))
    with pytest.raises(UserError, match="other inputs or settings"):
        pack(tiny_videos / "bars1.mp4", tiny_shards, PackConfig(samples_per_shard=2))
    (tmp_path / "foreign.tar").write_bytes(b"")
    with pytest.raises(UserError, match="did not write"):
        pack(tiny_videos, tmp_path, PackConfig())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        pack(tiny_videos, tmp_path / "file", PackConfig())


@pytest.mark.parametrize("text", ["{", "[]", '{"fingerprint": "0"}'])
def test_a_plan_of_another_version_is_one_line(tiny_videos, tmp_path, text):
    pack(tiny_videos, tmp_path, PackConfig())
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(UserError, match="is damaged or of another version: choose an empty folder or delete"):
        pack(tiny_videos, tmp_path, PackConfig())


PROGRAM = """
import resource, sys
from pathlib import Path
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.errors import UserError
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
config = PackConfig(segment_seconds=0.5, samples_per_shard=2, workers=1, captions="none")
try:
    pack(Path(sys.argv[1]), Path(sys.argv[2]), config)
except UserError as error:
    sys.exit(f"UserError: {error}")
"""


def packer(inputs, output, limit=0):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(inputs), str(output), str(limit)],
        stderr=subprocess.PIPE,
        text=True,
        env={**unmeasured(), "PYTHONPATH": str(Path(__file__).parents[1])},  # also where files have a limit
    )


def test_a_killed_packer_continues(tiny_videos, tmp_path):
    folder = bad_folder(tmp_path / "in", tiny_videos)
    output = tmp_path / "killed"
    with packer(folder, output) as process:
        while not list(output.glob("*-000002.meta.jsonl")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.meta.jsonl")}
    with (output / "skipped.jsonl").open("a") as listing:
        listing.write('{"source": "cut o')  # what a kill inside a write leaves
    (output / "clips-000009.tar.partial").write_bytes(b"left over")
    config = PackConfig(segment_seconds=0.5, samples_per_shard=2, workers=1, captions="none")
    resumed = pack(folder, output, config)
    whole = pack(folder, tmp_path / "whole", config)
    assert contents(output) == contents(tmp_path / "whole")
    assert (resumed.samples, resumed.skipped) == (whole.samples, whole.skipped)
    assert finished and {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_full_disk_keeps_finished_shards(tiny_videos, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    shutil.copy(tiny_videos / "bars0.mp4", inputs / "a.mp4")
    noise = torch.rand(3, 48, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(inputs / "b.mp4", noise, fps=24)  # does not compress: its shard passes the limit
    with packer(inputs, tmp_path / "out", limit=200_000) as process:
        message = process.stderr.read().strip().splitlines()[-1]
    assert process.returncode == 1
    assert message.startswith("UserError: ")
    assert "File too large" in message and "run the same command again" in message
    assert "\n" not in message
    finished = list((tmp_path / "out").glob("*.meta.jsonl"))
    assert 1 <= len(finished) <= 3
    report = pack(inputs, tmp_path / "out", PackConfig(segment_seconds=0.5, samples_per_shard=2, captions="none"))
    assert report.samples == 7
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_no_space_left(tiny_videos, tmp_path, monkeypatch):
    monkeypatch.setattr("sat_ssvae.storage.secrets.token_hex", lambda _: "00000000")
    (tmp_path / "pack.json.00000000.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        pack(tiny_videos, tmp_path, PackConfig())


def test_a_video_that_crashes_the_decoder_is_a_skip(tiny_videos, tmp_path, monkeypatch):
    """Whether it does so when it is probed or when it is converted; all others are packed."""
    from sat_ssvae.data import pack as packing  # the module, not its function

    for name, seconds, samples in (("convert", None, 4), ("cut", 0.5, 20)):
        original = getattr(packing, name)

        def crash(item, config, inputs, original=original):
            if item.path.name == "bars2.mp4":
                os.kill(os.getpid(), signal.SIGKILL)
            return original(item, config, inputs)

        monkeypatch.setattr(packing, name, crash)
        report = pack(tiny_videos, tmp_path / name, PackConfig(workers=2, segment_seconds=seconds))
        assert report.skipped == {"crashed": 1} and report.samples == samples
        (skip,) = skips_in(tmp_path / name)
        assert skip["source"] == "bars2.mp4" and skip["detail"] == "the process was ended by SIGKILL, 2 times"
