"""Curves as inline SVG, drawn by the page's script: hover shows values, dragging zooms, the legend's toggles apply.

chart("Loss", [line(legend, "stock", steps, losses)], Axis("steps"), Axis("loss"))
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from .blocks import Legend, Text
from .document import joined

_LOG_FROM = 8
"""An axis is logarithmic if its largest value is at least this many times its smallest positive one."""
_CHART = Markup(
    '<figure class="chart"><figcaption>{}{}</figcaption><svg role="img" aria-label="{}"></svg>'
    '<script type="application/json">{}</script></figure>'
)

Style = Literal["main", "thin", "dashed", "floor"]
"""main: with markers, in the tooltip. thin: a single seed. dashed: a second reading. floor: one value, full width."""


class Axis(NamedTuple):
    """An axis of a chart."""

    label: str
    """With its unit."""
    log: bool | None = None
    """Whether it is logarithmic; None: if its values span a factor of 8 or more."""
    ends: tuple[float, float] | None = None
    """Range of a vertical axis; None fits it to the values."""


class Line(NamedTuple):
    """A curve.

    low, high: ends of an interval around each value, shaded; None for no interval. read: the path of the line, if it
    does not go through the values, which are then only markers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None
    high: Sequence[float | None] | None
    style: Style
    series: int
    colour: str
    read: Sequence[float | None] | None = None


def line(
    legend: Legend,
    name: str,
    x: Sequence[float],
    y: Sequence[float | None],
    *,
    interval: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
    style: Style = "main",
    read: Sequence[float | None] | None = None,
) -> Line:
    """A curve of the legend's series `name`, with gaps where values are not finite; see `Line`.

    Raises:
        ValueError: an unknown series, or unequal lengths.
    """
    low, high = interval or (None, None)
    for values in (y, low, high, read):
        if values is not None and len(values) != len(x):
            raise ValueError(f"{name}: {len(values)} values for {len(x)} places")
    return Line(name, x, y, low, high, style, legend.index(name), legend.colour(name), read)


def chart(
    title: Text, lines: Sequence[Line], x: Axis, y: Axis, *, note: Text = "", targets: Sequence[float] = ()
) -> Markup:
    """One drawing; put several into `charts`.

    Lines are drawn in their order; NaN and infinity are gaps. A logarithmic horizontal axis may begin at 0, a
    vertical one leaves out values that are not above 0. `note`: small print under the title; `targets`: heights of
    dotted lines.
    """
    xs = [value for one in lines for value in one.x]
    ys = [v for one in lines for v in one.y if v is not None and math.isfinite(v) and one.style != "floor"]
    above = min(ys, default=-1) > 0 and y.ends is None
    drawn: dict[str, Any] = {
        "lines": [
            one._asdict()
            | {key: _finite(getattr(one, key)) for key in ("x", "y", "low", "high", "read")}
            | {"shape": one.series}
            for one in lines
        ],
        "x_label": x.label,
        "y_label": y.label,
        "targets": _finite(targets),
        "log_x": x.log if x.log is not None else min(xs, default=-1) >= 0 and _spread(xs) >= _LOG_FROM,
        "log_y": y.log if y.log is not None else above and _spread(ys) >= _LOG_FROM,
        "y_range": y.ends,
    }
    small = Markup("<small>{}</small>").format(note) if note else ""
    # In a script element only `<` could end the data, and JSON may write it as an escape.
    data = Markup(json.dumps(drawn, allow_nan=False).replace("<", "\\u003c"))
    return _CHART.format(title, small, title, data)


def charts(drawings: Sequence[Markup]) -> Markup:
    """Drawings side by side, as many as fit."""
    return Markup('<div class="charts">{}</div>').format(joined(drawings)) if drawings else Markup()


def _finite(values: Sequence[float | None] | None) -> list[float | None] | None:
    """Values rounded to six digits, which is more than a screen shows; not finite: None."""
    if values is None:
        return None
    return [float(f"{v:.6g}") if v is not None and math.isfinite(v) else None for v in values]


def _spread(values: Sequence[float]) -> float:
    positive = [value for value in values if value > 0]
    return max(positive) / min(positive) if positive else 1.0
