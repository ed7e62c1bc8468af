"""Headings, badges, boxes, commands, facts, tables and the matrix of arms and measures.

legend = Legend(["stock", "ssvae"])
section("Reconstruction", paragraph("Held-out clips."), table(["arm", "PSNR"], [[legend.label("stock"), "23.1"]]))

A `tone` colours by meaning: good, bad, warn (a caveat) or neutral.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup

from .document import joined

Tone = Literal["good", "bad", "warn", "neutral"]
Text = Markup | str
COLOURS = 8
"""Series colours of style.css; further series repeat them."""


class Legend:
    """Names and colours of the series that a page compares: arms, autoencoders, losses.

    A bar of toggles shows or hides a series everywhere on the page: its curves, clips and columns.

    `names` are in the order of the colours, and all different.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(set(names)) < len(names):
            raise ValueError(f"two series have one name: {list(names)}")
        self.names = tuple(names)

    def index(self, name: str) -> int:
        """The position of a series. Raises ValueError for an unknown one."""
        if name not in self.names:
            raise ValueError(f"no series is named {name!r}")
        return self.names.index(name)

    def colour(self, name: str) -> str:
        """The colour of a series as a CSS value."""
        return f"var(--series-{self.index(name) % COLOURS})"

    def label(self, name: str) -> Markup:
        """The series' name with its coloured dot."""
        return Markup('<span class="series" style="--c:{}">{}</span>').format(self.colour(name), name)

    def attribute(self, name: str) -> Markup:
        """The attribute of an element that disappears when its series is switched off."""
        return Markup(' data-series="{}"').format(self.index(name))

    def toggles(self, note: str = "") -> Markup:
        """The bar that stays at the top of the window: a button for each series, then a note."""
        button = Markup('<button data-toggle="{}" aria-pressed="true" title="show or hide">{}</button>')
        buttons = [button.format(self.index(name), self.label(name)) for name in self.names]
        end = Markup('<span class="small">{}</span>').format(note) if note else ""
        return Markup('<nav class="legend">{}{}</nav>').format(joined(buttons), end)


def section(title: str, *blocks: Text, note: Text = "") -> Markup:
    """A heading with its blocks; note: small print under the heading. Empty without blocks."""
    if not any(blocks):
        return Markup()
    small = Markup('<p class="note">{}</p>').format(note) if note else ""
    return Markup("<section><h2>{}</h2>{}{}</section>").format(title, small, joined(blocks))


def subheading(title: Text) -> Markup:
    """A heading inside a section."""
    return Markup("<h3>{}</h3>").format(title)


def paragraph(text: Text, *, small: bool = False) -> Markup:
    """A paragraph, or a note in small print."""
    return Markup('<p class="note">{}</p>' if small else "<p>{}</p>").format(text)


def bullets(items: Sequence[Text]) -> Markup:
    """A list."""
    return Markup("<ul>{}</ul>").format(joined([Markup("<li>{}</li>").format(item) for item in items]))


def badge(text: Text, tone: Tone = "neutral") -> Markup:
    """A word or two in a coloured pill."""
    return Markup('<span class="badge {}">{}</span>').format(tone, text)


def box(*blocks: Text, tone: Tone | None = None) -> Markup:
    """A frame around blocks, with a coloured edge if it has a tone; `warn` makes it a warning."""
    return Markup('<div class="box {}">{}</div>').format(tone or "", joined(blocks))


def command(text: str) -> Markup:
    """A command line with a button that copies it."""
    return Markup('<div class="command"><pre>{}</pre><button>copy</button></div>').format(text)


def code(text: str) -> Markup:
    """Preformatted text, such as a configuration."""
    return Markup("<pre>{}</pre>").format(text)


def details(summary: Text, *blocks: Text, opened: bool = False) -> Markup:
    """Blocks that unfold; printing unfolds them."""
    start = Markup("<details open>" if opened else "<details>")
    return start + Markup("<summary>{}</summary>{}</details>").format(summary, joined(blocks))


def facts(values: Mapping[str, Text]) -> Markup:
    """Names and values, one pair per row."""
    rows = [Markup("<tr><th>{}</th><td>{}</td></tr>").format(name, value) for name, value in values.items()]
    return Markup('<div class="scroll"><table class="facts"><tbody>{}</tbody></table></div>').format(joined(rows))


class Cell(NamedTuple):
    """A cell of a table or matrix; plain text is enough for one without these options."""

    text: Text
    note: Text = ""
    """A second, smaller line."""
    tone: Tone | None = None
    muted: bool = False
    """Pale, for values that are not evidence (matrix only)."""
    sort: float | None = None
    """The sort key, if it is not the number at the start of the text."""
    interval: Markup = Markup()
    """A drawing under the text, see `interval`."""


def table(
    header: Sequence[Text], rows: Sequence[Sequence[Text | Cell]], *, sortable: bool = False, numbers: bool = True
) -> Markup:
    """A table that scrolls sideways in a narrow window.

    On a phone every cell is a separate line, after its column's title, unless the table is sortable.

    `sortable`: a click on a title sorts by that column. `numbers`: all columns but the first hold numbers and are
    right-aligned.
    """
    sort = Markup(' data-sort=""') if sortable else Markup()

    def aligned(column: int) -> Markup:
        number = Markup(' class="number"') if numbers and column else Markup()
        return (
            number + Markup(' data-title="{}"').format(Markup(header[column]).striptags()) if not sortable else number
        )

    heads = [
        Markup("<th{}{}>{}</th>").format(aligned(column), sort, title) if title else Markup("<th></th>")
        for column, title in enumerate(header)
    ]
    cells = [joined([_cell(cell, aligned(column)) for column, cell in enumerate(row)]) for row in rows]
    lines = [Markup("<tr>{}</tr>").format(row) for row in cells]
    return Markup('<div class="scroll"><table{}><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        "" if sortable else Markup(' class="stacked"'), joined(heads), joined(lines)
    )


class MatrixRow(NamedTuple):
    """One measure: its name, and a cell for each column."""

    title: Text
    cells: Sequence[Text | Cell]
    note: Text = ""


class MatrixGroup(NamedTuple):
    """Measures of one kind under a title; a folded group shows its rows when its title is clicked."""

    title: Text
    rows: Sequence[MatrixRow]
    note: Text = ""
    folded: bool = False


def matrix(legend: Legend, names: Sequence[str], groups: Sequence[MatrixGroup], *, corner: Text = "") -> Markup:
    """Measures by arm: a column per arm, a row per measure, in groups.

    `names` are the series of the columns, from left to right. Groups without a title stand first. `corner`: head of
    the first column.
    """
    columns = [legend.attribute(name) for name in names]
    heads = [
        Markup('<th class="series-head"{}>{}</th>').format(column, legend.label(name))
        for column, name in zip(columns, names, strict=True)
    ]
    bodies = [_group(group, columns) for group in groups if group.rows]
    return Markup(
        '<div class="scroll"><table class="matrix" style="--columns:{}">'
        "<thead><tr><th>{}</th>{}</tr></thead>{}</table></div>"
    ).format(len(names), corner, joined(heads), joined(bodies))


def interval(low: float, high: float, at: float | None, colour: str) -> Markup:
    """A bar from `low` to `high` with a tick at `at`, on a line from 0 to 1 whose middle is marked."""
    ends = [100 * min(max(end, 0.0), 1.0) for end in (low, high)]
    line = Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}" style="stroke:{};stroke-width:{}"{}/>')
    thin = Markup(' vector-effect="non-scaling-stroke"')
    parts = [
        line.format(0, 100, 4.5, 4.5, "var(--line)", 1, thin),
        line.format(50, 50, 0, 9, "var(--quiet)", 1, thin),
        line.format(ends[0], max(ends[1], ends[0] + 1), 4.5, 4.5, colour, 3, thin),
    ]
    if at is not None:
        place = 100 * min(max(at, 0.0), 1.0)
        parts.append(line.format(place, place, 0.5, 8.5, colour, 3, thin))
    svg = '<svg class="interval" viewBox="0 0 100 9" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    return Markup(svg).format(joined(parts))


def _cell(cell: Text | Cell, attributes: Markup, strong: bool = False) -> Markup:
    if not isinstance(cell, Cell):
        cell = Cell(cell)
    classes = [cell.tone or "", "muted" if cell.muted else ""]
    named = " ".join(filter(None, classes))
    if named and 'class="' in attributes:
        attributes = Markup(attributes.replace('class="', f'class="{named} '))
    elif named:
        attributes += Markup(' class="{}"').format(named)
    if cell.sort is not None:
        attributes += Markup(' data-key="{}"').format(cell.sort)
    text = Markup("<b>{}</b>").format(cell.text) if strong else cell.text
    note = Markup("<small>{}</small>").format(cell.note) if cell.note else ""
    return Markup("<td{}>{}{}{}</td>").format(attributes, text, note, cell.interval)


def _group(group: MatrixGroup, columns: Sequence[Markup]) -> Markup:
    lines = []
    for row in group.rows:
        note = Markup("<small>{}</small>").format(row.note) if row.note else ""
        cells = [_cell(cell, column, strong=True) for cell, column in zip(row.cells, columns, strict=True)]
        lines.append(Markup("<tr><th>{}{}</th>{}</tr>").format(row.title, note, joined(cells)))
    head = Markup()
    if group.title:
        title = group.title
        if group.folded:
            count = f"{len(group.rows)} row" + "s" * (len(group.rows) > 1)
            title = Markup('<button aria-expanded="false">{} ({})</button>').format(title, count)
        note = Markup("<small>{}</small>").format(group.note) if group.note else ""
        head = Markup('<tr class="group"><th colspan="{}">{}{}</th></tr>').format(len(columns) + 1, title, note)
    folded = "true" if group.folded else "false"
    return Markup('<tbody data-folded="{}">{}{}</tbody>').format(folded, head, joined(lines))
