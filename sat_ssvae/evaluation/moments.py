"""The worst moment of each video, for the page of the worst videos; bounded in size on disk and on the page.

    kept = Moments(output / "gallery")
    moment = WorstMoment("original", ["reconstruction"])
    moment.add({"original": frames, "reconstruction": others})      # uint8 T H W 3, any number of frames at a time
    kept.add("a_red_car", psnr, moment)
    kept.exhibits()                                                 # worst first

A moment is the run of consecutive frames that a page shows, before any compression. Only those of the worst videos are
kept.
"""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from ..pages.clips import Film, film
from ..storage import write_text

MOMENTS = "gallery"
"""Folder beside a command's other output."""
ORIGINAL = "original"
"""Name of the view that others should match."""
SHOWN = 24
"""Videos whose moments are kept, at most."""
PAGE_BYTES = 24 << 20
"""Bytes of moments on a page, which shows fewer if they need more; noise compresses badly."""
FRAMES = 8
"""Frames in a moment."""
WIDTH = 480
"""Pixels that wider frames are scaled down to."""
ERROR_RANGE = 32
"""Grey levels at the bright end of an error map."""
RAMP = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))
"""Colours of an error map from 0 to `ERROR_RANGE`, at equal distances."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_EVERY = 4
"""Stride, in height and width, of the pixels that are compared to find the worst moment."""


@dataclass(frozen=True, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
class Exhibit:
    """A video's moment: number of its first frame, and films by view; errors: error maps of the judged views."""

    name: str
    frame: int
    films: dict[str, Film]
    errors: dict[str, Film]


_EXHIBIT = TypeAdapter(Exhibit)


class WorstMoment:
    """Finds the consecutive frames of a video in which one view differs most from another.

    `reference` is the view to differ from. The first of the `judged` views decides on the moment; each gets an
    error map if the reference is the ground truth (`scored`).
    """

    def __init__(self, reference: str, judged: Sequence[str], *, scored: bool = True) -> None:
        self.reference, self.judged, self.scored = reference, list(judged), scored
        self.first, self.views = 0, dict[str, np.ndarray]()
        self._error, self._seen = -1.0, 0
        self._waiting: list[Mapping[str, np.ndarray]] = []

    def add(self, views: Mapping[str, np.ndarray]) -> None:
        """The next frames of each view, uint8 `T H W 3`."""
        for number in range(len(views[self.reference])):
            self._waiting.append({name: clip[number] for name, clip in views.items()})
            if len(self._waiting) == FRAMES:
                self._judge()

    def exhibit(self, name: str) -> Exhibit:
        """The films of the worst frames; a shorter video is shown whole."""
        if self._waiting and not self.views:
            self._judge()
        films = {view: film(clip, max_width=WIDTH) for view, clip in self.views.items()}
        reference = self.views[self.reference]
        judged = self.judged if self.scored else []
        errors = {view: film(error_map(reference, self.views[view]), max_width=WIDTH) for view in judged}
        return Exhibit(name, self.first, films, errors)

    def _judge(self) -> None:
        names = (self.reference, self.judged[0])
        sparse = [
            np.stack([one[name][::_EVERY, ::_EVERY] for one in self._waiting]).astype(np.float32) for name in names
        ]
        error = float(np.square(sparse[0] - sparse[1]).mean())
        if error > self._error:
            self._error, self.first = error, self._seen
            self.views = {name: np.stack([one[name] for one in self._waiting]) for name in self._waiting[0]}
        self._seen += len(self._waiting)
        self._waiting = []


def error_map(original: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Absolute difference of luma (BT.601) in the colours of `RAMP`, uint8 like the clips `T H W 3`."""
    luma = np.abs(original.astype(np.float32) @ _LUMA - other.astype(np.float32) @ _LUMA)
    places = np.linspace(0, ERROR_RANGE, len(RAMP))
    colours = [np.interp(luma, places, channel) for channel in zip(*RAMP, strict=True)]
    return np.stack(colours, -1).round().astype(np.uint8)


class Moments:
    """The moments of the videos with the lowest scores, one file each in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[tuple[float, int, str]] = []  # the lowest score first
        self._count = 0

    def add(self, name: str, score: float, moment: WorstMoment | None = None) -> None:
        """Rank a video; its moment is written if it is among the worst.

        A higher `score` is better. `moment` is None for a video of an earlier run, whose moment is on disk.
        """
        bisect.insort(self._kept, (score, self._count, name))
        self._count += 1
        dropped = self._kept.pop()[2] if len(self._kept) > SHOWN else None
        if dropped is not None:
            self._path(dropped).unlink(missing_ok=True)
        if moment is not None and dropped != name:
            write_text(self._path(name), _EXHIBIT.dump_json(moment.exhibit(name)).decode())

    def exhibits(self) -> list[Exhibit]:
        """The kept moments, the lowest score first."""
        paths = [path for _, _, name in self._kept if (path := self._path(name)).is_file()]
        ends = itertools.accumulate(path.stat().st_size for path in paths)
        shown = [
            path for number, (path, end) in enumerate(zip(paths, ends, strict=True)) if not number or end < PAGE_BYTES
        ]
        return [_EXHIBIT.validate_json(path.read_bytes()) for path in shown]

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
