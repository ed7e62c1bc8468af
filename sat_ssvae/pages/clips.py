"""Clips side by side that play together, as film strips inside the page.

cells = [ClipCell("original", film(original)), ClipCell(legend.label("ssvae"), film(rebuilt), caption="23.1 dB")]
player([ClipRow("Beach", cells)], fps=8)

A clip is one picture: its frames are tiles of a WebP, and the page shows one of them at a time. So all clips of a
player show the same frame, and a printed page shows the middle one.
"""

import base64
import io
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from .blocks import Legend, Text
from .document import joined

_BORDER = 2
"""Pixels of padding around each frame, so that a scaled frame does not show its neighbours; also in style.css."""
_MAX_SIDE = 16_383
"""Of a WebP, in pixels."""
_PAGE = 1256
"""Width of a page's contents in a window of 1300 pixels."""
_GAP = 12
_ROW_GAP = 28
_CELL = (164, 304)
"""Smallest and largest width of a clip on the page, in pixels."""


class Film(NamedTuple):
    """Frames of a clip (or one picture) as one WebP. height, width: of a frame, in pixels."""

    webp: bytes
    height: int
    width: int
    frames: int
    columns: int
    """Frames beside each other in the WebP."""


def film(frames: np.ndarray, *, max_width: int = 320, quality: int = 80) -> Film:
    """Frames to show.

    `frames`: uint8 `T H W 3`, or a single picture `H W 3`. Frames wider than `max_width` pixels are scaled
    down; the browser enlarges smaller ones. `quality`: of the WebP, 1..100.

    Raises:
        ValueError: another shape or type, or too many frames for one picture.
    """
    frames = frames[None] if frames.ndim == 3 else frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"a clip to show is uint8 T H W 3, got {frames.dtype} {frames.shape}")
    count, height, width, _ = frames.shape
    if width > max_width:
        size = max_width, max(1, round(height * max_width / width))
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
        height, width = frames.shape[1:3]
    cell = np.pad(frames, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)), mode="edge")
    columns = min(count, max(1, math.ceil(math.sqrt(count * height / width))))
    rows = -(-count // columns)
    if max(columns * cell.shape[2], rows * cell.shape[1]) > _MAX_SIDE:
        raise ValueError(f"{count} frames of {height}x{width} are too many for one picture")
    sheet = np.zeros((rows * cell.shape[1], columns * cell.shape[2], 3), np.uint8)
    for number, picture in enumerate(cell):
        top, left = number // columns * cell.shape[1], number % columns * cell.shape[2]
        sheet[top : top + cell.shape[1], left : left + cell.shape[2]] = picture
    data = io.BytesIO()
    Image.fromarray(sheet).save(data, "WEBP", quality=quality, method=4)
    return Film(data.getvalue(), height, width, count, columns)


class ClipCell(NamedTuple):
    """One clip of a row. title: above it; caption: below it, e.g. its PSNR."""

    title: Text
    films: Film | Sequence[Film | None]
    """One clip, or one for each step of the player's slider; None where a step has none."""
    caption: Text | Sequence[Text] = ""
    """One text, or one for each step."""
    series: str | None = None
    """The legend's series that this clip belongs to."""
    under: tuple[str, Film, str] | None = None
    """Another version of the clip, with its name and this one's; the pointer moves an edge between the two."""
    below: "ClipCell | None" = None
    """A clip that always stays under this one; it shares the series."""


class ClipRow(NamedTuple):
    """One scene in several versions."""

    title: Text
    cells: Sequence[ClipCell]
    note: Text = ""
    folded: bool = False
    """Shown when its title is clicked."""


def player(
    rows: Sequence[ClipRow],
    *,
    fps: float,
    steps: Sequence[str] = (),
    legend: Legend | None = None,
    label: str = "step",
    width: int | None = None,
) -> Markup:
    """Rows of clips with one play button, one frame slider and, if there are steps, a slider over these.

    In a wide window, short rows are side by side.

    All clips play together, a shorter one rests on its last frame. The last step is shown first; `label` is that of
    the slider over the steps. `legend`: of the page, if cells have a series. `width`: smallest width of a cell, in
    pixels, with one row per line; None: as many cells fit as the longest row has, within limits.

    Raises:
        ValueError: a cell has another number of films than there are steps.
    """
    cells = [one for row in rows for cell in row.cells for one in (cell, cell.below) if one is not None]
    films = [one for cell in cells for one in _films(cell, steps) if one is not None]
    frames = max((one.frames for one in films), default=1)
    poster = frames // 2
    controls = [_PLAY.format(last=frames - 1, at=poster)] if frames > 1 else []
    if len(steps) > 1:
        names = json.dumps(list(steps))
        controls.append(_STEPS.format(label=label, last=len(steps) - 1, names=names, name=steps[-1]))
    bar = Markup('<div class="transport">{}</div>').format(joined(controls)) if controls else Markup()
    body = [_row(row, steps, legend, poster) for row in rows]
    longest = max((len(row.cells) for row in rows), default=1)
    size = f"--cell:{width}px;--row:100%" if width else _sizes(longest, len(rows))
    return _PLAYER.format(" large" if width else "", f"{fps:g}", size, bar, joined(body))


_PLAYER = Markup('<div class="player{}" data-fps="{}" style="{}">{}<div class="rows">{}</div></div>')
_PLAY = Markup(
    '<button class="play" aria-pressed="false">▶ play</button>'
    '<input class="frame" type="range" min="0" max="{last}" value="{at}" aria-label="frame">'
)
_STEPS = Markup(
    "<label><span>{label} <output>{name}</output></span>"
    '<input class="step" type="range" min="0" max="{last}" value="{last}" data-names="{names}"'
    ' aria-label="{label}"></label>'
)
_WIPE = Markup(
    '<div class="wipe">{}{}<div class="edge"></div><span class="left">{}</span><span class="right">{}</span>'
    '<input type="range" min="0" max="100" value="50" aria-label="edge between before and after"></div>'
)


def _films(cell: ClipCell, steps: Sequence[str]) -> list[Film | None]:
    if isinstance(cell.films, Film):
        return [cell.films]
    if len(cell.films) != len(steps):
        raise ValueError(f"{len(cell.films)} films for {len(steps)} steps")
    return list(cell.films)


def _row(row: ClipRow, steps: Sequence[str], legend: Legend | None, poster: int) -> Markup:
    note = Markup("<small>{}</small>").format(row.note) if row.note else ""
    cells = joined([_cell(cell, steps, legend, poster) for cell in row.cells])
    line = Markup('<div class="cells">{}</div>').format(cells)
    if row.folded:
        fold = '<details class="cliprow"><summary>{}{}</summary>{}</details>'
        return Markup(fold).format(row.title, note, line)
    title = Markup("<h3>{}{}</h3>").format(row.title, note) if row.title or row.note else ""
    return Markup('<div class="cliprow">{}{}</div>').format(title, line)


def _sizes(cells: int, rows: int) -> str:
    """Widths of a cell and of a row, such that rows, and the lines that they break into, fill the page."""
    beside = max(1, min(rows, (_PAGE + _ROW_GAP) // (cells * (_CELL[0] + _GAP) + _ROW_GAP)))
    room = (_PAGE + _ROW_GAP) // beside - _ROW_GAP
    fit = (room + _GAP) // (_CELL[0] + _GAP)
    columns = -(-cells // -(-cells // fit))
    cell = max(_CELL[0], min(_CELL[1], (room + _GAP) // columns - _GAP))
    return f"--cell:{cell}px;--row:{columns * (cell + _GAP) - _GAP}px"


def _cell(cell: ClipCell, steps: Sequence[str], legend: Legend | None, poster: int) -> Markup:
    attribute = legend.attribute(cell.series) if legend is not None and cell.series is not None else Markup()
    figures = [_figure(one, steps, poster) for one in (cell, cell.below) if one is not None]
    return Markup('<div class="cell"{}>{}</div>').format(attribute, joined(figures))


def _figure(cell: ClipCell, steps: Sequence[str], poster: int) -> Markup:
    films, last = _films(cell, steps), len(steps) - 1
    some = [one for one in films if one is not None]
    frame = _film(films, poster, last) if len(films) > 1 and some else _film(some[0], poster) if some else ""
    if cell.under is not None:
        name, under, own = cell.under
        if (under.height, under.width, under.frames) != (some[0].height, some[0].width, some[0].frames):
            raise ValueError("only clips of one size and length lie over each other")
        frame = _WIPE.format(_film(under, poster), frame, name, own)
    title = Markup('<figcaption class="above">{}</figcaption>').format(cell.title) if cell.title else ""
    if isinstance(cell.caption, str):
        text: Text = cell.caption
    else:
        shown = Markup('<span data-step="{}"{}>{}</span>')
        hide = [Markup() if number == last else Markup(" hidden") for number in range(len(steps))]
        text = joined([shown.format(number, hide[number], one) for number, one in enumerate(cell.caption)])
    return Markup("<figure>{}{}<figcaption>{}</figcaption></figure>").format(title, frame, text)


def _film(films: Film | Sequence[Film | None], poster: int, shown: int = 0) -> Markup:
    """The view of a film, or of one film per step, all of one size."""
    strips = [films] if isinstance(films, Film) else list(films)
    first = next(one for one in strips if one is not None)
    if any(one is not None and one[1:] != first[1:] for one in strips):
        raise ValueError("the clips of all steps must have one size and length")
    frame = min(poster, first.frames - 1)
    images = [
        Markup('<img{}{} alt="" src="data:image/webp;base64,{}">').format(
            Markup(' data-step="{}"').format(number) if len(strips) > 1 else "",
            Markup(" hidden") if number != shown and len(strips) > 1 else "",
            base64.b64encode(one.webp).decode(),
        )
        for number, one in enumerate(strips)
        if one is not None
    ]
    variables = {
        "w": first.width,
        "h": first.height,
        "columns": first.columns,
        "rows": -(-first.frames // first.columns),
        "x": frame % first.columns,
        "y": frame // first.columns,
    }
    style = ";".join(f"--{name}:{value}" for name, value in variables.items())
    return Markup('<div class="film" data-frames="{}" style="{}">{}</div>').format(first.frames, style, joined(images))
