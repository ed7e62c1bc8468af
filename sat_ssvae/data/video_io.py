"""Reading clips out of video files and writing videos, through PyAV.

    info = probe(path)
    clip = read_clip(path, start=1.5, num_frames=17, fps=8, size=(256, 256))     # uint8 C T H W

A source is a path or the file's bytes. Sizes are (height, width) as displayed: rotation and non-square pixels
are applied. Everything wrong with a file is a `VideoError`, whose `cause` is a short category to count by.
"""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from torch import Tensor

from ..errors import UserError
from ..storage import atomic
from .colours import even_frame, to_yuv420p
from .containers import (
    MAX_FPS,
    MAX_SECONDS,
    Start,
    decoded,
    is_in_coding_order,
    is_mov,
    open_video,
    origin,
    rate_of,
    start_of,
)
from .files import VideoError, name_of
from .h264 import add_h264_stream, fine_ticks
from .headers import VideoInfo, info_by_header
from .lengths import breaks_off, length_of
from .pictures import Picture, cover, displayed, upright_rgb

# Seconds by which to seek earlier if a seek lands after the wanted frame (open GOPs, formats without an index).
_STEPS_BACK = (0.0, 1.0, 4.0, 16.0, math.inf)
_BEFORE = 60.0  # seconds before the start; a seek to the start itself misses it in MPEG transport streams
_ROUNDING = 1e-6  # seconds by which number / rate may differ from the frame's time in the file


def probe(source: Path | bytes) -> VideoInfo:
    """Read the header and the first frame.

    Raises:
        VideoError: the file is not a video with at least one frame that decodes.
    """
    info = info_by_header(source)
    if info is not None:
        return info
    with open_video(source) as (container, stream):
        first = next(decoded(container, stream, source), None)
        if first is None:
            raise VideoError("decoding error", f"{name_of(source)}: no frame decodes")
        shape = displayed(stream, first, source).shape
        length = length_of(container, stream, source)
        if length.duration > MAX_SECONDS or length.fps > MAX_FPS:
            detail = f"{length.duration:.0f} s at {length.fps:.0f} frames per second"
            raise VideoError("impossible header", f"{name_of(source)}: {detail}")
        return VideoInfo(length.duration, length.fps, length.frames, shape.height, shape.width)


def read_clip(
    source: Path | bytes,
    *,
    start: float,
    num_frames: int,
    fps: float,
    size: tuple[int, int],
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
    with open_video(source) as (container, stream):
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


def encode_h264(pictures: Iterable[np.ndarray], fps: float, *, crf: int) -> bytes:
    """Encode uint8 RGB pictures `H W C` of one size as an mp4 file, see `encode_frames`."""
    scaler = VideoReformatter()
    frames = (to_yuv420p(even_frame(picture), scaler) for picture in pictures)
    return encode_frames(frames, fps, crf=crf)


def encode_frames(
    frames: Iterable[VideoFrame],
    fps: float,
    *,
    crf: int,
    keyframe_interval: float = 1.0,
    times: Sequence[float] | None = None,
) -> bytes:
    """Encode frames as `to_yuv420p` makes them, of one size, as an mp4 file.

    A key frame every `keyframe_interval` seconds and no B-frames: a reader that seeks decodes little.
    One thread, because the packer runs several encoders. `times`: seconds of the frames where they are not even; the
    first one is shown at 0.
    """
    rate = Fraction(fps).limit_denominator(60000)
    ticks = rate if times is None else Fraction(fine_ticks(rate))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: VideoStream | None = None
        last = -1
        for index, frame in enumerate(frames):
            if stream is None:
                stream = add_h264_stream(
                    container, rate, frame.height, frame.width, crf=crf, keyframe_interval=keyframe_interval
                )
                stream.codec_context.time_base = 1 / ticks
            pts, time_base, kind = frame.pts, frame.time_base, frame.pict_type  # whoever decoded it still needs these
            # Joined files may overlap: two pictures at one time follow each other at once.
            last = max(last + 1, index if times is None else round((times[index] - times[0]) * ticks))
            frame.pts = last
            frame.time_base, frame.pict_type = 1 / ticks, PictureType.NONE
            container.mux(stream.encode(frame))
            frame.pts, frame.pict_type = pts, kind
            if time_base is not None:
                frame.time_base = time_base
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
    step = float(1 / rate_of(stream))
    wanted = iter(times)
    target = next(wanted, None)
    if target is None:
        return
    begin, frames = _frames_from(container, stream, target, source)
    before = after = next(frames, None)
    while target is not None:
        while after is not None and _time(after, begin, source) < target:
            before, after = after, next(frames, None)
        if before is None:
            raise VideoError("decoding error", f"{name_of(source)}: no frame decodes")
        gap = target - _time(before, begin, source)
        # In a screen recording without motion, one frame lasts long.
        shown = max(step, _shown(before))
        if after is None and gap > shown * 1.01:
            last = target - gap
            detail = f"{name_of(source)}: last frame at {last:.3f} s, wanted {target:.3f} s"
            raise VideoError(
                "truncated" if breaks_off(container, stream, source, last + shown) else "too short", detail
            )
        yield displayed(
            stream, before if after is None or gap <= _time(after, begin, source) - target else after, source
        )
        target = next(wanted, None)


def read_frames(source: Path | bytes) -> Iterator["TimedFrame"]:
    """Every frame of a video in its own size and at its own time, decoded one by one.

    A frame of another size than the first is scaled to it. Frames without a time get one by the average rate.

    Raises:
        VideoError: the file is not a video, breaks off with an error, or ends before its header says ("truncated").
    """
    scaler = VideoReformatter()
    with open_video(source) as (container, stream):
        step = 1 / rate_of(stream)
        first: Picture | None = None
        time, shown = Fraction(0), 0.0
        every = _numbered if start_of(source).untimed else decoded
        for index, frame in enumerate(every(container, stream, source)):
            picture = displayed(stream, frame, source)
            first = first or picture
            time = index * step
            if frame.pts is not None and first.frame.pts is not None and frame.time_base is not None:
                time = (frame.pts - first.frame.pts) * frame.time_base
            shown = _shown(frame)
            yield TimedFrame(upright_rgb(picture, first.shape[:2], scaler), time)
        if first is not None and breaks_off(container, stream, source, float(time) + max(float(step), shown)):
            raise VideoError("truncated", f"{name_of(source)}: it ends after {float(time):.2f} s")


class TimedFrame(NamedTuple):
    """uint8 RGB `H W C`, and seconds since the video's first frame."""

    picture: np.ndarray
    time: Fraction


def _frames_from(
    container: InputContainer, stream: VideoStream, target: float, source: Path | bytes
) -> tuple[float, Iterator[VideoFrame]]:
    """Seconds at which the first frame is shown, and the frames from `target` seconds after that or earlier on."""
    # FFmpeg reads all of an mp4's index at once and knows what an edit list hides.
    start = Start(False, None) if is_mov(container) else start_of(source)
    if start.untimed:
        return 0.0, _numbered(container, stream, source)
    begin = origin(container, stream)
    if start.shown is not None and not is_in_coding_order(container, stream):
        begin = float(start.shown * (stream.time_base or 1))
    return begin, _sought(container, stream, target, begin, source)


def _sought(
    container: InputContainer, stream: VideoStream, start: float, begin: float, source: Path | bytes
) -> Iterator[VideoFrame]:
    """Decode from the key frame at or before `start`, or from further back if seeking overshoots."""
    # FFmpeg's index of a GIF ends with the first of joined ones.
    if start <= 0 or is_in_coding_order(container, stream) or container.format.name == "gif":
        yield from decoded(container, stream, source)
        return
    for back in _STEPS_BACK:
        place = start - back if back < start else -_BEFORE
        try:
            container.seek(math.floor((place + begin + _ROUNDING) / (stream.time_base or 1)), stream=stream)
        except av.FFmpegError:
            if place >= 0:
                continue
            container.seek(stream.start_time or 0, stream=stream)  # AVI cannot seek to before its start
        frames = decoded(container, stream, source)
        first = next(frames, None)
        if place < 0 or (first is not None and _time(first, begin, source) <= start + _ROUNDING):
            break
    if first is not None:
        yield first
    yield from frames


def _numbered(container: InputContainer, stream: VideoStream, source: Path | bytes) -> Iterator[VideoFrame]:
    """All frames from the start, with times by the average rate."""
    ticks = 1 / (rate_of(stream) * (stream.time_base or 1))
    for index, frame in enumerate(decoded(container, stream, source)):
        frame.pts = round(index * ticks)
        yield frame


def _time(frame: VideoFrame, begin: float, source: Path | bytes) -> float:
    if frame.pts is None:
        raise VideoError("no timestamps", f"{name_of(source)}: convert it to mp4")
    return frame.time - begin


def _shown(frame: VideoFrame) -> float:
    """Seconds that a frame is shown; 0 if it does not say."""
    return float(frame.duration * (frame.time_base or 0))
