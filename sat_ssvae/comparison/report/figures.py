"""The report's plots: curves, spectra and speed-ups by matplotlib, in colours that all eyes tell apart.

Colours are Okabe and Ito's; every arm also has its own marker, so that nothing depends on colour.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ..analysis import SpeedUp
from ..curves import MAX_POINTS
from ..results import ComparisonResults, CurvePoint
from ..verdict import Verdict, describe, ratio

INK, QUIET, HAIRLINE = "#1b1f24", "#5b6570", "#d5dae0"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_SCORES = {
    "samples": "kernel distance (squared MMD)",
    "denoising": "squared error of pixels in [-1, 1]",
    "loss": "squared error",
}
"""What a curve's values are, by its metric's group."""
_LOG_FROM = 8
"""An axis becomes logarithmic when its largest value is this many times its smallest."""


class Spectrum(Protocol):
    """What is drawn of an autoencoder's latents."""

    @property
    def name(self) -> str:
        """Of the autoencoder."""

    @property
    def dct_amplitude(self) -> Sequence[float]:
        """In zigzag order, relative to the DC's."""

    @property
    def explained_variance(self) -> Sequence[float]:
        """Cumulative, by number of components."""


class Spectra(Protocol):
    """Several autoencoders that are drawn together; the results of a comparison are one."""

    @property
    def arms(self) -> Sequence[Spectrum]:
        """The autoencoders; the first is the baseline."""


class ArmStyle(NamedTuple):
    """How one arm is drawn."""

    name: str
    colour: str
    marker: str


def arm_styles(results: Spectra) -> list[ArmStyle]:
    """Colour and marker by position: the baseline is always blue circles."""
    return [
        ArmStyle(arm.name, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, arm in enumerate(results.arms)
    ]


def png(figure: Figure) -> bytes:
    """The figure as a PNG, cropped to its contents."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=170, facecolor="white", bbox_inches="tight", pad_inches=0.08)
    return data.getvalue()


def curve_figure(results: ComparisonResults, metric: str, read: Sequence[SpeedUp]) -> bytes:
    """One metric against transformer steps: seeds thin, their mean thick, the evaluation's intervals shaded.

    Dashed: each arm's floor. Dotted: the baseline's final score; the arrow along it is the speed-up of the
    first candidate that has one in `read`, the speed-ups that count.
    """
    with _axes(5.2, 3.5) as (figure, axes):
        info = describe(metric)
        axes.set_title(info.title + (f"\n{info.detail}" if info.detail else ""))
        steps = [point.step for point in results.curves if point.metric == metric]
        _scale_steps(axes, steps)
        _scale_scores(axes, results, metric)
        for arm in arm_styles(results):
            _draw_arm(axes, results, metric, arm)
        _draw_floors(axes, results, metric)
        drawn = next((s for s in read if s.metric == metric and s.status == "measured"), None)
        if drawn is not None and drawn.target is not None:
            _draw_speed_up(axes, results, drawn)
        axes.margins(y=0.12)
        axes.set_xlabel("transformer steps")
        axes.set_ylabel(_SCORES.get(info.group, ""))
        axes.grid(axis="y")
        axes.legend(loc="upper right", fontsize=9, handlelength=2.2)
        return png(figure)


def amplitude_figure(results: Spectra) -> bytes:
    """Mean absolute DCT coefficient over the DC's, in zigzag order of spatio-temporal frequency."""
    with _axes(5.2, 3.5) as (figure, axes):
        axes.set_title("Spatio-temporal spectrum of the latents\nfaster decay: smoother, biased to low frequencies")
        for arm, one in zip(results.arms, arm_styles(results), strict=True):
            axes.plot(range(len(arm.dct_amplitude)), arm.dct_amplitude, color=one.colour, label=one.name, lw=1.8)
            _mark(axes, range(len(arm.dct_amplitude)), arm.dct_amplitude, one)
        axes.set_yscale("log")
        axes.set_xlabel("zigzag index of 3-D DCT coefficient")
        axes.set_ylabel("amplitude / DC")
        axes.grid(axis="y")
        axes.legend(loc="upper right", fontsize=9)
        return png(figure)


def variance_figure(results: Spectra) -> bytes:
    """Share of the channels' variance that the largest components explain."""
    with _axes(5.2, 3.5) as (figure, axes):
        axes.set_title("Channel spectrum of the latents\nhigher: few modes carry the signal")
        for arm, one in zip(results.arms, arm_styles(results), strict=True):
            components = range(1, len(arm.explained_variance) + 1)
            axes.plot(components, arm.explained_variance, color=one.colour, label=one.name, lw=1.8)
            _mark(axes, components, arm.explained_variance, one)
        axes.axhline(0.9, color=QUIET, lw=0.8, ls=":")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("components")
        axes.set_ylabel("explained variance")
        axes.grid(axis="y")
        axes.legend(loc="lower right", fontsize=9)
        return png(figure)


def robustness_figure(results: Spectra, psnr: Sequence[Mapping[float, float]], title: str, label: str) -> bytes:
    """PSNR (dB) of each arm against the strength of a disturbance; `psnr` has the arms' order."""
    with _axes(5.2, 3.5) as (figure, axes):
        axes.set_title(title)
        for one, scores in zip(arm_styles(results), psnr, strict=True):
            style: Any = {"color": one.colour, "marker": one.marker, "mec": "white", "lw": 1.8}
            axes.plot(list(scores), list(scores.values()), label=one.name, **style)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR to the clip, dB")
        axes.grid(axis="y")
        axes.legend(loc="best", fontsize=9)
        return png(figure)


def speed_up_figure(results: ComparisonResults, verdicts: Sequence[Verdict]) -> bytes:
    """All speed-ups with their intervals, one row a metric; right of the line the candidate is faster."""
    rows = [(verdict, read) for verdict in verdicts for read in verdict.speed_ups]
    colours = {arm.name: arm for arm in arm_styles(results)}
    with _axes(7.2, 0.9 + 0.34 * len(rows)) as (figure, axes):
        limit = axis_limit([read for _, read in rows])
        axes.set_title("Speed-up to the baseline's final score, with 95 % intervals")
        axes.axvline(1, color=INK, lw=1)
        for y, (verdict, read) in enumerate(rows):
            arm = colours[verdict.candidate]
            faded = 1.0 if read in verdict.counted else 0.35
            _draw_interval(axes, y, read, limit, arm, faded)
        labels = [
            (f"{verdict.candidate}: " if len(verdicts) > 1 else "") + describe(read.metric).label
            for verdict, read in rows
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(1 / limit, limit)
        _log_axis(axes, [2.0**k for k in range(-6, 7)], lambda v, _: f"{v:g}×" if v >= 1 else f"1/{1 / v:g}×")
        axes.grid(axis="x")
        axes.set_xlabel("slower  ◀   speed-up   ▶  faster      (pale: no evidence, see the report)")
        return png(figure)


def axis_limit(read: Sequence[SpeedUp]) -> float:
    """The end of a speed-up axis that runs from 1 / limit to limit: a power of two, 4 to 64."""
    ends = [end for s in read for end in (s.low, s.high, s.value) if end and math.isfinite(end)]
    reach = max((max(end, 1 / end) for end in ends), default=1.0)
    return float(min(64, max(4, 2 ** math.ceil(math.log2(reach * 1.05)))))


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Axes in the report's style; nothing of it remains set afterwards."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def _draw_arm(axes: Axes, results: ComparisonResults, metric: str, arm: ArmStyle) -> None:
    curves = [results.curve(arm.name, seed, metric, vae_seed) for vae_seed, seed in results.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return
    columns = [_columns(curve) for curve in curves]
    for steps, values, _, _ in columns if len(columns) > 1 else ():
        axes.plot(steps, values, color=arm.colour, lw=0.7, alpha=0.45)
    same = [c for c in columns if len(c[0]) == len(columns[0][0])]  # a seed that is still training has fewer
    steps, mean, low, high = (np.mean([c[i] for c in same], axis=0) for i in range(4))
    if np.isfinite(low).any():
        # A logarithmic axis ends a little below the curve, where an interval may reach 0.
        bottom = min(mean) / 3 if axes.get_yscale() == "log" else -math.inf
        axes.fill_between(steps, np.maximum(low, bottom), high, color=arm.colour, alpha=0.16, lw=0)
    few = len(steps) <= MAX_POINTS // 2
    axes.plot(
        steps,
        mean,
        color=arm.colour,
        lw=2,
        label=arm.name,
        marker=arm.marker if few else None,
        ms=5,
        mec="white",
        mew=0.6,
    )


def _draw_floors(axes: Axes, results: ComparisonResults, metric: str) -> None:
    """A dashed line an arm, named on the left, where the curves are far above it.

    A logarithmic axis has no place for a floor at or below 0, and none worth its height for one far below the curves.
    """
    floors = [(arm, results.arm(arm.name).floors.get(metric)) for arm in arm_styles(results)]
    drawn = sorted(((floor.value, arm) for arm, floor in floors if floor is not None), reverse=True)
    if axes.get_yscale() == "log":
        lowest = axes.get_ylim()[0] / 10
        drawn = [(value, arm) for value, arm in drawn if value >= lowest]
    heights = [(axes.transData + axes.transAxes.inverted()).transform((1, value))[1] for value, _ in drawn]
    together = bool(drawn) and heights[0] - heights[-1] < 0.01
    for i, (value, arm) in enumerate(drawn):
        dashes = (5 * (i if together else 0), (5, 5 * (len(drawn) - 1) if together and i else 2))
        axes.axhline(value, color=arm.colour, lw=1.1, ls=dashes)
        if together and i:
            continue
        # The highest is named above its line, the others below: two close lines keep their names apart.
        offset, side = ((4, 2), "bottom") if i == 0 else ((4, -2), "top")
        name, colour = ("floor of all", QUIET) if together and len(drawn) > 1 else (f"floor of {arm.name}", arm.colour)
        axes.annotate(
            name,
            (0, value),
            offset,
            ("axes fraction", "data"),
            textcoords="offset points",
            va=side,
            fontsize=8,
            color=colour,
        )


def _columns(curve: list[CurvePoint]) -> list[np.ndarray]:
    """Steps, values, low and high of a curve (NaN: no interval), averaged in groups when there are many."""
    rows = np.array([[p.step, p.value, _or_nan(p.low), _or_nan(p.high)] for p in curve], float)
    groups = np.array_split(rows, min(len(rows), MAX_POINTS))
    return list(np.array([group.mean(axis=0) for group in groups]).T)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _draw_speed_up(axes: Axes, results: ComparisonResults, read: SpeedUp) -> None:
    """A dotted line at the target with an arrow from the baseline's steps to the candidate's."""
    assert read.target is not None and read.baseline_steps and read.candidate_steps and read.value
    colour = next(arm.colour for arm in arm_styles(results) if arm.name == read.candidate)
    axes.axhline(read.target, color=QUIET, lw=0.9, ls=":")
    ends = (read.candidate_steps, read.target), (read.baseline_steps, read.target)
    axes.annotate("", xy=ends[0], xytext=ends[1], arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6})
    if read.value <= 1:
        return
    # Left of the arrow's head and below it nothing is drawn: both curves are still above the target there.
    transform = axes.transData + axes.transAxes.inverted()
    room = transform.transform(ends[0])[0] > 0.3
    place: dict[str, Any] = {"ha": "right", "va": "top"} if room else {"ha": "left", "va": "bottom"}
    axes.annotate(
        f"{ratio(read.value)} sooner",
        ends[0],
        (-5, -3) if room else (8, 3),
        textcoords="offset points",
        fontsize=10,
        color=colour,
        fontweight="bold",
        **place,
    )


def _draw_interval(axes: Axes, y: int, read: SpeedUp, limit: float, arm: ArmStyle, alpha: float) -> None:
    style: dict[str, Any] = {"color": arm.colour, "alpha": alpha}
    if read.low is not None and read.high is not None:
        axes.plot([max(read.low, 1 / limit), min(read.high, limit)], [y, y], lw=2.6, solid_capstyle="butt", **style)
        beyond = [(1 / limit, "<")] * (read.low < 1 / limit) + [(limit, ">")] * (read.high > limit)
        for end, marker in beyond:
            axes.plot([end], [y], marker=marker, ms=6, mew=0, clip_on=False, **style)
    if read.value is not None:
        axes.plot([min(max(read.value, 1 / limit), limit)], [y], marker=arm.marker, ms=7, mec="white", **style)
    else:
        text = "not reached" if read.status == "not reached" else read.reason
        place: Any = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(text, (1.02, y), fontsize=8, color=QUIET, style="italic", **place)


def _mark(axes: Axes, x: Sequence[float], y: Sequence[float], arm: ArmStyle) -> None:
    """A few markers along a dense line."""
    every = max(1, len(y) // 8)
    axes.plot(x[::every], y[::every], ls="", marker=arm.marker, ms=5, mec="white", mew=0.6, color=arm.colour)


def _scale_steps(axes: Axes, steps: Sequence[int]) -> None:
    positive = [step for step in steps if step > 0]
    if not positive or max(positive) < _LOG_FROM * min(positive):
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        return
    if min(steps) == 0:
        axes.set_xscale("symlog", linthresh=min(positive))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xscale("log")
    # Ticks where evaluations are, doubling, so that a step count can be read off.
    ticks = [max(positive)]
    for step in sorted(set(positive), reverse=True):
        if step <= ticks[-1] / 1.8:
            ticks.append(step)
    axes.xaxis.set_major_locator(FixedLocator([0] * (min(steps) == 0) + ticks[::-1]))
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _scale_scores(axes: Axes, results: ComparisonResults, metric: str) -> None:
    values = [p.value for p in results.curves if p.metric == metric and math.isfinite(p.value)]
    if values and min(values) > 0 and max(values) > _LOG_FROM * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator([m * 10.0**e for e in range(-8, 9) for m in (1, 2, 5)]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _log_axis(axes: Axes, ticks: Sequence[float], form: Callable[[float, Any], str]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(form))
    axes.xaxis.set_minor_locator(NullLocator())


def _thousands(value: float, _: Any) -> str:
    return f"{value:,.0f}"
