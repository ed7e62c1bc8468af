"""How long a video is: what its header says where that can be right, else what its packets say.

with open_video(source) as (container, stream):
    length = length_of(container, stream, source)
"""

import math
import struct
import uuid
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from .containers import (
    SLACK,
    Start,
    avi_gap,
    avi_step,
    is_in_coding_order,
    is_matroska,
    is_mov,
    open_video,
    origin,
    rate_of,
    start_of,
)
from .endings import is_cut_off, is_joined
from .files import VideoError, name_of
from .timing import LOST, MISSING, Indexed, Times, is_before, looks_even, shown_by_index, shown_times

_ASF = "asf"  # WMV: every stream says when the whole file ends
_ASF_FILE_PROPERTIES = uuid.UUID("8CABDCA1-A947-11CF-8EE4-00C00C205365").bytes_le
_ASF_HEAD = 1 << 16  # bytes in which it is sought
_JOIN = "join them with ffmpeg -f concat or mkvmerge"
_ROUNDING = 1e-3  # seconds; containers tell milliseconds
_SMALL = 1 << 23  # bytes of a file that is read whole in milliseconds
_UNKNOWN_FRAMES = 1 << 30  # what FFmpeg writes into AVI files before it knows; without a seekable output it stays


class Length(NamedTuple):
    """Frames of a video, their average rate, and seconds from the first one to the end of the last."""

    frames: int
    fps: float
    duration: float


def length_of(
    container: InputContainer, stream: VideoStream, source: Path | bytes, start: Start | None = None
) -> Length:
    """How long a video is: by its header if that can be right, else by its packets. Moves the current position.

    Containers give times in milliseconds, count frames that an edit list hides, or say how long the sound lasts.
    Without `start`, it is found in the first packets.

    Raises:
        VideoError: "truncated" where the file's end is missing and its header does not say how long it was; "several
            clocks" where the packets' times start anew.
    """
    if is_cut_off(container.format.name, source):
        raise VideoError("truncated", f"{name_of(source)}: its end is missing")
    joined = is_joined(container.format.name, source)
    if joined and is_matroska(container):
        raise VideoError("several clocks", f"{name_of(source)}: joined of parts with times of their own; {_JOIN}")
    start = start or start_of(source)
    if start.untimed:
        return _count_all(source, start.shown)
    indexed = shown_by_index(container, stream)
    if indexed is not None and start.shown is None:
        return _by_index(indexed, stream, source)
    return _by_header(container, stream, source, start, joined=joined)


def _by_header(
    container: InputContainer, stream: VideoStream, source: Path | bytes, start: Start, *, joined: bool
) -> Length:
    """What the header tells, or its packets where that cannot be right; `joined`: of parts, as far as it is known."""
    step = avi_step(container, stream)
    fps, duration = float(stream.average_rate or 0) / step, told_duration(container, stream, source)
    if _in_fragments(container, stream) and fps > 1.5 * float(stream.guessed_rate or fps):
        fps = 0.0  # from the first of many fragments
    if container.format.name == _ASF and is_in_coding_order(container, stream):
        fps = 0.0  # from times in another order than the pictures'
    frames = 0 if _has_placeholder(stream) else max(0, stream.frames - avi_gap(container, stream)) // step
    if duration and not _own_duration(container, stream) and (len(container.streams) > 1 or not is_matroska(container)):
        duration = _end_of_pictures(container, stream, source) or duration
    hides_some = frames and abs(frames - duration * fps) > 0.1 + 0.001 * fps  # beyond rounding to milliseconds
    # Only the packets tell of joined files, as transport streams often are.
    joined = joined or container.format.name == "mpegts"
    told = Length(frames, fps, duration)
    if not fps or not duration or hides_some or joined or start.shown is not None or _may_vary(told, container, stream):
        header_only = is_matroska(container) or is_mov(container)
        if _in_fragments(container, stream):  # whose steps FFmpeg adds up; none is missing
            told = told._replace(duration=0.0)
        told = _corrected(told, container, stream, shown_times(source, start.shown, header_only=header_only))
    return _consistent(told)


def _by_index(indexed: Indexed, stream: VideoStream, source: Path | bytes) -> Length:
    """Pictures at the header's rate if they keep it, else on average: it may be of other steps."""
    frames, duration = indexed
    fps = float(stream.average_rate or 0)
    if fps and abs(frames / fps - duration) < _ROUNDING:
        return Length(frames, fps, frames / fps)
    missing = round(duration * fps) - frames
    cut_between = not missing and frames != stream.frames  # an edit list hides some, and its edges lie between pictures
    lost = 0 < missing <= LOST and shown_times(source, header_only=True).keeps(fps, 0.0)
    return Length(frames, fps if cut_between or lost else frames / duration, duration)


def _consistent(told: Length) -> Length:
    """With the frames that a duration says where none were counted, and a duration that is theirs where both agree."""
    frames = told.frames or max(1, round(told.duration * told.fps))
    rounded = abs(frames / told.fps - told.duration) < 1 / told.fps
    return Length(frames, told.fps, frames / told.fps if rounded else told.duration)


def _may_vary(told: Length, container: InputContainer, stream: VideoStream) -> bool:
    """Whether pictures may come at another rate than the header's, which tells of the smallest steps or the first ones.

    Only a header that counts pictures is trusted in small files; large ones are not read whole without a reason.
    """
    if container.format.name == "avi":
        return told.frames != len(stream.index_entries)
    if told.frames:
        return False
    return 0 <= container.size <= _SMALL or not looks_even(container, stream, told.fps, told.duration)


def _corrected(told: Length, container: InputContainer, stream: VideoStream, times: Times) -> Length:
    """What a header tells, 0 where it does not, by the times of the pictures."""
    fps, span = told.fps, times.span
    least = min(told.duration, told.frames / fps) if told.frames and fps else told.duration
    if fps and span and span + SLACK < least:  # truncated: readers will notice
        return told._replace(frames=told.frames or round(least * fps))
    last = times.last
    # GIF tells the rate of its first frames; hundredths of a second make a few frames uneven.
    if span and not (fps and times.keeps(fps, 0.0 if container.format.name == "gif" else MISSING)):
        guess = rate_of(stream)  # where nothing is known, one per tick
        known = guess * (stream.time_base or 1) < 1
        last = times.last or (1 / float(guess) if known else span / (len(times.seconds) - 1))
        fps = times.mean_rate(last)
    fps = fps or float(rate_of(stream))
    return Length(times.frames, fps, span + (last or 1 / fps) if span else times.frames / fps)


def told_duration(container: InputContainer, stream: VideoStream, source: Path | bytes) -> float:
    """Seconds according to the header, of the video or of all streams together; 0 if it does not say."""
    if own := _own_duration(container, stream):
        return own
    if _has_placeholder(stream):
        return 0.0
    begin = origin(container, stream)
    if not is_matroska(container):
        begin = max(0.0, begin)
    return max(0.0, _told_end(container, source) - begin)


def _own_duration(container: InputContainer, stream: VideoStream) -> float:
    """Seconds of the video stream alone; 0 if the header has only those of the whole file, or of its last fragment."""
    indexed = shown_by_index(container, stream)
    if indexed is not None:
        return indexed.duration
    if container.format.name == _ASF or _in_fragments(container, stream) or not stream.duration or not stream.time_base:
        return 0.0
    if _has_placeholder(stream):
        return 0.0
    # Of an incomplete AVI file FFmpeg shortens the duration; the number of frames stays.
    ticks = max(stream.duration, stream.frames) if container.format.name == "avi" else stream.duration
    return float((ticks - avi_gap(container, stream)) * stream.time_base)


def _told_end(container: InputContainer, source: Path | bytes) -> float:
    """Seconds at which the last stream ends, by the header: Matroska and FLV store just that, others a duration."""
    if container.format.name == _ASF:
        ends = [float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base]
        return max(ends) if ends else _asf_duration(source)
    stored = is_matroska(container) or container.format.name == "flv"
    begin = 0 if stored else max(0, container.start_time or 0)
    return (begin + (container.duration or 0)) / av.time_base


def _asf_duration(source: Path | bytes) -> float:
    """Seconds by the header of a WMV file, which FFmpeg ignores if the file is smaller than it says; 0 of a stream."""
    if isinstance(source, bytes):
        head = source[:_ASF_HEAD]
    else:
        with source.open("rb") as file:
            head = file.read(_ASF_HEAD)
    place = head.find(_ASF_FILE_PROPERTIES)
    if place < 0 or len(head) < place + 92:
        return 0.0
    played, _, preroll, flags = struct.unpack_from("<QQQI", head, place + 64)
    return 0.0 if flags & 1 else max(0.0, played / 1e7 - preroll / 1e3)


def _in_fragments(container: InputContainer, stream: VideoStream) -> bool:
    """Whether it is an mp4 whose header knows of no pictures; `is_cut_off` tells whether a fragment is missing."""
    return is_mov(container) and not stream.frames


def _has_placeholder(stream: VideoStream) -> bool:
    return stream.frames >= _UNKNOWN_FRAMES


def breaks_off(container: InputContainer, stream: VideoStream, source: Path | bytes, reached: float) -> bool:
    """Whether its end is missing: the header promises more than `reached` seconds, which no other stream explains."""
    if is_cut_off(container.format.name, source):
        return True
    if _in_fragments(container, stream):
        return False
    promised = told_duration(container, stream, source)
    if promised <= reached + SLACK:
        return False
    if _own_duration(container, stream) or len(container.streams) == 1:
        return True
    with open_video(source) as (fresh, _):  # where no key frame has a time, there is no way back to the start
        return max(_ends(fresh).values(), default=0.0) < _told_end(fresh, source) - SLACK


def check_end(source: Path | bytes) -> None:
    """Read the last pictures, undecoded, which shows that the file is complete.

    Raises:
        VideoError: "truncated", or it cannot be read.
    """
    with open_video(source) as (container, stream):
        container.seek(container.duration or 0, any_frame=False)
        end = -math.inf
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise VideoError("truncated", f"{name_of(source)}: it ends inside a frame")
            if packet.size and packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        reached = max(0.0, end - origin(container, stream))
        if breaks_off(container, stream, source, reached):
            raise VideoError("truncated", f"{name_of(source)}: it ends after {reached:.2f} s")


def _end_of_pictures(container: InputContainer, stream: VideoStream, source: Path | bytes) -> float:
    """Seconds from the first frame to the end of the last; 0 if the file breaks off before its end."""
    container.seek(container.duration or 0, any_frame=False)
    ends = _ends(container)
    if stream.index not in ends or max(ends.values()) < _told_end(container, source) - SLACK:  # subtitles last long
        container.seek(0)
        ends = _ends(container)
    if stream.index not in ends or max(ends.values()) < _told_end(container, source) - SLACK:
        return 0.0
    return ends[stream.index] - origin(container, stream)


def _ends(container: InputContainer) -> dict[int, float]:
    """Seconds at which the last packet of each stream ends, from the current position on."""
    ends: dict[int, float] = {}
    for packet in container.demux():
        if packet.size and packet.pts is not None and packet.time_base is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            ends[packet.stream_index] = max(end, ends.get(packet.stream_index, -math.inf))
    return ends


def _count_all(source: Path | bytes, shown: int | None) -> Length:
    """The length of a file with frames without times, at its average rate."""
    with open_video(source) as (container, stream):
        frames = sum(1 for packet in container.demux(stream) if packet.size and not is_before(packet, shown))
        return Length(frames, float(rate_of(stream)), float(frames / rate_of(stream)))
