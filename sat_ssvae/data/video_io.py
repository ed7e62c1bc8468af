"""Reading clips out of video files and writing videos, through PyAV.

    info = probe(path)
    clip = read_clip(path, start=1.5, num_frames=17, fps=8, size=(256, 256))     # uint8 C T H W

A source is a path or the file's bytes. Sizes are (height, width) as displayed: rotation and non-square pixels
are applied. Everything wrong with a file is a `VideoError`, whose `cause` is a short category to count by.
"""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from ..errors import UserError
from ..storage import atomic
from .files import VideoError, check_file, name_of, reason_of
from .h264 import (
    ACCURATE_ROUNDING,
    BICUBIC,
    FULL_CHROMA,
    UNSPECIFIED,
    add_h264_stream,
    default_matrix,
    even_frame,
    to_yuv420p,
)

MAX_PIXELS = 1 << 26
MAX_SECONDS = 24 * 3600.0
MAX_FPS = 1000.0
"""Frames beyond 67 megapixels (8K is 33), a day or 1000 frames per second are taken for a damaged header."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif"}
)

# Demuxers of real video files. Without this list FFmpeg also opens text (as "ansi art") and playlists.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif,ivf,h264,hevc,m4v,mpegvideo"
# MPEG program streams stamp few packets: after a seek FFmpeg guesses the times, from the start it counts.
_COUNT_FROM_START = "mpeg"
_USUAL_FPS = 25.0  # where a file does not tell
# Seconds by which to seek earlier where the frame before a key frame, or any in formats without an index, is missed.
_STEPS_BACK = (0.0, 1.0, 4.0, 16.0, math.inf)
_BEFORE = 60.0  # seconds before the start; a seek to the start itself misses it in MPEG transport streams
_ROUNDING = 1e-6  # seconds by which number / rate may miss the time that the file gives that frame


@dataclass(frozen=True)
class VideoInfo:
    """What a file's header says. `duration` in seconds, `fps` the average rate, size as displayed."""

    duration: float
    fps: float
    frames: int
    height: int
    width: int


def probe(source: Path | bytes) -> VideoInfo:
    """Read the header and the first frame.

    Raises:
        VideoError: the file is not a video with at least one frame that decodes.
    """
    with open_video(source) as (container, stream):
        first = next(_decode(container, stream), None)
        if first is None:
            raise VideoError("decoding error", f"{name_of(source)}: no frame decodes")
        shape = _displayed(stream, first, source)
        fps, duration, frames = float(stream.average_rate or 0), _duration(container, stream), stream.frames
        if not fps or not duration or container.format.name == _COUNT_FROM_START:
            frames, span = _count(container, stream)
            if not fps and span:
                fps = (frames - 1) / span
            fps = fps or float(stream.guessed_rate or 0) or _USUAL_FPS
            if container.format.name == _COUNT_FROM_START:
                duration = frames / fps
            duration = duration or (span + 1 / fps if span else frames / fps)
        if duration > MAX_SECONDS or fps > MAX_FPS:
            detail = f"{duration:.0f} s at {fps:.0f} frames per second"
            raise VideoError("impossible header", f"{name_of(source)}: {detail}")
        return VideoInfo(duration, fps, frames or max(1, round(duration * fps)), shape.height, shape.width)


def read_clip(
    source: Path | bytes,
    *,
    start: float,
    num_frames: int,
    fps: float,
    size: tuple[int, int],
    threads: int = 1,
) -> Tensor:
    """Frames nearest to `start + k / fps` seconds, scaled to cover `size`, cropped at the centre.

    The decoder seeks to the key frame before `start`; nothing after the last frame is decoded.

    Returns:
        uint8, shape `C T H W` with (H, W) = `size`.

    Raises:
        VideoError: the file is unusable, or ends before the last frame ("too short").
    """
    times = [start + step / fps for step in range(num_frames)]
    scaler = VideoReformatter()
    with open_video(source, threads) as (container, stream):
        frames = [cover(picture, size, scaler) for picture in nearest_frames(container, stream, times, source)]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()


def to_unit_range(video: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]."""
    return video.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(video: Tensor) -> Tensor:
    """Floats in [-1, 1] (clamped) to uint8 0..255; the inverse of `to_unit_range`."""
    return video.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def write_video(path: Path, video: Tensor, fps: float) -> None:
    """Write `C T H W` in [-1, 1] as H.264 (yuv420p, crf 12).

    An odd height or width is made even by repeating the last row or column. The file appears under its name
    only when it is complete.

    Raises:
        UserError: the file cannot be written (no such folder, disk full).
    """
    pictures = to_uint8(video).permute(1, 2, 3, 0).cpu().numpy()
    data = encode_h264(pictures, fps, crf=12)
    try:
        with atomic(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def encode_h264(pictures: Iterable[np.ndarray], fps: float, *, crf: int, keyframe_interval: float = 1.0) -> bytes:
    """Encode uint8 RGB pictures `H W C` of one size as an mp4 file.

    A key frame every `keyframe_interval` seconds and no B-frames: a reader that seeks decodes little.
    One thread, because the packer runs several encoders.
    """
    rate = Fraction(fps).limit_denominator(60000)
    file = io.BytesIO()
    scaler = VideoReformatter()
    with av.open(file, "w", format="mp4") as container:
        stream: VideoStream | None = None
        for index, frame in enumerate(map(even_frame, pictures)):
            stream = stream or add_h264_stream(
                container, rate, frame.height, frame.width, crf=crf, keyframe_interval=keyframe_interval
            )
            yuv = to_yuv420p(frame, scaler)
            yuv.pts, yuv.time_base = index, 1 / rate
            container.mux(stream.encode(yuv))
        if stream is None:
            raise VideoError("too short", "no frame to write")
        container.mux(stream.encode(None))
    return file.getvalue()


def nearest_frames(
    container: InputContainer, stream: VideoStream, times: Iterable[float], source: Path | bytes
) -> Iterator["Picture"]:
    """For each of the ascending `times` (seconds from the first frame), the decoded frame nearest to it.

    Raises:
        VideoError: "too short" when a time lies more than one frame after the last frame and after its end,
            "truncated" when the header promised that frame.
    """
    origin = _origin(stream)
    step = float(1 / (stream.average_rate or _USUAL_FPS))
    wanted = iter(times)
    target = next(wanted, None)
    if target is None:
        return
    frames = _frames_from(container, stream, target, origin, source)
    before = after = next(frames, None)
    while target is not None:
        while after is not None and _time(after, origin, source) < target:
            before, after = after, next(frames, None)
        if before is None:
            raise VideoError("decoding error", f"{name_of(source)}: no frame decodes")
        gap = target - _time(before, origin, source)
        # A screen that stands still is one frame that lasts long.
        if after is None and gap > max(step, float(before.duration * (before.time_base or 0))) * 1.01:
            promised = _duration(container, stream) >= target
            detail = f"{name_of(source)}: last frame at {target - gap:.2f} s, wanted {target:.2f} s"
            raise VideoError("truncated" if promised else "too short", detail)
        best = before if after is None or gap <= _time(after, origin, source) - target else after
        yield Picture(best, _displayed(stream, best, source))
        target = next(wanted, None)


def read_frames(source: Path | bytes) -> Iterator["TimedFrame"]:
    """Every frame of a video in its own size and at its own time, decoded one by one.

    A frame of another size than the first is scaled to it. Frames without a time get one by the average rate.

    Raises:
        VideoError: the file is not a video, or breaks off with an error.
    """
    scaler = VideoReformatter()
    with open_video(source) as (container, stream):
        step = 1 / (stream.average_rate or Fraction(_USUAL_FPS))
        first: VideoFrame | None = None
        for index, frame in enumerate(_decode(container, stream)):
            first = first or frame
            shape = _displayed(stream, first, source)
            time = index * step
            if frame.pts is not None and first.pts is not None and frame.time_base is not None:
                time = (frame.pts - first.pts) * frame.time_base
            yield TimedFrame(upright_rgb(Picture(frame, shape), shape[:2], scaler), time)


class TimedFrame(NamedTuple):
    """uint8 RGB `H W C`, and seconds since the video's first frame."""

    picture: np.ndarray
    time: Fraction


class Shape(NamedTuple):
    """Size as displayed, and the counter-clockwise quarter turns that make a stored frame upright."""

    height: int
    width: int
    turns: int


class Picture(NamedTuple):
    """A decoded frame and its displayed shape."""

    frame: VideoFrame
    shape: Shape


def cover(picture: Picture, size: tuple[int, int], scaler: VideoReformatter) -> np.ndarray:
    """Scale a frame so that it covers `size`, crop at the centre: uint8 RGB, shape `H W C`."""
    height, width = size
    scale = max(height / picture.shape.height, width / picture.shape.width)
    covering = (
        max(height, round(picture.shape.height * scale)),
        max(width, round(picture.shape.width * scale)),
    )
    if covering[0] * covering[1] > MAX_PIXELS:
        detail = f"{picture.shape.height}x{picture.shape.width} pixels to cover {height}x{width}"
        raise VideoError("impossible header", detail)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return upright_rgb(picture, covering, scaler)[top : top + height, left : left + width]


def upright_rgb(picture: Picture, size: tuple[int, int], scaler: VideoReformatter) -> np.ndarray:
    """Scale a frame to the displayed (height, width) `size`, turned upright: uint8 RGB, shape `H W C`."""
    frame, turns = picture.frame, picture.shape.turns
    if frame.colorspace == UNSPECIFIED:
        frame.colorspace = default_matrix(frame.height)
    height, width = size[::-1] if turns % 2 else size
    flags = BICUBIC | ACCURATE_ROUNDING | FULL_CHROMA
    rgb = scaler.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1)
    return np.rot90(rgb.to_ndarray(), turns)


@contextmanager
def open_video(source: Path | bytes, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened container and its first video stream; FFmpeg's errors in the block become `VideoError`s."""
    check_file(source)
    try:
        with av.open(
            io.BytesIO(source) if isinstance(source, bytes) else str(source),
            options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        ) as container:
            assert isinstance(container, InputContainer)
            if not container.streams.video:
                raise VideoError("no video stream", name_of(source))
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError("not a video", f"{name_of(source)}: unknown codec")
            if stream.width * stream.height > MAX_PIXELS:
                raise VideoError("too large", f"{name_of(source)}: {stream.height}x{stream.width} pixels")
            stream.codec_context.thread_count = threads
            yield container, stream
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: another stream begins in the middle
        cause = "not a video" if isinstance(error, av.InvalidDataError) else "decoding error"
        raise VideoError(cause, f"{name_of(source)} ({reason_of(error)})") from None


def _frames_from(
    container: InputContainer, stream: VideoStream, start: float, origin: float, source: Path | bytes
) -> Iterator[VideoFrame]:
    """Decode from the key frame at or before `start`, or from a place before it where seeking overshoots."""
    if start <= 0 or container.format.name == _COUNT_FROM_START:
        yield from _decode(container, stream)
        return
    for back in _STEPS_BACK:
        place = start - back if back < start else -_BEFORE
        try:
            container.seek(math.floor((place + origin + _ROUNDING) / (stream.time_base or 1)), stream=stream)
        except av.FFmpegError:
            if place >= 0:
                raise
            container.seek(stream.start_time or 0, stream=stream)  # AVI has no places before its start
        frames = _decode(container, stream)
        first = next(frames, None)
        if place < 0 or (first is not None and _time(first, origin, source) <= start + _ROUNDING):
            break
    if first is not None:
        yield first
    yield from frames


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    for frame in container.decode(stream):
        if frame.width and frame.height:
            yield frame


def _time(frame: VideoFrame, origin: float, source: Path | bytes) -> float:
    if frame.pts is None:
        raise VideoError("no timestamps", f"{name_of(source)}: convert it to mp4")
    return frame.time - origin


def _origin(stream: VideoStream) -> float:
    """Seconds at which a file says that the stream begins."""
    return float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0


def _duration(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    duration = container.duration / av.time_base if container.duration else 0.0
    if container.format.name.startswith("matroska"):  # it tells when the last stream ends, not how long it lasts
        return max(0.0, duration - max(0.0, _origin(stream)))
    return duration


def _count(container: InputContainer, stream: VideoStream) -> tuple[int, float]:
    """The number of frames, and the seconds from the first to the last; 0 where the packets do not tell."""
    container.seek(0)
    frames, first, last = 0, math.inf, -math.inf
    for packet in container.demux(stream):
        frames += packet.size > 0
        if packet.size and packet.pts is not None and stream.time_base:
            time = float(packet.pts * stream.time_base)
            first, last = min(first, time), max(last, time)
    told = last > first and container.format.name != _COUNT_FROM_START
    return frames, last - first if told else 0.0


def _displayed(stream: VideoStream, frame: VideoFrame, source: Path | bytes) -> Shape:
    aspect = float(stream.sample_aspect_ratio or 1)
    height, width = frame.height, max(1, round(frame.width * aspect))
    if height * width > MAX_PIXELS:
        raise VideoError("impossible header", f"{name_of(source)}: {height}x{width} pixels as displayed")
    turns = round(frame.rotation / 90) % 4
    return Shape(width, height, turns) if turns % 2 else Shape(height, width, turns)
