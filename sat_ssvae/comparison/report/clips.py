"""The clips of a report: a row per held-out clip, the original beside what every arm makes of it."""

import math
from collections.abc import Sequence

from markupsafe import Markup
from torch import Tensor

from ...pages.blocks import Legend
from ...pages.clips import ClipCell, ClipRow, Film, film, player
from ...spacing import evenly_spaced
from .pictures import Pictures

_STEPS = 6
"""Most evaluations that the slider can show."""
_PIXELS = 40e6
"""Of all films together, which keeps the page at a few MB: a pixel takes about 0.1 byte."""
_WIDTHS = (160, 320)
_FEW_ARMS = 4


def clip_player(pictures: Pictures, legend: Legend) -> Markup:
    """All clips, with one play button and one slider over the transformer's steps; nothing without clips."""
    arms = [name for name in legend.names if pictures.reconstructions.get(name) or pictures.samples.get(name)]
    if not arms or not pictures.originals:
        return Markup()
    steps = sorted({step for name in arms for step in pictures.samples.get(name, {})})
    steps = [steps[number] for number in evenly_spaced(len(steps), _STEPS)]
    films = _Films(pictures, len(pictures.originals) * (1 + len(arms) * (1 + len(steps))))
    rows = [_row(pictures, number, arms, steps, legend, films) for number in range(len(pictures.originals))]
    return player(
        rows, fps=pictures.fps, steps=[f"{step:,}" for step in steps], legend=legend, label="samples after step"
    )


class _Films:
    """Makes clips into films of a width at which all of them fit on the page."""

    def __init__(self, pictures: Pictures, count: int) -> None:
        frames, height, width, _ = pictures.originals[0].shape
        fits = math.sqrt(_PIXELS / (count * frames * height / width))
        self._width = int(min(max(fits, _WIDTHS[0]), _WIDTHS[1]))

    def __call__(self, clip: Tensor) -> Film:
        return film(clip.numpy(), max_width=self._width)


def _row(
    pictures: Pictures, number: int, arms: Sequence[str], steps: Sequence[int], legend: Legend, films: _Films
) -> ClipRow:
    cells = [ClipCell("original", films(pictures.originals[number]), "held-out clip")]
    for name in arms:
        title, sample = legend.label(name), None
        stepwise = pictures.samples.get(name, {})
        made = [stepwise[step][number] if number < len(stepwise.get(step, ())) else None for step in steps]
        if any(clip is not None for clip in made):
            sample = ClipCell("", [films(clip) if clip is not None else None for clip in made], "sample", name)
        clips = pictures.reconstructions.get(name, ())
        if number < len(clips):
            scores = pictures.psnr.get(name, ())
            text = f"reconstruction, {scores[number]:.2f} dB" if number < len(scores) else "reconstruction"
            cells.append(ClipCell(title, films(clips[number]), text, name, below=sample))
        elif sample is not None:
            cells.append(sample._replace(title=title))
    names = pictures.names
    named = clip_name(names[number]) if number < len(names) else f"Clip {number + 1}"
    return ClipRow(named, cells, folded=len(arms) > _FEW_ARMS and number > 0)


def clip_name(key: str) -> str:
    """A clip's key `VIDEO@START` for people."""
    video, _, start = key.rpartition("@")
    return f"{video}, from {start} s" if video else key
