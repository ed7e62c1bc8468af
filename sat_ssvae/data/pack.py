"""The packer: videos and images in, WebDataset shards out.

    report = pack(Path("videos"), Path("shards"), PackConfig(max_short_side=256, segment_seconds=10))

writes NAME-000000.tar, NAME-000001.tar, ... each with KEY.mp4 (or .jpg, .png) and KEY.id per sample, and
beside each tar a NAME-000000.meta.jsonl with one JSON per sample: key, duration (s), fps, frames, width,
height, source, caption. An interrupted run continues with the first unfinished shard; what could not be
used is listed in skipped.jsonl.
"""

import contextlib
import itertools
import json
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from av.video.reformatter import VideoReformatter
from pydantic import Field

from ..config import Config, fingerprint
from ..errors import UserError
from ..progress import progress_bar
from ..storage import atomic, write_text
from .captions import WHERE
from .containers import VIDEO_SUFFIXES, open_video
from .files import VideoError
from .images import IMAGE_SUFFIXES, encode_jpeg, open_image
from .inputs import PackItem, pack_items
from .pictures import upright_rgb
from .skips import Skip, read_skips
from .tars import plain_tar
from .video_io import VideoInfo, encode_h264, nearest_frames, probe, read_clip

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"
_PLAN_FILE = "pack.json"
_HEADER_SLACK = 0.5  # seconds by which a container's duration (its sound) may exceed its pictures

T = TypeVar("T")
R = TypeVar("R")


class PackConfig(Config):
    """How videos become samples."""

    name: str = Field(default="clips", pattern=r"^[A-Za-z0-9_-]+$")
    """Shards are called NAME-000000.tar, NAME-000001.tar, ..."""
    samples_per_shard: int = Field(default=1000, gt=0)
    """Samples in one tar; 1000-2000 suits training on many machines."""
    max_short_side: int | None = Field(default=None, ge=16)
    """Pictures whose short side exceeds this many pixels are scaled down to it (videos are encoded again)."""
    max_fps: float | None = Field(default=None, gt=0)
    """Videos above this rate keep every second, third, ... frame."""
    segment_seconds: float | None = Field(default=None, gt=0)
    """Videos are cut into equal parts of about this length; null: a video is one sample."""
    crf: int = Field(default=18, ge=0, le=51)
    """x264's constant rate factor where a video is encoded again; lower is better and larger."""
    keyframe_seconds: float = Field(default=1.0, gt=0)
    """Seconds between key frames where a video is encoded again; short ones make random access cheap."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0)
    """Videos converted at once. Does not change the result."""
    captions: Literal["find", "none"] = "find"
    """`find` looks where captions usually lie and refuses inputs without any; `none` packs without captions."""


@dataclass(frozen=True)
class PackReport:
    """What is in the output folder, earlier runs' shards included. `skipped` counts by cause."""

    shards: tuple[Path, ...]
    samples: int
    captions: int
    skipped: dict[str, int]


@dataclass(frozen=True)
class _Sample:
    suffix: str
    data: bytes
    meta: dict[str, Any]


def pack(inputs: Path | Sequence[Path | PackItem], output: Path, config: PackConfig) -> PackReport:
    """Convert `inputs` to shards in the folder `output`.

    Args:
        inputs: a folder (searched recursively, captions where `CaptionFinder` looks), a CSV file with the columns path
            and optionally caption, start, end (seconds) and others, which go into the meta file, or a list of these,
            files and `PackItem`s.
        output: made if it does not exist; holds nothing but this pack.
        config: what to change on the way, and how many samples make a shard.

    Raises:
        UserError: no such input, a malformed CSV, nothing usable in it, no caption at all, an output folder that holds
            another pack, no space left.
    """
    items = pack_items(inputs, output)
    if not items:
        raise UserError(f"{inputs}: no video or image in it")
    _refuse_shards(items, inputs)
    items = _captioned(items, inputs, config)
    try:
        output.mkdir(parents=True, exist_ok=True)
        segments = _plan(items, output, config)
        _write_shards(segments, output, config)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror or error}; "
            "finished shards are kept, run the same command again to go on"
        ) from None
    return _report(inputs, output, config)


def _refuse_shards(items: list[PackItem], inputs: object) -> None:
    suffixes = {item.path.suffix.lower() for item in items}
    if ".tar" in suffixes and not suffixes & (VIDEO_SUFFIXES | IMAGE_SUFFIXES):
        raise UserError(f"{inputs}: these are shards already, use them as they are (data.path={inputs})")


def _captioned(items: list[PackItem], inputs: object, config: PackConfig) -> list[PackItem]:
    """The items with their captions, or without any; refused if there is none to find."""
    if config.captions == "none":
        return [replace(item, caption="") for item in items]
    missing = sum(not item.caption for item in items)
    if missing == len(items):
        raise UserError(f"{inputs}: none of {missing} files has a caption {WHERE}; captions=none packs them without")
    if missing:
        logger.warning("%d of %d files have no caption", missing, len(items))
    return items


def _plan(items: list[PackItem], output: Path, config: PackConfig) -> list[PackItem]:
    """The samples to make, in order. Kept on disk, so that a resumed run does not probe again."""
    contents = [
        [
            item.id,
            item.caption,
            item.fields,
            item.start,
            item.end,
            _size(item.path),
        ]
        for item in items
    ]
    ours = fingerprint(config.model_dump(exclude={"workers"}), contents)
    plan_file = output / _PLAN_FILE
    if plan_file.is_file():
        plan = json.loads(plan_file.read_text())
        if plan["fingerprint"] != ours:
            raise UserError(f"{output} holds shards of other inputs or settings: choose an empty folder or delete it")
        return [replace(items[index], start=start, end=end) for index, start, end in plan["segments"]]
    if any(output.glob("*.tar")):
        raise UserError(f"{output} holds shards that this packer did not write: choose an empty folder")
    parts: list[list[Any]] = []
    unusable: list[Skip] = []
    cutting = config.segment_seconds is not None
    with ThreadPoolExecutor(config.workers) as pool, progress_bar(len(items), "probing", "file") as bar:
        cut = _cut if cutting else _whole
        for index, outcome in enumerate(_in_order(pool, lambda item: cut(item, config), items, 4 * config.workers)):
            bar.update()
            if isinstance(outcome, Skip):
                unusable.append(outcome)
            else:
                parts += [[index, start, end] for start, end in outcome]
    write_text(output / SKIPPED_FILE, "".join(skip.to_json(shard=None) for skip in unusable))
    write_text(plan_file, json.dumps({"fingerprint": ours, "segments": parts}))
    return [replace(items[index], start=start, end=end) for index, start, end in parts]


def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_size if path.is_file() else None
    return None


def _whole(item: PackItem, _config: PackConfig) -> list[tuple[float, float | None]] | Skip:
    return [(item.start, item.end)]


def _cut(item: PackItem, config: PackConfig) -> list[tuple[float, float | None]] | Skip:
    """Equal parts of about `segment_seconds`, so that no short remainder is lost."""
    if item.path.suffix.lower() in IMAGE_SUFFIXES:
        return [(0.0, None)]
    try:
        info = probe(item.path)
    except VideoError as error:
        return Skip(item.id, error.cause, str(error))
    end = min(item.end, info.duration) if item.end is not None else info.duration
    if end <= item.start:
        return Skip(item.id, "too short", f"{info.duration:.2f} s, nothing after {item.start:.2f} s")
    count = max(1, round((end - item.start) / (config.segment_seconds or end)))
    if count == 1:
        return [(item.start, item.end)]
    edges = [item.start + (end - item.start) * step / count for step in range(count + 1)]
    return list(itertools.pairwise(edges))


def _write_shards(segments: list[PackItem], output: Path, config: PackConfig) -> None:
    for leftover in output.glob("*.partial"):
        leftover.unlink()
    starts = range(0, len(segments), config.samples_per_shard)
    finished = _finished_shards(segments, output, config)
    todo = [shard for shard in range(len(starts)) if shard not in finished]
    kept = [line for line in read_skips(output / SKIPPED_FILE) if line["shard"] is None or line["shard"] in finished]
    write_text(output / SKIPPED_FILE, "".join(json.dumps(line) + "\n" for line in kept))

    def members(shard: int) -> range:
        return range(starts[shard], min(starts[shard] + config.samples_per_shard, len(segments)))

    indices = [index for shard in todo for index in members(shard)]
    done = len(segments) - len(indices)
    with (
        ThreadPoolExecutor(config.workers) as pool,
        progress_bar(len(segments), f"packing {output.name}", "clip", initial=done) as bar,
    ):
        outcomes = _in_order(pool, lambda index: _convert(segments[index], config), indices, 2 * config.workers)
        for shard in todo:
            _write_shard(shard, zip(members(shard), outcomes, strict=False), output, config, bar.update)


def _write_shard(
    shard: int,
    outcomes: Iterable[tuple[int, "_Sample | Skip"]],
    output: Path,
    config: PackConfig,
    advance: Callable[[], Any],
) -> None:
    """Write one tar and its meta file; the meta file's final name is what marks the shard as finished."""
    tar, meta = _shard_paths(output, config, shard)
    records: list[dict[str, Any]] = []
    skips: list[Skip] = []
    with atomic(tar) as partial:
        with plain_tar(partial) as writer:
            for index, outcome in outcomes:
                advance()
                if isinstance(outcome, Skip):
                    skips.append(outcome)
                    continue
                key = f"{index:08d}"
                identity = outcome.meta["source"].encode("utf-8")
                writer.write({"__key__": key, outcome.suffix: outcome.data, "id": identity})
                records.append({"key": key, **outcome.meta})
        with (output / SKIPPED_FILE).open("a") as listing:
            listing.writelines(skip.to_json(shard=shard) for skip in skips)
        if not records:
            partial.unlink()
    if records:
        write_text(meta, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _convert(segment: PackItem, config: PackConfig) -> _Sample | Skip:
    source = segment.id if segment.start == 0 and segment.end is None else f"{segment.id}@{segment.start:.3f}"
    try:
        if segment.path.suffix.lower() in IMAGE_SUFFIXES:
            suffix, data, info = _convert_image(segment.path, config)
        else:
            suffix, (data, info) = "mp4", _convert_video(segment, config)
    except VideoError as error:
        return Skip(source, error.cause, str(error))
    except OSError as error:  # deleted in the meantime, or on a damaged disk: skip it like other bad files
        return Skip(source, "unreadable file", f"{segment.path} ({error.strerror})")
    caption = {"caption": segment.caption} if segment.caption else {}
    return _Sample(suffix, data, {**segment.fields, **asdict(info), "source": source, **caption})


def _convert_image(path: Path, config: PackConfig) -> tuple[str, bytes, VideoInfo]:
    picture = open_image(path)
    scale = min(1.0, (config.max_short_side or min(picture.size)) / min(picture.size))
    suffix = {".jpeg": "jpg"}.get(path.suffix.lower(), path.suffix.lower().lstrip("."))
    if scale == 1.0 and suffix in ("jpg", "png"):
        data = path.read_bytes()
    else:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        suffix, data = "jpg", encode_jpeg(picture)
    return suffix, data, VideoInfo(0.0, 0.0, 1, picture.height, picture.width)


def _convert_video(segment: PackItem, config: PackConfig) -> tuple[bytes, VideoInfo]:
    """The file as it is if it is an mp4 that needs no change, else re-encoded."""
    info = probe(segment.path)
    scale = min(1.0, (config.max_short_side or min(info.height, info.width)) / min(info.height, info.width))
    slower = max(1, math.ceil(info.fps / (config.max_fps or info.fps) - 1e-3))
    whole = segment.start == 0 and segment.end is None
    if whole and scale == 1.0 and slower == 1 and segment.path.suffix.lower() == ".mp4":
        # Reading the last frame shows that the file is complete.
        read_clip(segment.path, start=info.duration - 1 / info.fps, num_frames=1, fps=info.fps, size=(16, 16))
        return segment.path.read_bytes(), info
    fps = info.fps / slower
    end = info.duration if segment.end is None else min(segment.end, info.duration)
    count = round((end - segment.start) * fps)
    if count < 1:
        raise VideoError("too short", f"{segment.id}: {info.duration:.2f} s, nothing after {segment.start:.2f} s")
    size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    frames = _scaled_frames(segment, count, fps, size)
    data = encode_h264(frames, fps, crf=config.crf, keyframe_interval=config.keyframe_seconds)
    return data, probe(data)


def _scaled_frames(segment: PackItem, count: int, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Upright pictures of (height, width) `size`, `count` of them, or up to `_HEADER_SLACK` seconds fewer."""
    scaler = VideoReformatter()
    with open_video(segment.path) as (container, stream):
        times = (segment.start + step / fps for step in range(count))
        pictures = nearest_frames(container, stream, times, segment.path)
        for step in range(count):
            try:
                picture = next(pictures)
            except VideoError as error:
                missing = (count - step) / fps
                if step and missing < _HEADER_SLACK and error.cause in ("truncated", "too short"):
                    return
                raise
            yield upright_rgb(picture, size, scaler)


def _in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`pool.map` with at most `ahead` results waiting, so that they do not pile up behind a slow item."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _finished_shards(segments: list[PackItem], output: Path, config: PackConfig) -> set[int]:
    """Shards whose tar and meta file exist, or all of whose samples are listed as skipped."""
    size = config.samples_per_shard
    skipped = Counter(line["shard"] for line in read_skips(output / SKIPPED_FILE))
    shards = range(-(-len(segments) // size))
    return {
        shard
        for shard in shards
        if all(path.is_file() for path in _shard_paths(output, config, shard))
        or skipped[shard] == min(size, len(segments) - shard * size)
    }


def _shard_paths(output: Path, config: PackConfig, shard: int) -> tuple[Path, Path]:
    stem = f"{config.name}-{shard:06d}"
    return output / f"{stem}.tar", output / f"{stem}.meta.jsonl"


def _report(inputs: object, output: Path, config: PackConfig) -> PackReport:
    skipped = Counter(line["cause"] for line in read_skips(output / SKIPPED_FILE))
    shards = tuple(sorted(output.glob(f"{config.name}-??????.tar")))
    metas = "".join(shard.with_suffix(".meta.jsonl").read_text(encoding="utf-8") for shard in shards)
    records = [json.loads(line) for line in metas.split("\n") if line]
    samples = len(records)
    causes = ", ".join(f"{count} {cause}" for cause, count in skipped.most_common())
    if not samples:
        raise UserError(f"{inputs}: no usable video or image ({causes}), see {output / SKIPPED_FILE}")
    if skipped:
        logger.warning(
            "left out %d of %d clips (%s), see %s",
            skipped.total(),
            samples + skipped.total(),
            causes,
            output / SKIPPED_FILE,
        )
    return PackReport(shards, samples, sum("caption" in record for record in records), dict(skipped))
