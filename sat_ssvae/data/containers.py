"""Opened video files: which stream is the video, its packets and its pictures.

with open_video(source) as (container, stream):
    for frame in decoded(container, stream, source): ...
"""

import io
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice, pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .animations import readable_webp
from .files import VideoError, check_file, name_of, reason_of

MAX_PIXELS = 1 << 26
MAX_SECONDS = 24 * 3600.0
MAX_FPS = 1000.0
"""Frames beyond 67 megapixels (8K is 33), a day or 1000 frames per second are taken for a damaged header."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob"}
    | {".ts", ".mts", ".m2ts", ".flv", ".f4v", ".wmv", ".asf", ".ogv", ".gif", ".apng", ".mxf", ".ivf", ".avifs"}
    | {".h264", ".264", ".hevc", ".265"}
)

# Demuxers of real video files. Without this list FFmpeg also opens text (as "ansi art") and playlists.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,gif,ivf,mxf,dv,apng,h264,hevc,m4v,mpegvideo"
)
# MPEG program streams stamp few packets and FFmpeg guesses the times between; raw streams have none.
_UNTIMED = frozenset({"mpeg", "h264", "hevc", "m4v", "mpegvideo"})
_USUAL_FPS = Fraction(25)  # for files that do not say
_MAX_REORDERED = 16  # pictures that a picture shown later may precede in a file
_MENDED = "; ffmpeg -i IN -c copy OUT.mp4 gives them one clock"
_MAX_GAP = 10.0  # seconds between pictures of a transport stream, which is sent as it is shown
SLACK = 0.5
"""Seconds by which the duration of a whole file may exceed its last packet."""
_PICTURE_CODECS = frozenset(
    {"mjpeg", "png", "bmp", "gif", "webp"}
)  # of covers, where the container has no mark for them
_STILL_BRANDS = frozenset({"heic", "heix", "mif1", "avif"})
"""Of still pictures in HEIF, of which FFmpeg takes each tile for a video."""
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@contextmanager
def open_video(source: Path | bytes, *, header_only: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened container and its video stream; FFmpeg's errors in the block become `VideoError`s.

    Of several video streams it is the largest, of equal ones one with more than a picture (AVIF has its first one also
    as a still image), then the default one; covers and thumbnails do not count. A stream of JPEG or other pictures
    comes last. With `header_only`, FFmpeg does not look into the streams: what only they tell (the pixel format, the
    order of decoding) is not known before a picture is decoded.
    """
    check_file(source)
    readable: Path | bytes = readable_webp(source, MAX_PIXELS) or source
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    if header_only:
        options["codec_whitelist"] = "none"
    try:
        with av.open(
            # With the protocol in front, a name may contain colons.
            io.BytesIO(readable) if isinstance(readable, bytes) else f"file:{readable}",
            options=options,
            metadata_errors="replace",
        ) as container:
            assert isinstance(container, InputContainer)
            if container.metadata.get("major_brand") in _STILL_BRANDS:
                raise VideoError(
                    "not a video", f"{name_of(source)}: a still picture in HEIF; convert it to JPEG or PNG"
                )
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


def _worth(stream: VideoStream) -> tuple[bool, int, bool, bool]:
    known = stream.codec_context is not None  # else a codec that this FFmpeg does not have
    moving = known and stream.codec_context.name not in _PICTURE_CODECS
    return (
        moving,
        stream.width * stream.height if known else -1,
        stream.frames != 1,
        bool(stream.disposition & Disposition.default),
    )


def decoded(container: InputContainer, stream: VideoStream, source: Path | bytes) -> Iterator[VideoFrame]:
    """The frames from the current position on.

    Ogg stores an empty packet where a picture is shown again: the frame then lasts longer. AVI and WMV store times
    in the order of decoding: frames get them in that order.

    Raises:
        VideoError: "truncated" at a packet of which a part is missing, "several clocks" where times start again.
    """
    held: VideoFrame | None = None
    times: deque[int | None] | None = deque() if is_in_coding_order(container, stream) else None
    for packet in read_packets(container, stream, source):
        if repeats(packet):
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
    begin = (stream.start_time or 0) + avi_gap(container, stream)
    return float(begin * stream.time_base) if stream.time_base else 0.0


def rate_of(stream: VideoStream) -> Fraction:
    """Frames per second on average, as the header has it, or a usual rate."""
    # Of a single picture FFmpeg guesses the rate of fields, where the stream itself may tell that of pictures; of a
    # variable rate, header and stream may tell the ticks of the encoder.
    told = stream.codec_context.framerate if stream.codec_context else None
    if stream.average_rate and stream.average_rate < MAX_FPS:
        return stream.average_rate
    return min((rate for rate in (told, stream.guessed_rate) if rate and rate < MAX_FPS), default=_USUAL_FPS)


class Start(NamedTuple):
    """How a video begins.

    `untimed`: frames have to be counted because not all have times, as those that Matroska stores below 0 seconds.
    `shown`: the first frame's time in the stream's ticks, if the header tells another: pictures before it cannot be
    decoded, as they need some from before a cut, or pictures stored after the first one are shown before it.
    """

    untimed: bool
    shown: int | None


def start_of(source: Path | bytes) -> Start:
    """Look at the first packets of a file, which is opened again."""
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


def is_in_coding_order(container: InputContainer, stream: VideoStream) -> bool:
    """Whether an AVI or WMV file has B-frames: times are right only if it is decoded from its start."""
    return container.format.name in ("avi", "asf") and stream.codec_context.has_b_frames


def avi_step(container: InputContainer, stream: VideoStream) -> int:
    """Ticks between the pictures of an AVI file, as the first ones have it; 1 in other files."""
    return math.gcd(*_avi_steps(container, stream)) or 1


def avi_gap(container: InputContainer, stream: VideoStream) -> int:
    """Ticks by which AVI's second picture is late: FFmpeg writes empty chunks where the sound begins earlier.

    None where later ones come unevenly, too: each picture that was left out is an empty chunk.
    """
    steps = _avi_steps(container, stream)
    if not steps or len(set(steps)) > 1:
        return 0
    first, second = (entry.timestamp for entry in islice(stream.index_entries, 2))
    return max(0, second - first - steps[0])


def _avi_steps(container: InputContainer, stream: VideoStream) -> list[int]:
    """Ticks between the first pictures of an AVI file, from the second on."""
    if container.format.name != "avi":
        return []
    return [after - before for before, after in pairwise(e.timestamp for e in islice(stream.index_entries, 1, 18))]


def read_packets(container: InputContainer, stream: VideoStream, source: Path | bytes) -> Iterator[Packet]:
    """The packets from the current position on; AVI's first one directly before the second."""
    gap = avi_gap(container, stream)
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
            # Concatenated files: the times of the next one start again, or anywhere later.
            if (packet.is_keyframe and time < last - SLACK) or time > last + gap_allowed:
                raise VideoError(
                    "several clocks", f"{name_of(source)}: joined of parts with times of their own{advice}"
                )
            last = last if last > time else time
        yield packet


def repeats(packet: Packet) -> bool:
    """Whether a packet shows the picture before it again; the one without a time ends the stream."""
    return not packet.size and packet.pts is not None


def is_mov(container: InputContainer) -> bool:
    """Whether it is mp4, QuickTime or one of their relatives."""
    return container.format.name.startswith("mov,")


def is_matroska(container: InputContainer) -> bool:
    """Whether it is Matroska or WebM."""
    return container.format.name.startswith("matroska")
