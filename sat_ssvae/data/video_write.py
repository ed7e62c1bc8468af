"""Writing a long video frame by frame, in constant memory, with the sound of the video that it was made from.

with VideoWriter(path, fps=info.fps, sound=source) as writer:
for frame in read_frames(source):
writer.write(frame.picture, frame.time)
"""

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..errors import UserError
from ..storage import atomic
from .colours import even_frame, to_yuv420p
from .containers import open_video
from .files import VideoError
from .h264 import add_h264_stream, fine_ticks

CRF = 12
_COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
"""Sound that mp4 takes as it is; any other is encoded again, as AAC."""


class VideoWriter:
    """An mp4 file (H.264, crf 12) that appears under its name when it is complete.

    Args:
        path: where it will be.
        fps: the frame rate that the file states; each frame has its own time.
        sound: a video whose first audio track is taken over, from the time of its first frame on; it may have none.
    """

    def __init__(self, path: Path, fps: float, sound: Path | bytes | None = None) -> None:
        self.path = path
        self._rate = Fraction(fps).limit_denominator(60_000)
        self._ticks = fine_ticks(self._rate)
        self._sound_source = sound
        self._open = ExitStack()
        self._scaler = VideoReformatter()
        self._video: VideoStream | None = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        if not self.path.parent.is_dir():
            raise UserError(f"cannot write {self.path}: there is no such folder")
        partial = self._open.enter_context(atomic(self.path))
        self._container: OutputContainer = self._open.enter_context(av.open(f"file:{partial}", "w", format="mp4"))
        return self

    def write(self, picture: np.ndarray, time: Fraction) -> None:
        """Append a frame: uint8 RGB `H W C`, of one size in the whole video, shown from `time` seconds on."""
        frame = even_frame(picture)
        if self._video is None:
            self._video = add_h264_stream(self._container, self._rate, frame.height, frame.width, crf=CRF)
            self._video.codec_context.time_base = Fraction(1, self._ticks)
            self._sound = self._packets_of_sound()
            self._next_sound = next(self._sound, None)
        yuv = to_yuv420p(frame, self._scaler)
        self._last = max(self._last + 1, round(time * self._ticks))
        yuv.pts, yuv.time_base = self._last, Fraction(1, self._ticks)
        self._container.mux(self._video.encode(yuv))
        self._mux_sound(until=float(time))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._open:  # an error in this block removes the file
            if error is not None:
                raise error
            if self._video is None:
                raise VideoError("too short", f"{self.path}: no frame to write")
            self._container.mux(self._video.encode(None))
            self._mux_sound(until=float("inf"))

    def _mux_sound(self, until: float) -> None:
        """Interleave: sound never runs ahead of the pictures, nor far behind them."""
        while self._next_sound is not None and _seconds(self._next_sound) <= until:
            self._container.mux(self._next_sound)
            self._next_sound = next(self._sound, None)

    def _packets_of_sound(self) -> Iterator[Packet]:
        """Packets for the mp4, times counted from the first frame of the source; none if it has no sound."""
        if self._sound_source is None:
            return iter(())
        container, picture = self._open.enter_context(open_video(self._sound_source))
        if not container.streams.audio:
            return iter(())
        sound = container.streams.audio[0]
        origin = (picture.start_time or 0) * (picture.time_base or Fraction(1))
        if sound.codec_context.name in _COPIED:
            return _copied(container.demux(sound), self._container.add_stream_from_template(sound), origin)
        return _encoded(
            container.decode(sound),
            self._container.add_stream("aac", rate=sound.rate, layout=sound.layout.name),
            origin,
        )


def _copied(packets: Iterator[Packet], target: AudioStream, origin: Fraction) -> Iterator[Packet]:
    for packet in packets:
        if packet.pts is None or packet.dts is None:  # the empty packet at the end
            continue
        shift = round(origin / packet.time_base)
        packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
        yield packet


def _encoded(frames: Iterator[av.AudioFrame], target: AudioStream, origin: Fraction) -> Iterator[Packet]:
    for frame in frames:
        if frame.pts is not None and frame.time_base is not None:
            frame.pts -= round(origin / frame.time_base)
        yield from target.encode(frame)
    yield from target.encode(None)


def _seconds(packet: Packet) -> float:
    return float((packet.pts or 0) * packet.time_base)
