"""Opened video files: which stream is the video, and what they say of its length.

with open_video(source) as (container, stream):
    length = length_of(container, stream, source)
"""

import io
import math
import struct
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice, pairwise, takewhile
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .files import VideoError, check_file, name_of, reason_of

MAX_PIXELS = 1 << 26
MAX_SECONDS = 24 * 3600.0
MAX_FPS = 1000.0
"""Frames beyond 67 megapixels (8K is 33), a day or 1000 frames per second are taken for a damaged header."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob"}
    | {".ts", ".mts", ".m2ts", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".gif", ".apng", ".mxf", ".ivf"}
    | {".h264", ".264", ".hevc", ".265"}
)

# Demuxers of real video files. Without this list FFmpeg also opens text (as "ansi art") and playlists.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif,ivf,mxf,dv,apng,h264,hevc,m4v,mpegvideo"
)
# MPEG program streams stamp few packets and FFmpeg guesses the times between; raw streams have none.
_UNTIMED = frozenset({"mpeg", "h264", "hevc", "m4v", "mpegvideo"})
_ASF = "asf"  # WMV: every stream says when the whole file ends
_ASF_FILE_PROPERTIES = uuid.UUID("8CABDCA1-A947-11CF-8EE4-00C00C205365").bytes_le
_ASF_HEAD = 1 << 16  # bytes in which it is sought
_USUAL_FPS = Fraction(25)  # for files that do not say
_MAX_REORDERED = 16  # pictures that a picture shown later may precede in a file
_UNKNOWN_FRAMES = 1 << 30  # what FFmpeg writes into AVI files before it knows; without a seekable output it stays
_MENDED = "; ffmpeg -i IN -c copy OUT.mp4 gives them one clock"
_MAX_GAP = 10.0  # seconds between pictures of a transport stream, which is sent as it is shown
SLACK = 0.5
"""Seconds by which the duration of a whole file may exceed its last packet."""
_PICTURE_CODECS = frozenset(
    {"mjpeg", "png", "bmp", "gif", "webp"}
)  # of covers, where the container has no mark for them
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


class Length(NamedTuple):
    """Frames of a video, their average rate, and seconds from the first one to the end of the last."""

    frames: int
    fps: float
    duration: float


@contextmanager
def open_video(source: Path | bytes, *, header_only: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened container and its video stream; FFmpeg's errors in the block become `VideoError`s.

    Of several video streams it is the largest, of equal ones the default one; covers and thumbnails do not count. A
    stream of JPEG or other pictures comes last. With `header_only`, FFmpeg does not look into the streams: what only
    they tell (the pixel format, the order of decoding) is not known before a picture is decoded.
    """
    check_file(source)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    if header_only:
        options["codec_whitelist"] = "none"
    try:
        with av.open(
            # With the protocol in front, a name may contain colons.
            io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}",
            options=options,
            metadata_errors="replace",
        ) as container:
            assert isinstance(container, InputContainer)
            streams = [stream for stream in container.streams.video if not stream.disposition & _STILL]
            if not streams:
                raise VideoError("no video stream", name_of(source))
            stream = max(streams, key=_worth)
            if stream.codec_context is None:
                raise VideoError("not a video", f"{name_of(source)}: unknown codec")
            if stream.width * stream.height > MAX_PIXELS:
                raise VideoError("too large", f"{name_of(source)}: {stream.height}x{stream.width} pixels")
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: another stream begins in the middle
        unknown = isinstance(error, (av.InvalidDataError, av.ArgumentError))
        cause = "not a video" if unknown else "decoding error"
        raise VideoError(cause, f"{name_of(source)} ({reason_of(error)})") from None


def _worth(stream: VideoStream) -> tuple[bool, int, bool]:
    known = stream.codec_context is not None  # else a codec that this FFmpeg does not have
    moving = known and stream.codec_context.name not in _PICTURE_CODECS
    return moving, stream.width * stream.height if known else -1, bool(stream.disposition & Disposition.default)


def decoded(container: InputContainer, stream: VideoStream, source: Path | bytes) -> Iterator[VideoFrame]:
    """The frames from the current position on.

    Ogg stores an empty packet where a picture is shown again: the frame then lasts longer. AVI stores the order of
    decoding instead of times: frames get the times in that order.

    Raises:
        VideoError: "truncated" at a packet of which a part is missing, "several clocks" where times start anew.
    """
    held: VideoFrame | None = None
    times: deque[int | None] | None = deque() if is_reordered_avi(container, stream) else None
    for packet in _packets(container, stream, source):
        if _repeats(packet):
            if held is not None:
                held.duration += packet.duration or 0
            continue
        if times is not None and packet.size:
            times.append(packet.dts)
        for frame in _pictures(packet, container, source):
            if times:
                frame.pts = times.popleft()
            if not frame.width or not frame.height:
                continue
            if held is not None:
                yield held
            held = frame
            if container.format.name != "ogg":
                yield held
                held = None
    if held is not None:
        yield held


def _pictures(packet: Packet, container: InputContainer, source: Path | bytes) -> list[VideoFrame]:
    try:
        pictures = packet.decode()
        # Decoders fill what is missing of a picture. Transport streams mark those with losses on the way, too.
        cut_off = packet.is_corrupt and container.format.name != "mpegts"
    except (av.InvalidDataError, av.ArgumentError):
        if not packet.is_corrupt:
            raise
        cut_off = True
    if cut_off:
        raise VideoError("truncated", f"{name_of(source)}: it ends inside a frame")
    return pictures


def origin(container: InputContainer, stream: VideoStream) -> float:
    """Seconds at which a file says that the stream begins."""
    begin = (stream.start_time or 0) + _gap(container, stream)
    return float(begin * stream.time_base) if stream.time_base else 0.0


def rate_of(stream: VideoStream) -> Fraction:
    """Frames per second on average, as the header has it, or a usual rate."""
    return stream.average_rate or stream.guessed_rate or _USUAL_FPS


class Start(NamedTuple):
    """How a video begins.

    `untimed`: frames have to be counted because not all have times, as those that Matroska stores below 0 seconds.
    `shown`: the first frame's time in the stream's ticks, if the header tells another: pictures before it cannot be
    decoded, as they need some from before a cut, or pictures stored after the first one are shown before it.
    """

    untimed: bool
    shown: int | None


def start_of(source: Path | bytes) -> Start:
    """Look at the first packets of a file, which is opened anew."""
    with open_video(source) as (container, stream):
        untimed = container.format.name in _UNTIMED
        packets = container.demux(stream)
        head = list(islice((packet for packet in packets if packet.size), _MAX_REORDERED + 1))
        key = head[0].pts if head else None
        if key is None:
            return Start(untimed or bool(head), None)
        times = (packet.pts for packet in head[1:])
        before = [time for time in takewhile(lambda time: time is not None and time < key, times) if time is not None]
        if not before:
            return Start(untimed, None)
        shown = next((frame.pts for packet in chain(head, packets) for frame in packet.decode()), None)
        # FFmpeg takes the first picture of a Matroska file for its beginning, also if it is shown after others.
        unlike_told = shown is not None and (min(before) < shown or shown < (stream.start_time or 0))
        return Start(untimed, shown if unlike_told else None)


def is_reordered_avi(container: InputContainer, stream: VideoStream) -> bool:
    """Whether an AVI file has B-frames: times are right only if it is decoded from its start."""
    return container.format.name == "avi" and stream.codec_context.has_b_frames


def _avi_step(container: InputContainer, stream: VideoStream) -> int:
    """Ticks between the pictures of an AVI file, as most of the first ones have it; 1 in other files."""
    if container.format.name != "avi":
        return 1
    times = [entry.timestamp for entry in islice(stream.index_entries, 1, 18)]
    return max(1, int(median_low([after - before for before, after in pairwise(times)] or [1])))


def _gap(container: InputContainer, stream: VideoStream) -> int:
    """Ticks by which AVI's second picture is late: FFmpeg writes empty chunks where the sound begins earlier."""
    if container.format.name != "avi" or len(stream.index_entries) < 3:
        return 0
    first, second = (entry.timestamp for entry in islice(stream.index_entries, 2))
    return max(0, second - first - _avi_step(container, stream))


def _packets(container: InputContainer, stream: VideoStream, source: Path | bytes) -> Iterator[Packet]:
    """The packets from the current position on; AVI's first one directly before the second."""
    gap = _gap(container, stream)
    first = stream.index_entries[0].timestamp if gap else None
    timed = stream.time_base is not None and container.format.name not in _UNTIMED
    gap_allowed, advice = math.inf, ""
    if container.format.name == "mpegts":
        gap_allowed, advice = max(_MAX_GAP, 2 / float(rate_of(stream))), _MENDED
    last = math.nan  # in seconds; NaN is neither larger nor smaller than a time
    for packet in container.demux(stream):
        if gap and packet.size and packet.dts is not None and packet.dts == first:
            packet.pts = packet.dts = packet.dts + gap
        # What an edit list hides of mp4 begins before what was shown last.
        if timed and packet.size and packet.pts is not None and not packet.is_discard:
            time = float(packet.pts * (stream.time_base or 0))
            # Files put one behind the other: the next one's times begin anew, or at any later one.
            if (packet.is_keyframe and time < last - SLACK) or time > last + gap_allowed:
                raise VideoError(
                    "several clocks", f"{name_of(source)}: joined of parts with times of their own{advice}"
                )
            last = last if last > time else time
        yield packet


def _repeats(packet: Packet) -> bool:
    """Whether a packet shows the picture before it again; the one without a time ends the stream."""
    return not packet.size and packet.pts is not None


def length_of(
    container: InputContainer, stream: VideoStream, source: Path | bytes, start: Start | None = None
) -> Length:
    """How long a video is: by its header if that can be right, else by its packets. Moves the current position.

    Containers give times in milliseconds, count frames that an edit list hides, or say how long the sound lasts.
    Without `start`, it is found in the first packets.
    """
    start = start or start_of(source)
    if start.untimed:
        return _count_all(source, start.shown)
    step = _avi_step(container, stream)
    fps, duration = float(stream.average_rate or 0) / step, told_duration(container, stream, source)
    if is_mov(container) and not stream.frames and fps > 1.5 * float(stream.guessed_rate or fps):
        fps = 0.0  # from the first of many fragments
    frames = 0 if _has_placeholder(stream) else max(0, stream.frames - _gap(container, stream)) // step
    if (
        duration
        and not _own_duration(container, stream)
        and (len(container.streams) > 1 or not _is_matroska(container))
    ):
        duration = _end_of_pictures(container, stream, source) or duration
    hides_some = frames and abs(frames - duration * fps) > 0.1 + 0.001 * fps  # beyond rounding to milliseconds
    joined = container.format.name == "mpegts"  # often of parts, which only their packets tell
    if not fps or not duration or hides_some or joined or start.shown is not None:
        counted, span, last = _count(source, start.shown)
        told = min(duration, frames / fps) if frames and fps else duration
        if fps and span and span + SLACK < told:  # truncated: readers will notice
            return Length(frames or round(told * fps), fps, duration)
        frames = counted
        if is_reordered_avi(container, stream):
            span = 0.0  # its times are those of decoding
        # GIF tells the rate of its first frames; hundredths of a second make a few frames uneven.
        if span and (not fps or (container.format.name == "gif" and abs(frames - 1 - span * fps) > 0.4)):
            fps = (frames - 1) / span
        fps = fps or float(rate_of(stream))
        duration = span + (last or 1 / fps) if span else frames / fps
    frames = frames or max(1, round(duration * fps))
    if abs(frames / fps - duration) < 1 / fps:
        duration = frames / fps
    return Length(frames, fps, duration)


def told_duration(container: InputContainer, stream: VideoStream, source: Path | bytes) -> float:
    """Seconds according to the header, of the video or of all streams together; 0 if it does not say."""
    if own := _own_duration(container, stream):
        return own
    if _has_placeholder(stream):
        return 0.0
    begin = origin(container, stream)
    if not _is_matroska(container):
        begin = max(0.0, begin)
    return max(0.0, _told_end(container, source) - begin)


def _own_duration(container: InputContainer, stream: VideoStream) -> float:
    """Seconds of the video stream alone; 0 if the header has only those of the whole file, or of its last fragment."""
    fragmented = is_mov(container) and not stream.frames
    if container.format.name == _ASF or fragmented or not stream.duration or not stream.time_base:
        return 0.0
    if _has_placeholder(stream):
        return 0.0
    # Of an incomplete AVI file FFmpeg shortens the duration; the number of frames stays.
    ticks = max(stream.duration, stream.frames) if container.format.name == "avi" else stream.duration
    return float((ticks - _gap(container, stream)) * stream.time_base)


def _told_end(container: InputContainer, source: Path | bytes) -> float:
    """Seconds at which the last stream ends, by the header: Matroska stores just that, other formats a duration."""
    if container.format.name == _ASF:
        ends = [float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base]
        return max(ends) if ends else _asf_duration(source)
    begin = 0 if _is_matroska(container) else max(0, container.start_time or 0)
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


def is_mov(container: InputContainer) -> bool:
    """Whether it is mp4, QuickTime or one of their relatives."""
    return container.format.name.startswith("mov,")


def _has_placeholder(stream: VideoStream) -> bool:
    return stream.frames >= _UNKNOWN_FRAMES


def _is_matroska(container: InputContainer) -> bool:
    return container.format.name.startswith("matroska")


def breaks_off(container: InputContainer, stream: VideoStream, source: Path | bytes, reached: float) -> bool:
    """Whether the header promises more than the pictures up to `reached` seconds, which no other stream explains."""
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
        frames = sum(1 for packet in container.demux(stream) if packet.size and not _is_before(packet, shown))
        return Length(frames, float(rate_of(stream)), float(frames / rate_of(stream)))


def _is_before(packet: Packet, shown: int | None) -> bool:
    return shown is not None and packet.pts is not None and packet.pts < shown and not packet.is_keyframe


def _count(source: Path | bytes, shown: int | None) -> tuple[int, float, float]:
    """The number of frames shown, and the seconds from the first to the last and that the last is shown.

    The seconds are 0 if the packets do not say. The file is opened anew: not every container can go back to its start.
    """
    frames, first, last, lasts = 0, math.inf, -math.inf, 0.0
    with open_video(source) as (container, stream):
        for packet in _packets(container, stream, source):
            # Outside of an edit list; the end.
            if packet.is_discard or not (packet.size or _repeats(packet)) or _is_before(packet, shown):
                continue
            frames += 1
            if packet.pts is not None and stream.time_base:
                time = float(packet.pts * stream.time_base)
                if time > last:
                    last, lasts = time, float((packet.duration or 0) * stream.time_base)
                first = min(first, time)
    return (frames, last - first, lasts) if last > first else (frames, 0.0, 0.0)
