"""From a video or image file to a sample of a shard: cut, scaled, slowed down, or as it is."""

import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import av
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from pydantic import Field

from ..addresses import TRIES, download, is_address
from ..errors import UserError
from ..jobs.settings import JobConfig
from .containers import SLACK, open_video, start_of
from .files import VideoError, reason_of
from .headers import VideoInfo, info_by_header
from .images import encode_jpeg, is_image, open_image
from .inputs import PackItem
from .lengths import check_end
from .pictures import upright_yuv420p
from .skips import Skip
from .timing import Times, shown_times
from .video_io import encode_frames, nearest_frames, probe

_BURST = 24  # frames
_BURST_BYTES = 16 << 20


class PackConfig(JobConfig):
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
    """Processes of this machine that convert; on a cluster, one per core. Does not change the result."""
    captions: Literal["find", "none"] = "find"
    """`find` looks where captions are usually kept and refuses inputs without any; `none` packs without captions."""


class InputFiles:
    """Local files with what is at addresses. What is known of the last one stays for the next part of that video."""

    def __init__(self) -> None:
        self._last: tuple[Path, TemporaryDirectory[str]] | None = None
        self._times: tuple[tuple[Path, int, int], Times] | None = None

    def times(self, path: Path) -> Times:
        """When a local file's pictures are shown: all of it is read for that, once for all of its parts.

        No times of a file whose pictures are counted, since FFmpeg guesses those that it does not tell.
        """
        status = path.stat()
        key = path, status.st_size, status.st_mtime_ns
        if self._times is None or self._times[0] != key:
            start = start_of(path)
            times = shown_times(path, start.shown)
            self._times = key, times._replace(seconds=times.seconds[:0]) if start.untimed else times
        return self._times[1]

    @contextlib.contextmanager
    def local(self, path: Path) -> Iterator[Path]:
        """A local file for the time of the block; a local path is that itself.

        Raises:
            VideoError: "missing file".
            UserError: it cannot be fetched for another reason, which a later run may not meet.
        """
        if not is_address(path):
            yield path
            return
        if self._last is None or self._last[0] != path:
            if self._last is not None:
                self._last[1].cleanup()
                self._last = None
            scratch = TemporaryDirectory(prefix="sat-ssvae-")
            try:
                download(str(path), Path(scratch.name, path.name), tries=TRIES)
            except FileNotFoundError as error:
                raise VideoError("missing file", f"{path} ({error.strerror})") from None
            except OSError as error:
                raise UserError(
                    f"{path}: {error.strerror or error}; finished shards are kept, run the same command again to go on"
                ) from None
            self._last = path, scratch
        local = Path(self._last[1].name, path.name)
        try:
            yield local
        except VideoError as error:
            detail = str(error).removeprefix(f"{error.cause}: ")
            raise VideoError(error.cause, detail.replace(str(local), str(path))) from None


@dataclass(frozen=True)
class PackedSample:
    """A sample of a shard."""

    suffix: str
    data: bytes | Path
    """The file's bytes, or the file that has them."""
    meta: dict[str, Any]
    """Its line of the meta file, but for the key."""


def cut(item: PackItem, config: PackConfig, inputs: InputFiles) -> list[tuple[float, float | None]] | Skip:
    """(start, end) of equal parts of about `segment_seconds`, so that no short remainder is lost."""
    try:
        with inputs.local(item.path) as path:
            if is_image(path.suffix, path):
                return [(0.0, None)]
            info = probe(path)
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


def convert(segment: PackItem, config: PackConfig, inputs: InputFiles) -> PackedSample | Skip:
    """The sample that a file or a part of it becomes, or why it becomes none."""
    source = segment.source
    try:
        with inputs.local(segment.path) as path:
            if is_image(path.suffix, path):
                suffix, data, info = _convert_image(path, config)
            else:
                suffix, (data, info) = "mp4", _convert_video(replace(segment, path=path), config, inputs)
            if path != segment.path and isinstance(data, Path):
                data = data.read_bytes()
    except VideoError as error:
        return Skip(source, error.cause, str(error))
    except av.FFmpegError as error:  # of the encoder
        return Skip(source, "encoding error", f"{segment.path} ({reason_of(error)})")
    except OSError as error:  # deleted in the meantime, or on a damaged disk: skip it like other bad files
        return Skip(source, "unreadable file", f"{segment.path} ({error.strerror})")
    caption = {"caption": segment.caption} if segment.caption else {}
    return PackedSample(suffix, data, {**segment.fields, **asdict(info), "source": source, **caption})


def _convert_image(path: Path, config: PackConfig) -> tuple[str, bytes | Path, VideoInfo]:
    picture = open_image(path)
    scale = min(1.0, (config.max_short_side or min(picture.size)) / min(picture.size))
    suffix = {".jpeg": "jpg", ".jfif": "jpg"}.get(path.suffix.lower(), path.suffix.lower().lstrip("."))
    if scale == 1.0 and suffix in ("jpg", "png"):
        data: bytes | Path = path
    else:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        suffix, data = "jpg", encode_jpeg(picture)
    return suffix, data, VideoInfo(0.0, 0.0, 1, picture.height, picture.width)


def _convert_video(segment: PackItem, config: PackConfig, inputs: InputFiles) -> tuple[bytes | Path, VideoInfo]:
    """The file as it is if it is an mp4 that needs no change, else re-encoded."""
    known = info_by_header(segment.path)
    info = known or probe(segment.path)
    scale = min(1.0, (config.max_short_side or min(info.height, info.width)) / min(info.height, info.width))
    slower = max(1, math.ceil(info.fps / (config.max_fps or info.fps) - 1e-3))
    whole = segment.start == 0 and segment.end is None
    if whole and scale == 1.0 and slower == 1 and segment.path.suffix.lower() == ".mp4":
        if known is None:
            check_end(segment.path)
        return segment.path, info
    fps = info.fps / slower
    end = info.duration if segment.end is None else min(segment.end, info.duration)
    # Of a variable frame rate, even steps would lose some pictures and repeat others.
    shown = inputs.times(segment.path) if slower == 1 else None
    own = None if shown is None or shown.is_even(info.fps) else (shown.seconds - shown.seconds[0]).tolist()
    if own is None:  # on pictures: half a step beside them, rounding would repeat some and leave out others
        times = [step / info.fps for step in range(round(segment.start * info.fps), round(end * info.fps), slower)]
    else:
        times = [time for time in own if segment.start <= time < end]
    if not times:
        raise VideoError("too short", f"{segment.id}: {info.duration:.2f} s, nothing after {segment.start:.2f} s")
    size = info.height, info.width
    if scale < 1:  # to even sizes, which H.264 needs, upwards
        size = 2 * math.ceil(round(info.height * scale) / 2) or 2, 2 * math.ceil(round(info.width * scale) / 2) or 2
    frames = in_bursts(_scaled_frames(segment, times, fps, size), size)
    data = encode_frames(frames, fps, crf=config.crf, keyframe_interval=config.keyframe_seconds, times=own and times)
    return data, probe(data)


def in_bursts(frames: Iterator[VideoFrame], size: tuple[int, int]) -> Iterator[VideoFrame]:
    """The same frames, of (height, width) `size`, of which some are made before the first of them is used.

    Decoder and encoder taking turns after each frame drive each other out of the processor's caches.
    """
    count = max(1, min(_BURST, _BURST_BYTES // (size[0] * size[1] * 3 // 2)))
    while burst := deque(itertools.islice(frames, count)):
        while burst:  # each is freed when it has been used
            yield burst.popleft()


def _scaled_frames(
    segment: PackItem, times: Sequence[float], fps: float, size: tuple[int, int]
) -> Iterator[VideoFrame]:
    """Frames to encode, of (height, width) `size`, one for each of `times`, or up to `SLACK` seconds fewer."""
    scalers = VideoReformatter(), VideoReformatter()
    with open_video(segment.path) as (container, stream):
        pictures = nearest_frames(container, stream, times, segment.path)
        for step, time in enumerate(times):
            try:
                picture = next(pictures)
            except VideoError as error:
                missing = times[-1] - time + 1 / fps
                if step and missing < SLACK and error.cause in ("truncated", "too short"):
                    return
                raise
            yield upright_yuv420p(picture, size, *scalers)
