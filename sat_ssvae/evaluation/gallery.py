"""Pages of videos, the worst first: the gallery.html of `reconstruct` and `restore`, and the page of `reward`.

write_gallery(output / "gallery.html", Gallery(title, sentence, rows, ...))
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from ..data.skips import Skip
from ..metrics.intervals import written
from ..pages.blocks import Text, command, details, facts, paragraph, section, table
from ..pages.clips import ClipCell, ClipRow, player
from ..pages.document import document
from ..storage import write_text
from .moments import ERROR_RANGE, FRAMES, RAMP, Exhibit

TITLES = {"psnr": "PSNR, dB", "ssim": "SSIM", "stlpips": "ST-LPIPS", "lpips": "LPIPS", "rfvd": "rFVD"}
"""Of scores."""
ROWS = 1000
"""Rows of the table on a page; the CSV file has all of them."""
_CELL, _NARROW_CELL = 480, 300
"""Width of a clip on a page, in pixels, in a row of two clips and in a row of more."""
_RATE = 4.0
"""Frames per second: moments are slowed down to show where they differ."""


@dataclass(frozen=True)
class Gallery:
    """What a page says and shows."""

    title: str
    meaning: str
    """The result in a sentence or two."""
    rows: Sequence[ClipRow]
    """Of clips, the worst first."""
    order: str
    """How the rows are ordered, and how many of all videos they show."""
    header: Sequence[str]
    numbers: Sequence[Sequence[str]]
    """One row per video, in the order of the clips' rows, as in the CSV file."""
    csv: Path
    command: str
    facts: Mapping[str, Text] = field(default_factory=dict)
    skipped: Sequence[Skip] = ()
    rate: float = _RATE
    """Frames per second of the clips."""


def write_gallery(path: Path, gallery: Gallery) -> Path:
    """Write the page, everything inside; returns its path."""
    shown = gallery.numbers[:ROWS]
    more = f" The first {len(shown):,} of {len(gallery.numbers):,} videos." if len(shown) < len(gallery.numbers) else ""
    most = max((len(row.cells) for row in gallery.rows), default=1)
    skipped = [[skip.source, skip.cause, skip.detail] for skip in gallery.skipped[:ROWS]]
    left_out = details(
        f"{len(gallery.skipped):,} left out", table(["video", "cause", "detail"], skipped, numbers=False)
    )
    blocks = [
        paragraph(Markup("<b>{}</b>").format(gallery.meaning)),
        section(
            "Clips",
            player(gallery.rows, fps=gallery.rate, width=_CELL if most <= 2 else _NARROW_CELL),
            note=gallery.order,
        )
        if gallery.rows
        else "",
        section(
            "All videos",
            table(gallery.header, [list(map(_short, row)) for row in shown], sortable=True),
            note=Markup('Click on a title to sort.{} All numbers: <a href="{}">{}</a>').format(
                more, gallery.csv.name, gallery.csv
            ),
        ),
        section("How it was made", facts(gallery.facts), command(gallery.command), left_out if skipped else ""),
    ]
    write_text(path, document(gallery.title, blocks))
    return path


def _short(text: str) -> str:
    """A number of the CSV file with a readable number of digits; anything else unchanged."""
    return written(float(text), 3, signed=text[0] == "+") if re.fullmatch(r"[+-]?\d+\.\d{3,}", text) else text


def clips_shown(exhibits: Sequence[Exhibit], total: int, *, scored: bool = True) -> str:
    """Text for `Gallery.order`: what the clips are, and how many."""
    if not exhibits:
        return "An earlier run made these videos and kept no pictures; another --output makes them again."
    which = how_many(len(exhibits), total, "lowest" if scored else "first")
    chosen = "with the largest error" if scored else "that were changed most"
    return (
        f"The {FRAMES} consecutive frames of each video {chosen}, before compression, slowed down; "
        f"{'the lowest PSNR first' if scored else 'in no order'}, {which}."
    )


def how_many(shown: int, total: int, which: str) -> str:
    """`all 5`, or `the lowest 24 of 1,000, so that the page stays small`."""
    return f"all {total}" if shown == total else f"the {which} {shown} of {total:,}, so that the page stays small"


def scores_in_words(scores: Mapping[str, float]) -> str:
    """Scores of a video, such as `PSNR 23.10 dB, SSIM 0.712`."""
    titles = {name: title.removesuffix(", dB") for name, title in TITLES.items()}
    units = {"psnr": " dB"}
    return ", ".join(
        f"{titles[name]} {written(value, 2 if name in units else 3)}{units.get(name, '')}"
        for name, value in scores.items()
    )


def error_scale() -> Markup:
    """The colours of error maps with their ends."""
    colours = ", ".join(f"rgb{colour}" for colour in RAMP)
    return Markup('<span class="scale">0 <i style="background: linear-gradient(90deg, {})"></i> {}</span>').format(
        Markup(colours), f"{ERROR_RANGE} grey levels or more"
    )


def wipe(exhibit: Exhibit, under: str, over: str, caption: Text = "") -> ClipCell:
    """Two views of a moment on top of each other, with a slider between them."""
    films = exhibit.films
    return ClipCell(f"{under} | {over}", films[over], caption, under=(under, films[under], over))


def errors(exhibit: Exhibit, view: str) -> ClipCell:
    """The error map of a view."""
    return ClipCell(f"error of {view}", exhibit.errors[view], error_scale())


def still(exhibit: Exhibit, view: str, caption: Text = "") -> ClipCell:
    """A view alone."""
    return ClipCell(view, exhibit.films[view], caption)


def where(exhibit: Exhibit) -> str:
    """Which frames of the video are shown."""
    frames = next(iter(exhibit.films.values())).frames
    return f"frames {exhibit.frame} to {exhibit.frame + frames - 1}"
