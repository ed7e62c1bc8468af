"""Several sources, sizes and addresses: images beside videos, buckets, servers, pipes, worthless clips."""

import functools
import http.server
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import ClassVar

import pytest
import torch
from PIL import Image

from sat_ssvae.cli import main
from sat_ssvae.config import parse_config
from sat_ssvae.data import remote
from sat_ssvae.data.check import CheckConfig, check_data
from sat_ssvae.data.clips import ClipReader
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.settings import DataConfig, nearest_bucket
from sat_ssvae.data.shards import fixed_clips, training_batches
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.video_io import write_video
from sat_ssvae.errors import UserError

from .servers import serving
from .shard_files import meta, small, write_tar


def configured(**values):
    return parse_config(DataConfig, {"num_frames": 5, "fps": 8, "resolution": 32, "num_workers": 0, **values})


def take(count, config, **options):
    return list(itertools.islice(training_batches(config, batch_size=2, seed=0, **options), count))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(folder / f"{number}.png")
    pack(folder, tmp_path / "image_shards", PackConfig(workers=1, captions="none"))
    return tmp_path / "image_shards"


def test_images_and_videos_one_to_seven_in_step_on_all_ranks(tiny_shards, images):
    config = configured(
        sources=[
            {"path": str(tiny_shards), "weight": 7},
            {"path": str(images), "weight": 1, "num_frames": 1, "batch_size": 3},
        ]
    )
    ranks = [take(24, config, rank=rank, world_size=2) for rank in range(2)]
    shapes = [[tuple(batch.video.shape) for batch in rank] for rank in ranks]
    assert shapes[0] == shapes[1] and set(shapes[0]) == {(2, 3, 5, 32, 32), (3, 3, 1, 32, 32)}
    continued = take(10, config, rank=1, world_size=2, start_batch=14)
    assert all(torch.equal(a.video, b.video) for a, b in zip(continued, ranks[1][14:], strict=True))


def test_each_source_tells_of_its_own_samples(tmp_path, tiny_video, caplog):
    for name, unusable in (("one", {"duration": 0.1}), ("two", {"fps": 4})):
        write_tar(tmp_path / f"{name}.tar", [("a.mp4", tiny_video)], [meta("a"), meta("b", **unusable)])
    skips = SkipLog()
    take(1, configured(sources=[{"path": str(tmp_path / f"{name}.tar")} for name in ("one", "two")]), skips=skips)
    told = [record.message.rpartition(": ")[2] for record in caplog.records]
    assert told == ["1 too short", "1 fps too low"] and skips.counts == {"too short": 1, "fps too low": 1}


def test_buckets_keep_the_shape_of_a_sample(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (height, width) in {"wide": (48, 96), "tall": (96, 48), "square": (64, 64)}.items():
        write_video(folder / f"{name}.mp4", torch.rand(3, 24, height, width) * 2 - 1, fps=24)
    config = configured(path=str(folder), buckets=[[32, 64], [64, 32], [48, 48]])
    sizes = {}
    for batch in take(30, config):
        assert len(set(batch.keys)) == 1  # of a size there is one sample
        sizes[batch.keys[0].split("/")[1]] = tuple(batch.video.shape[-2:])
    assert sizes == {"wide.mp4": (32, 64), "tall.mp4": (64, 32), "square.mp4": (48, 48)}
    with pytest.raises(UserError, match="have one size"):
        fixed_clips(config, stride=1)


def test_nearest_bucket():
    sizes = ((256, 448), (448, 256), (320, 320), (512, 896))
    assert nearest_bucket(720, 1280, sizes) == (512, 896)
    assert nearest_bucket(300, 500, sizes) == (256, 448)
    assert nearest_bucket(1280, 720, sizes) == (448, 256)
    assert nearest_bucket(100, 100, sizes) == (320, 320)  # left out later, as too small
    assert nearest_bucket(0, 0, sizes) == (320, 320)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"language": {"any_of": ["en", "de"]}}, ["a", "b"]),
        ({"watermark": {"any_of": [False]}}, ["a"]),
        ({"score": [0, 0]}, ["b"]),
        ({"score": {"any_of": [0, 3]}}, ["a", "b"]),
        ({"score": [1, None], "language": {"any_of": ["en"]}}, ["a"]),
    ],
)
def test_filters_on_any_field(tmp_path, tiny_video, filters, kept):
    records = [
        meta("a", language="en", watermark=False, score=3),
        meta("b", language="de", watermark=True, score=0),
        meta("c", language="fr", watermark=0, score=-1),
        meta("d", language=None),
    ]
    tar = write_tar(tmp_path / "a.tar", [(f"{name}.mp4", tiny_video) for name in "abcd"], records)
    skips = SkipLog()
    keys = [clip.key for clip in fixed_clips(configured(path=str(tar), filters=filters), stride=100, skips=skips)]
    assert keys == [f"a/{name}" for name in kept]
    assert sum(skips.counts.values()) == 4 - len(kept)


def test_black_and_frozen_clips_are_counted_skips(tmp_path, tiny_videos):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "moving.mp4").write_bytes((tiny_videos / "bars0.mp4").read_bytes())
    write_video(folder / "black.mp4", torch.full((3, 36, 64, 80), -1.0), fps=24)
    write_video(folder / "frozen.mp4", torch.rand(3, 1, 64, 80).mul(2).sub(1).expand(3, 36, 64, 80), fps=24)
    config = configured(path=str(folder), drop_black=0.02, drop_frozen=0.002, max_skip_share=0.9)
    skips = SkipLog(max_share=0.9)
    assert [clip.key for clip in fixed_clips(config, stride=100, skips=skips)] == ["in/moving.mp4"]
    assert skips.counts == {"black": 1, "frozen": 1}
    assert {key for batch in take(5, config) for key in batch.keys} == {"in/moving.mp4"}
    with pytest.raises(UserError, match=r"clips could not be read \(.* (black|frozen)"):
        take(60, configured(path=str(folder), drop_black=0.02, drop_frozen=0.002))


class Server(http.server.SimpleHTTPRequestHandler):
    requests: ClassVar[Counter[str]] = Counter()
    failures = 0

    def do_GET(self):
        type(self).requests[self.path.split("?")[0]] += 1
        if self.path.startswith("/clips-000001.tar") and type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tiny_shards, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    Server.requests, Server.failures = Counter(), 0
    handler = functools.partial(Server, directory=str(tiny_shards))
    with serving(handler) as address:
        yield address


def clips_of(config, **options):
    return list(fixed_clips(config, stride=100, **options))


def test_shards_of_a_server_are_fetched_once(tiny_shards, server, tmp_path):
    Server.failures = 2
    url = server + "/clips-{000000..000002}.tar?token=1"
    config = configured(path=url, cache=str(tmp_path / "cache"))
    fetched, local = clips_of(config), clips_of(small(tiny_shards))
    assert [clip.key.split("/")[1] for clip in fetched] == [clip.key.split("/")[1] for clip in local]
    assert all(torch.equal(a.video, b.video) for a, b in zip(fetched, local, strict=True))
    before = dict(Server.requests)
    assert before["/clips-000000.tar"] == 1 and before["/clips-000001.tar"] == 3
    clips_of(config)
    assert dict(Server.requests) == before


def test_a_small_cache_makes_room_and_fetches_again(server, tmp_path):
    cache = tmp_path / "cache"
    config = configured(path=server + "/clips-{000000..000002}.tar", cache=str(cache), cache_gib=1e-9)
    assert len(clips_of(config)) == len(clips_of(config)) == 5
    assert len(list(cache.glob("*.tar"))) == 1 and Server.requests["/clips-000000.tar"] == 2


def test_a_shard_that_another_process_removes_meanwhile_is_no_mistake(server, tmp_path):
    """It is still named when the folder is listed, and gone when its size is asked, like the end of this link."""
    (tmp_path / "removed.tar").symlink_to(tmp_path / "gone")
    config = configured(path=server + "/clips-{000000..000002}.tar", cache=str(tmp_path), cache_gib=1e-9)
    skips = SkipLog(max_share=1)
    assert len(clips_of(config, skips=skips)) == 5 and not skips.counts


def test_a_pipe_is_a_command_that_prints_the_shard(tiny_shards, tmp_path):
    path = f"pipe:cat {tiny_shards}/clips-{{000000..000001}}.tar"
    assert len(clips_of(configured(path=path, cache=str(tmp_path)))) == 4


@pytest.mark.parametrize("failing", ["exit 1", "echo '<html>Not Found</html>'"])
def test_a_pipe_without_a_meta_file_is_asked_for_it_once(tiny_shards, tmp_path, failing):
    """Nor is there a pause: a thousand shards without one would cost an hour before the first step."""
    bare, command = tmp_path / "bare", tmp_path / "print"
    shutil.copytree(tiny_shards, bare, ignore=shutil.ignore_patterns("*.jsonl"))
    command.write_text(f'echo "$1" >> {tmp_path}/calls; cat {bare}/"$1" || {failing}')
    path = f"pipe:bash {command} clips-{{000000..000001}}.tar"
    assert len(clips_of(configured(path=path, cache=str(tmp_path / "cache")))) == 4
    names = [f"clips-00000{number}.{suffix}" for number in (0, 1) for suffix in ("meta.jsonl", "tar")]
    assert sorted((tmp_path / "calls").read_text().split()) == sorted(names)


@pytest.mark.parametrize(
    "tar", ["(cat $1; exit 1) | cat", "head -c 30000 $1", "head -c 30720 $1", "echo Service Unavailable", "true"]
)
def test_a_pipe_that_fails_or_gives_no_whole_tar_is_not_kept(tiny_shards, tmp_path, monkeypatch, tar):
    """`curl` without its -f gives the server's error page and calls that a success."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    (tmp_path / "print").write_text(f'case "$1" in *.tar) {tar};; *) exit 1;; esac')
    path = f"pipe:bash -o pipefail {tmp_path}/print {tiny_shards}/clips-000000.tar"
    with pytest.raises(UserError, match=r"unreachable: .*check the address"):
        clips_of(configured(path=path, cache=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache").glob("*.tar"))


STUCK = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.mixture import epoch_order
from sat_ssvae.data.shards import training_batches
path, cache = sys.argv[1:]
config = DataConfig(path=path, cache=cache, num_frames=5, resolution=32, shuffle_shards=1)
seed = next(seed for seed in range(99) if epoch_order([2, 2], seed, 0, 1)[0] < 2)
batches = training_batches(config, batch_size=1, seed=seed)
for _ in range(2):
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
while not list(Path(cache).glob("clips-000001-*.partial")):
    time.sleep(0.05)
print("it waits", flush=True)
"""


@pytest.mark.slow
def test_a_worker_outlives_sigterm_but_not_its_trainer(tiny_shards, tmp_path):
    """Not even while it waits for a command that does not end."""
    command = tmp_path / "print"
    command.write_text(f'case "$1" in *1.tar) exec sleep 200;; *) cat {tiny_shards}/"$1";; esac')
    path = f"pipe:bash {command} clips-{{000000..000001}}.tar"
    done = subprocess.run(
        [sys.executable, "-c", STUCK, path, str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout == "it waits\n"


def test_what_cannot_be_fetched_is_one_line_or_a_skip(server, tmp_path):
    cache = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r"unreachable: .*404.*check the address"):
        clips_of(configured(path=f"{server}/gone.tar", cache=cache))
    with pytest.raises(UserError, match="expected the address of a"):
        clips_of(configured(path=f"{server}/clips", cache=cache))
    Server.failures = 99  # its meta file comes, the tar does not
    skips = SkipLog(max_share=1)
    assert len(clips_of(configured(path=server + "/clips-{000000..000001}.tar", cache=cache), skips=skips)) == 2
    assert skips.counts == {"unreachable": 2}


def test_wrong_sources_are_named():
    for wrong, message in (
        ({}, "give either `path` or `sources`"),
        ({"path": "x", "sources": [{"path": "y"}]}, "give either `path` or `sources`"),
        ({"sources": [{"path": "y", "num_frames": 16}]}, "must be 4k . 1"),
        ({"sources": [{"path": "y", "wieght": 1}]}, "did you mean `sources.0.weight`"),
        ({"path": "x", "filters": {"a": {"any_of": []}}}, "filters"),
    ):
        with pytest.raises(UserError, match=message):
            parse_config(DataConfig, wrong)


def test_check_data_reports_everything(tmp_path, tiny_video, capsys):
    members = [
        ("good.mp4", tiny_video),
        ("broken.mp4", tiny_video[:700]),
        ("empty.mp4", b""),
        ("short.mp4", tiny_video),
    ]
    records = [meta(name.split(".")[0]) for name, _ in members[:3]] + [meta("short", duration=0.1)]
    tar = write_tar(tmp_path / "a.tar", members, records)
    settings = ["data.num_frames=5", "data.resolution=32", "data.num_workers=0"]
    assert main(["check-data", str(tar), "--output", str(tmp_path), *settings]) == 0
    out = capsys.readouterr().out
    assert "2 clips of 1 samples can be used, 0 samples have a caption" in out
    for cause in ("not a video", "empty file", "too short"):
        assert f"1 left out: {cause}" in out or f"2 left out: {cause}" in out
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3


def test_check_data_takes_each_video_in_its_own_size(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (height, width) in {"wide": (48, 96), "tall": (96, 48), "small": (24, 24)}.items():
        write_video(folder / f"{name}.mp4", torch.rand(3, 24, height, width) * 2 - 1, fps=24)
    options = ["data.num_frames=5", "data.num_workers=0", "data.buckets=[[32, 64], [64, 32]]"]
    assert main(["check-data", str(folder), "--output", str(tmp_path), *options]) == 0
    out = capsys.readouterr().out
    assert "2 clips of 2 samples can be used" in out and "1 left out: too small" in out


def test_check_data_counts_sources_whose_samples_have_the_same_names(tmp_path, tiny_video):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "clips.tar", [("a.mp4", tiny_video)], [meta("a")])
    config = configured(sources=[{"path": str(tmp_path / name)} for name in ("one", "two")])
    assert check_data(CheckConfig(data=config), tmp_path).samples == 2


def test_check_data_names_files_whose_names_are_no_text(tmp_path, tiny_video, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.mp4").write_bytes(tiny_video)
    (tmp_path / "in" / os.fsdecode(b"bad-\xff.mp4")).write_bytes(b"no video")
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", written)
    settings = ["data.num_frames=5", "data.resolution=32"]
    assert main(["check-data", str(tmp_path / "in"), "--output", str(tmp_path), *settings]) == 0
    written.seek(0)
    assert "in/bad-\\udcff.mp4: not a video" in written.read()


def test_check_data_in_parts(tmp_path, tiny_video, capsys, monkeypatch):
    monkeypatch.setattr("sat_ssvae.data.check.CLIPS_IN_PIECE", 1)
    members = [(f"{number}.mp4", tiny_video if number % 3 else b"junk") for number in range(9)]
    tar = write_tar(tmp_path / "a.tar", members, [meta(str(number)) for number in range(9)])
    settings = ["data.num_frames=5", "data.resolution=32", "data.num_workers=0"]

    def check(folder, *more):
        assert main(["check-data", str(tar), "--output", str(tmp_path / folder), *settings, *more]) == 0
        return capsys.readouterr().out.replace(f"/{folder}/", "/")

    whole = check("whole")
    for part in ("1/3", "3/3", "2/3"):
        assert f"part {part} is done" in check("parts", f"part={part}")
    assert check("parts", "--merge") == whole and "12 clips of 6 samples" in whole
    listings = [(tmp_path / folder / "skipped.jsonl").read_bytes() for folder in ("whole", "parts")]
    assert listings[0] == listings[1] and listings[0].count(b"\n") == 3


def test_a_video_that_crashes_the_decoder_is_a_skip(tmp_path, tiny_video, monkeypatch):
    original = ClipReader.read

    def read(reader, number, start):
        if reader.samples[number].key == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(reader, number, start)

    monkeypatch.setattr(ClipReader, "read", read)
    tar = write_tar(tmp_path / "a.tar", [(f"{key}.mp4", tiny_video) for key in "abc"], [meta(key) for key in "abc"])
    report = check_data(CheckConfig(data=configured(path=str(tar), num_workers=2)), tmp_path)
    assert report.samples == 2 and report.skipped["crashed"] == report.clips / 2
