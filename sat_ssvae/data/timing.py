"""When a video's pictures are shown: whether they come evenly at a rate, and how many there are.

shown = shown_times(path)
if not shown.keeps(24.0): ...       # a variable frame rate
"""

import math
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .containers import is_in_coding_order, is_matroska, is_mov, open_video, rate_of, read_packets, repeats

MISSING = 0.01
"""Share of the pictures that may be missing from an even rate."""
LOST = 8
"""Pictures that a cut may lose."""
_LOST_IN = 2  # places where it does
_WINDOW = 17  # pictures that are looked at in each of these places
_PLACES = 5
_REORDERED = 16  # pictures read behind them, some of which may be shown before


class Times(NamedTuple):
    """Times of pictures: `seconds`, ascending, of those that have one; `frames`, how many there are in all.

    `last`: seconds that the last one is shown, 0 if the file does not say.
    """

    frames: int
    seconds: np.ndarray
    last: float

    @property
    def span(self) -> float:
        """Seconds from the first to the last; 0 if the times do not say."""
        return float(self.seconds[-1] - self.seconds[0]) if len(self.seconds) else 0.0

    def keeps(self, fps: float, slack: float = MISSING) -> bool:
        """Whether the pictures come at this rate; a share of `slack` may be missing, or a few in one or two cuts."""
        steps = np.diff(self.seconds) * fps
        missing, rounding = float(steps.sum()) - len(steps), 0.4 + 0.001 * fps  # containers round to milliseconds
        if abs(missing) <= max(rounding, slack * len(steps)):
            return True
        lost = steps[np.abs(steps - 1) > 0.5] - 1
        return bool(len(lost) <= _LOST_IN and lost.sum() <= LOST and abs(missing - lost.sum()) <= rounding)

    def mean_rate(self, last: float) -> float:
        """Pictures per second if the last one is shown for `last` seconds; at least two must have times."""
        count = len(self.seconds)
        rate = (count - 1) / self.span
        return rate if self.is_even(rate) else count / (self.span + last)

    def is_even(self, fps: float) -> bool:
        """Whether each picture is the nearest to a multiple of `1 / fps` seconds, so that even steps find every one."""
        if not self.span or len(self.seconds) < self.frames:
            return True
        return bool((np.abs((self.seconds - self.seconds[0]) * fps - np.arange(len(self.seconds))) < 0.5).all())


def shown_times(source: Path | bytes, shown: int | None = None, *, header_only: bool = False) -> Times:
    """The times of all pictures that are shown, read without decoding; `shown`: see `Start`.

    The file is opened again: not every container can go back to its start. `header_only`: see `open_video`.
    """
    frames, times, last, lasts = 0, [], -math.inf, 0.0
    with open_video(source, header_only=header_only) as (container, stream):
        by_decoding = is_in_coding_order(container, stream)
        for packet in read_packets(container, stream, source):
            if packet.is_discard or not (packet.size or repeats(packet)):  # outside of an edit list; the end
                continue
            before = is_before(packet, shown)
            frames += not before
            ticks = packet.dts if by_decoding else packet.pts
            # Pictures are given the decoding times in order, including the times of pictures that cannot be decoded.
            if ticks is not None and stream.time_base and (by_decoding or not before):
                time = float(ticks * stream.time_base)
                shown_for = float((packet.duration or 0) * stream.time_base)
                if time > last:
                    last, lasts = time, shown_for
                elif is_mov(container):  # whose steps are those to the pictures that are decoded next
                    lasts = min(lasts, shown_for)
                times.append(time)
    return Times(frames, np.sort(np.array(times))[:frames], lasts)


class Indexed(NamedTuple):
    """Pictures that an mp4 shows: how many there are, and seconds from the first one to the end of the last."""

    frames: int
    duration: float


def shown_by_index(container: InputContainer, stream: VideoStream) -> Indexed | None:
    """What the index and the last packets of an mp4 tell, None if they are missing. Moves the current position.

    The header adds up the steps between pictures in the order of decoding, which is not that of their times where they
    come unevenly, and counts what an edit list hides.
    """
    shown = [entry.timestamp for entry in stream.index_entries if not entry.is_discard] if is_mov(container) else []
    if not stream.frames or not shown or not stream.time_base:  # in fragments, it has only the first one's
        return None
    tail = shown[-_REORDERED - 1 :]
    container.seek(tail[0], stream=stream, any_frame=True)
    every = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
    ends = list(islice((packet for packet in every if packet.dts is not None and packet.dts >= tail[0]), len(tail)))
    if len(ends) < len(tail) or any(packet.is_corrupt or packet.pts is None for packet in ends):
        return None
    # The last one shown may have the step to a picture that is decoded next, the last one decoded that to a hidden one.
    last_shown = max(ends, key=lambda packet: packet.pts or 0)
    lasts = min(last_shown.duration or 0, ends[-1].duration or 0) or 1 / (rate_of(stream) * stream.time_base)
    end = (last_shown.pts or 0) + lasts
    return Indexed(len(shown), float((end - (stream.start_time or 0)) * stream.time_base))


def is_before(packet: Packet, shown: int | None) -> bool:
    """Whether a packet's picture lies before the first one that is shown, see `Start`, and cannot be decoded."""
    return shown is not None and packet.pts is not None and packet.pts < shown and not packet.is_keyframe


def looks_even(container: InputContainer, stream: VideoStream, fps: float, duration: float) -> bool:
    """Whether pictures in several places of a file come at this rate. Moves the current position.

    Reading all of a large file to find out would take long. Where seeking is slow, only its beginning counts.
    """
    places = _PLACES if is_matroska(container) or is_mov(container) else 1
    for place in range(places):
        container.seek(int(place / places * duration * 1e6))
        packets = (packet for packet in container.demux(stream) if packet.size and packet.pts is not None)
        ticks = sorted(packet.pts or 0 for packet in islice(packets, _WINDOW + _REORDERED))
        steps = [float((after - before) * (stream.time_base or 0)) * fps for before, after in pairwise(ticks[:_WINDOW])]
        if any(abs(step - 1) > 0.5 for step in steps):
            return False
    return True
