"""Ordinary mp4 files, described by their header and first picture, in a quarter of the time that other files take.

info = info_by_header(path) or probe(path)
"""

import math
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .containers import MAX_FPS, MAX_SECONDS, SLACK, Start, is_mov, open_video
from .files import VideoError
from .lengths import length_of
from .pictures import displayed

_SLICES = (1, 5)  # types of NAL units that hold pictures, of H.264
_KEPT = 512  # bytes of a slice; its header takes some dozens


@dataclass(frozen=True)
class VideoInfo:
    """What a file's header says. `duration` in seconds, `fps` the average rate, size as displayed."""

    duration: float
    fps: float
    frames: int
    height: int
    width: int


def stored_frames(source: Path | bytes) -> int:
    """How many frames a file says that it stores, also those that an edit list hides; 0 if it does not say.

    Raises:
        VideoError: it is not a video.
    """
    with open_video(source, header_only=True) as (_, stream):
        return stream.frames


def info_by_header(source: Path | bytes) -> VideoInfo | None:
    """What `probe` finds in a video that is complete and whose first picture decodes; None if the header leaves doubts.

    None does not mean that the file is bad: it may be of another format, damaged, in HDR, or only unusual.
    """
    try:
        with open_video(source, header_only=True) as (container, stream):
            if not _is_plain(container, stream) or not _is_complete(container, stream):
                return None
            frame = _first_picture(container, stream)
            if frame is None:
                return None
            inside = stream.codec_context.sample_aspect_ratio
            if inside and inside not in (1, stream.sample_aspect_ratio):
                return None
            container.seek(container.duration or 0)  # an error where the key frames are not those of this file
            shape = displayed(stream, frame, source).shape
            length = length_of(container, stream, source, Start(untimed=False, shown=None))
            if length.duration > MAX_SECONDS or length.fps > MAX_FPS:
                return None
            return VideoInfo(length.duration, length.fps, length.frames, shape.height, shape.width)
    except VideoError:
        return None


def _first_picture(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The first picture; None if it does not decode, or if pictures before it need some from before a cut.

    Of H.264 only the beginning is decoded: FFmpeg refuses what is wrong there, and fills what is missing of the rest.
    """
    packets = container.demux(stream)
    head = list(islice(packets, 2))
    times = [math.inf if packet.pts is None else packet.pts for packet in head if packet.size]
    if not times or not head[0].is_keyframe or math.inf in times or times != sorted(times):
        return None
    extradata = stream.codec_context.extradata or b""
    if stream.codec_context.name != "h264" or extradata[:1] != b"\1":  # else the units have no lengths in front
        return next((frame for packet in chain(head, packets) for frame in packet.decode()), None)
    stream.codec_context.options = {"ec": "0"}  # nothing is filled
    prefix = (extradata[4] & 3) + 1
    every = (_shortened(packet, prefix) for packet in chain(head, packets))
    return next((frame for packet in every for frame in packet.decode()), None)


def _shortened(packet: Packet, prefix: int) -> Packet:
    """A packet of H.264 with the beginnings of its slices; itself if it is damaged or more than pictures.

    `prefix` is the number of bytes of a unit's length, which stands in front of it.
    """
    if not packet.size or packet.is_discard or any(packet.iter_sidedata()):
        return packet
    data, units, place = memoryview(packet), bytearray(), 0
    while place < packet.size:
        start = place + prefix
        length = int.from_bytes(data[place:start], "big")
        place = start + length
        if not length or place > packet.size:
            return packet
        kept = min(length, _KEPT) if data[start] & 31 in _SLICES else length
        units += kept.to_bytes(prefix, "big") + data[start : start + kept]
    shortened = Packet(bytes(units))
    shortened.pts, shortened.dts, shortened.time_base = packet.pts, packet.dts, packet.time_base
    shortened.is_keyframe, shortened.stream = packet.is_keyframe, packet.stream
    return shortened


def _is_plain(container: InputContainer, stream: VideoStream) -> bool:
    """Whether it is an unfragmented mp4 or QuickTime file of one video that states its length and rate."""
    told = bool(stream.frames and stream.duration and stream.average_rate)
    return is_mov(container) and len(container.streams.video) == 1 and told


def _is_complete(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the file has every picture that its header names, up to the end that it states."""
    entries = list(stream.index_entries)
    if len(entries) != stream.frames or max(entry.pos + entry.size for entry in entries) > container.size:
        return False
    span = float((entries[-1].timestamp - entries[0].timestamp) * (stream.time_base or 0))
    return span + 1 / float(stream.average_rate or 1) + SLACK >= float((stream.duration or 0) * (stream.time_base or 0))
