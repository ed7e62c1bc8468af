"""What a report draws of its numbers: curves of every measure, and spectra of the latents."""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ...pages.blocks import Legend, details, subheading
from ...pages.charts import Axis, Line, chart, charts, line
from ...pages.spectra import amplitude_chart, modes_chart
from ..analysis import SpeedUp
from ..answer import PRIMARY
from ..curves import MAX_POINTS, smooth_curve
from ..results import ComparisonResults, CurvePoint
from ..verdict import Verdict
from ..wording import describe

_GROUPS = {
    "samples": "Decoded samples",
    "denoising": "One-step denoising",
    "loss": "Training loss",
    "other": "Other measures",
}
_SCORES = {"samples": "distance", "denoising": "squared error", "loss": "squared error"}


def curve_blocks(results: ComparisonResults, verdicts: Sequence[Verdict], legend: Legend) -> list[Markup]:
    """A drawing of each metric by group; measures that count for no arm are folded."""
    read = [speed_up for verdict in verdicts for speed_up in verdict.speed_ups]
    counted = {speed_up.metric for verdict in verdicts for speed_up in verdict.counted}
    blocks: list[Markup] = []
    groups: dict[tuple[bool, str], list[str]] = {}
    for metric in results.metrics:
        group = describe(metric).group
        opened = metric in counted or (not counted and group == "samples")
        groups.setdefault((not opened, _GROUPS.get(group, _GROUPS["other"])), []).append(metric)
    for (folded, title), metrics in sorted(groups.items(), key=lambda one: one[0][0]):
        drawn = charts([curve_chart(results, metric, read, legend) for metric in metrics])
        blocks.append(details(f"{title}, not counted", drawn) if folded else subheading(title) + drawn)
    return blocks


def curve_chart(results: ComparisonResults, metric: str, read: Sequence[SpeedUp], legend: Legend) -> Markup:
    """One metric against steps as it is read (`curves.py`), with its evaluations and their interval.

    Thick: the mean over seeds; thin: each seed; dashed: the score of the training clips, or else the floor; dotted: the
    baseline's final score as it is read, so that a curve ends below it if and only if it reaches that score.
    """
    info = describe(metric)
    lines = [drawn for arm in results.arms for drawn in _arm_lines(results, metric, arm.name, legend)]
    for arm in results.arms:
        floor = arm.training_distances.get(metric, arm.floors.get(metric))
        if floor is not None:
            lines.append(line(legend, arm.name, [0], [floor.value], style="floor"))
    targets = {one.target for one in read if one.metric == metric and one.target is not None}
    scores = _SCORES.get(info.group, "")
    target = sorted(targets)[:1]
    note = f"{info.detail}, the primary measure" if metric == PRIMARY else info.detail
    return chart(info.title, lines, Axis("transformer steps"), Axis(scores), note=note, targets=target)


def spectrum_charts(results: ComparisonResults, legend: Legend) -> Markup:
    """The latents' spectrum in space and the variance that their channels' components explain."""
    spatial = {arm.name: list(zip(*arm.spatial_spectrum, strict=True)) for arm in results.arms if arm.spatial_spectrum}
    explained = {arm.name: arm.explained_variance for arm in results.arms if arm.explained_variance}
    drawings = [amplitude_chart(legend, "Detail in space", "pixel", spatial)] if spatial else []
    return charts([*drawings, *([modes_chart(legend, explained)] if explained else [])])


def _arm_lines(results: ComparisonResults, metric: str, arm: str, legend: Legend) -> list[Line]:
    curves = [results.curve(arm, seed, metric, vae_seed) for vae_seed, seed in results.runs]
    columns = [_columns(curve) for curve in curves if curve]
    if not columns:
        return []
    seeds = columns if len(columns) > 1 else []
    lines = [line(legend, arm, c[0].tolist(), c[1].tolist(), style="thin", read=c[4].tolist()) for c in seeds]
    same = [c for c in columns if len(c[0]) == len(columns[0][0])]  # a seed that is still training has fewer
    steps, mean, low, high, read = (np.mean([c[i] for c in same], axis=0).tolist() for i in range(5))
    ends = (low, high) if np.isfinite(low).any() else None
    return [*lines, line(legend, arm, steps, mean, interval=ends, read=read)]


def _columns(curve: list[CurvePoint]) -> list[np.ndarray]:
    """Steps, values, low and high (NaN: no interval), averaged in groups when there are many; and the curve as read."""
    rows = np.array([[p.step, p.value, *(math.nan if end is None else end for end in (p.low, p.high))] for p in curve])
    groups = np.array_split(rows.astype(float), min(len(rows), MAX_POINTS))
    _, read = smooth_curve([p.step for p in curve], [p.value for p in curve])
    return [*np.array([group.mean(axis=0) for group in groups]).T, np.array(read)]
