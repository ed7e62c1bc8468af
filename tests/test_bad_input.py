"""More than two hundred broken shards and files: each a counted skip or one line, nothing written elsewhere."""

import io
import itertools
import json
import random
import struct
import tarfile

import pytest
import torch
from PIL import Image

from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.shards import fixed_clips, training_batches
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.video_io import write_video
from sat_ssvae.errors import UserError

from .shard_files import small
from .test_video_io import audio_only, with_rotation

GOOD = {"key": "a", "duration": 0.5, "fps": 24, "width": 48, "height": 32}
BOXES = ("mvhd", "tkhd", "mdhd", "stsd", "stts", "stsc", "stsz", "stco", "avcC", "hdlr")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    ramp = torch.linspace(-1, 1, 12).view(1, 12, 1, 1) * torch.linspace(-1, 1, 48)
    write_video(path, ramp.expand(3, 12, 32, 48), fps=24)
    return path.read_bytes()


def tar_of(members):
    """A tar from names (str, or bytes that are no UTF-8) and contents."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def image(kind, mode="RGB", size=(48, 32), **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def broken_media(video, folder):
    """(name, suffix, content)"""
    yield "empty", "mp4", b""
    yield "audio", "mp4", audio_only(folder / "audio.mp4").read_bytes()
    yield "text", "mp4", b"no video\n" * 100
    write_video(folder / "one.mp4", torch.zeros(3, 1, 32, 48), fps=24)
    yield "one frame", "mp4", (folder / "one.mp4").read_bytes()
    yield "tar", "mp4", tar_of([("b.mp4", video)])
    for turns in (1, 2, 3):
        yield f"rotated{turns}", "mp4", with_rotation(video, turns)
    for step in range(1, 31):
        yield f"cut{step}", "mp4", video[: len(video) * step // 31]
    for box, value in itertools.product(BOXES, (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)):
        at = video.index(box.encode()) + 4
        for place in (8, 16):
            header = struct.pack(">I", value)
            yield f"{box}{place}={value:x}", "mp4", video[: at + place] + header + video[at + place + 4 :]
    for seed in range(30):
        noisy = bytearray(video)
        chance = random.Random(seed)
        for _ in range(1 + seed):
            noisy[chance.randrange(len(noisy))] = chance.randrange(256)
        yield f"noise{seed}", "mp4", bytes(noisy)
    for mode in ("RGBA", "LA", "P", "1", "I;16"):
        yield f"image {mode}", "png", image("PNG", mode)
    yield "cmyk", "jpg", image("JPEG", "CMYK")
    yield "one pixel", "png", image("PNG", size=(1, 1))
    jpeg = image("JPEG", size=(64, 64))
    for step in range(1, 11):
        yield f"jpeg cut{step}", "jpg", jpeg[: len(jpeg) * step // 11]


NAMES = (
    "../../a.mp4",
    "/a.mp4",
    "x/../../a.mp4",
    "..\\a.mp4",
    "a\nb.mp4",
    "a" * 300 + ".mp4",
    b"\xff\xfe.mp4",
    ".mp4",
)
LINES = (
    "{",
    "[]",
    "1",
    "null",
    '"a"',
    "{}",
    '{"key": 3}',
    '{"key": null}',
    "\0",
    "[" * 3000,
    "NaN",
    b'{"key": "\xff\xfe"}',  # no UTF-8
    '{"key": "b", "duration": ' + "9" * 5000 + "}",
)


def broken_shards(video):
    """(name, tar, lines of the meta file)"""
    good = json.dumps(GOOD)
    plain = tar_of([("a.mp4", video), ("a.id", b"a")])
    for size in range(0, len(plain), -(-len(plain) // 40)):
        yield f"tar cut at {size}", plain[:size], [good]
        yield f"tar cut at {size}, no meta", plain[:size], None
    yield "no id", tar_of([("a.mp4", video)]), [good]
    yield "a tar in it", tar_of([("a.tar", plain), ("a.mp4", video)]), [good]
    yield "only a tar in it", tar_of([("a.tar", plain)]), [good]
    yield "duplicate member", tar_of([("a.mp4", video), ("a.mp4", b"other")]), [good]
    yield "duplicate key", plain, [good, good, good]
    for name in NAMES:
        yield f"named {name!r}", tar_of([(name, video)]), None
    for key in ("../../a", "/etc/a", "a/../../b", "", "\udcff", "a\0b", "x" * 5000):
        yield f"key {key[:9]!r}", plain, [json.dumps({**GOOD, "key": key})]
    for line in (*LINES, good[:-4]):
        yield f"meta {line[:9]!r}", plain, [line, good]
    for field in ("duration", "fps", "width", "height"):
        for value in (-1, 0, 1e9, 1e300, float("nan"), float("inf"), "24", None, [], True, 10**400):
            yield f"{field}={value!r:.9}", plain, [json.dumps({**GOOD, field: value})]
    for field, value in (("duration", 60), ("fps", 200), ("width", 4000), ("height", 1), ("duration", 0.01)):
        yield f"wrong {field}={value}", plain, [json.dumps({**GOOD, field: value})]


def read(folder, log):
    """What reading gives: clips, skips by cause, and the one line where it ends in an error."""
    config = small(folder, resolution=16, fps=24, drop_black=0.01)
    skips = SkipLog(log, max_share=1)
    clips, message = [], ""
    try:
        clips = list(fixed_clips(config, stride=0.2, skips=skips))
        next(training_batches(config, batch_size=2, seed=0, skips=SkipLog(max_share=1)))
    except UserError as error:
        message = str(error)
    assert "\n" not in message and len(message) < 6000
    assert clips or skips.counts or "no usable" in message
    assert all(clip.video.shape == (3, 5, 16, 16) and clip.video.isfinite().all() for clip in clips)
    return clips, skips.counts, message


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_broken_shards(video, tmp_path):
    usable = {}
    for count, (name, tar, meta) in enumerate(broken_shards(video), start=1):
        case = tmp_path / str(count)
        (case / "in").mkdir(parents=True)
        (case / "in" / "s.tar").write_bytes(tar)
        if meta is not None:
            lines = [line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass") for line in meta]
            (case / "in" / "s.meta.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        before = files_below(tmp_path)
        clips, _, _ = read(case / "in", case / "skipped.jsonl")
        usable[name] = {clip.key for clip in clips}
        assert set(files_below(tmp_path)) - set(before) <= {f"{count}/skipped.jsonl"}, name
    assert count >= 150
    for name in ("no id", "a tar in it", "duplicate member", "duplicate key", "meta '{'", "fps=-1", "width=nan"):
        assert usable[name] == {"s/a"}, name
    for name in ("only a tar in it", "named '../../a.mp4'", "key '../../a'", "wrong height=1"):
        assert usable[name] == set(), name


@pytest.mark.slow
def test_broken_media(video, tmp_path):
    """The same through the packer, whose shards then hold what can be read."""
    outcomes = {}
    for count, (name, suffix, content) in enumerate(broken_media(video, tmp_path), start=1):
        case = tmp_path / str(count)
        (case / "in").mkdir(parents=True)
        (case / "in" / f"a.{suffix}").write_bytes(content)
        (case / "in" / "good.mp4").write_bytes(video)
        clips, causes, _ = read(case / "in", case / "skipped.jsonl")
        outcomes[name] = {clip.key for clip in clips}, set(causes)
        assert "in/good.mp4" in outcomes[name][0], name
        report = pack(case / "in", case / "out", PackConfig(workers=1, max_short_side=24, captions="none"))
        assert 1 <= report.samples <= 2 and report.samples + sum(report.skipped.values()) == 2, name
        assert {path.split("/")[0] for path in files_below(case)} <= {"in", "out", "skipped.jsonl"}, name
    assert count >= 140
    assert outcomes["empty"][1] == {"empty file"} and outcomes["audio"][1] == {"no video stream"}
    for turns in (1, 2, 3):
        assert outcomes[f"rotated{turns}"][0] == {"in/a.mp4", "in/good.mp4"}
    assert "in/a.mp4" not in outcomes["cut15"][0]
