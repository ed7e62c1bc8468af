"""The matrix of a report: a column per arm, a row per measure, those that count first and the rest folded."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from ...pages.blocks import Cell, Legend, MatrixGroup, MatrixRow, Tone, badge, interval, matrix
from ..analysis import SpeedUp
from ..answer import PRIMARY
from ..results import ComparisonResults, Estimate
from ..verdict import Verdict, reconstruction_verdict
from ..wording import blur, describe, interval_text, quality_name, quality_text, ratio
from .advice import BADGES, Standing, minutes_of, time_words

_TITLES = {
    "samples": ("Sample distances", ""),
    "denoising": ("One-step denoising", "Not counted: it depends on the noise schedule."),
    "loss": ("Training loss", "Not counted: its floor differs between latents."),
}
_TONES: dict[str, Tone] = {"faster": "good", "slower": "bad", "equal": "neutral"}
_WORDS = {"equal": "about equal", "undecided": "undecided"}

Read = dict[str, SpeedUp]
"""The speed-ups of one measure by candidate."""


def speed_up_matrix(results: ComparisonResults, standings: Sequence[Standing], legend: Legend) -> Markup:
    """The matrix, arms from left to right as they are ranked."""
    verdicts = {one.verdict.candidate: one.verdict for one in standings if one.verdict is not None}
    limit = axis_limit([read for verdict in verdicts.values() for read in verdict.speed_ups])
    names = [one.arm for one in standings]
    by_metric: dict[str, Read] = {}
    for verdict in verdicts.values():
        for read in verdict.speed_ups:
            by_metric.setdefault(read.metric, {})[verdict.candidate] = read

    def row(metric: str) -> MatrixRow:
        reads, info = by_metric[metric], describe(metric)
        cells = [
            _cell(reads.get(name), verdicts[name], limit, legend.colour(name)) if name in verdicts else _baseline(reads)
            for name in names
        ]
        primary = badge("primary measure") if metric == PRIMARY else ""
        return MatrixRow(info.title, cells, Markup("{} {}").format(info.detail, primary))

    groups = [MatrixGroup("", _summary(results, standings)), *_groups(by_metric, verdicts, row)]
    ranked = any(one.verdict and one.place for one in standings)
    return matrix(legend, names, groups, corner="ranked, best first" if ranked else "not ranked")


def axis_limit(read: Sequence[SpeedUp]) -> float:
    """The end of a speed-up axis that runs from 1 / limit to limit: a power of two, 4 to 64."""
    ends = [end for s in read for end in (s.low, s.high, s.value) if end and math.isfinite(end)]
    reach = max((max(end, 1 / end) for end in ends), default=1.0)
    return float(min(64, max(4, 2 ** math.ceil(math.log2(reach * 1.05)))))


def _summary(results: ComparisonResults, standings: Sequence[Standing]) -> list[MatrixRow]:
    """Verdict, rank and costs."""
    verdicts, places = [], []
    for one in standings:
        words, tone = BADGES[one.verdict.conclusion] if one.verdict else ("baseline", "neutral")
        verdicts.append(Cell(badge(words, tone), "" if one.verdict else "1× by definition"))
        places.append(Cell(str(one.place or "–")))
    rows = [MatrixRow("Verdict", verdicts)]
    if any(one.verdict and one.place for one in standings):
        rows.append(MatrixRow("Rank", places, "equal ranks are not shown to differ"))
    for metric in dict.fromkeys(metric for arm in results.arms for metric in arm.reconstruction):
        if metric in ("psnr", "ssim", "stlpips"):
            rows.append(
                MatrixRow(f"Reconstruction: {quality_name(metric)}", _qualities(results, standings, metric), "held out")
            )
    if any(minutes_of(results, one.arm) for one in standings):
        cells = [Cell(*time_words(results, one.arm)) for one in standings]
        rows.append(MatrixRow("Time spent", cells, "minutes, all seeds together"))
    return rows


def _qualities(results: ComparisonResults, standings: Sequence[Standing], metric: str) -> list[Cell]:
    cells = []
    for one in standings:
        arm = results.arm(one.arm)
        value = arm.reconstruction.get(metric)
        if value is None:
            cells.append(Cell("–"))
            continue
        plain = quality_text(metric, Estimate(value.value))
        difference = arm.reconstruction_difference.get(metric)
        note = _interval_alone(metric, value) if difference is None else quality_text(metric, difference, signed=True)
        sign = reconstruction_verdict(results, one.arm, metric) if one.verdict else None
        tone: Tone | None = {1: "good", -1: "bad"}.get(sign or 0)  # type: ignore[assignment]
        cells.append(Cell(plain, note, tone))
    return cells


def _interval_alone(metric: str, estimate: Estimate) -> str:
    """The interval alone, `21.86 to 23.04`."""
    return quality_text(metric, estimate).partition(" (")[2].removesuffix(")")


def _groups(
    by_metric: dict[str, Read], verdicts: dict[str, Verdict], row: Callable[[str], MatrixRow]
) -> list[MatrixGroup]:
    """Measures that count for an arm first; those that count for none by kind, folded unless nothing else is there."""
    counted = {read.metric for verdict in verdicts.values() for read in verdict.counted}
    evidence = [metric for metric in by_metric if metric in counted]
    others = [metric for metric in by_metric if metric not in counted]
    blur = [metric for metric in others if all(read.measures_blur for read in by_metric[metric].values())]
    note = "Steps that the baseline needs for its final score, divided by the arm's for the same score: 2× is half."
    groups = [MatrixGroup("Speed-up of diffusion, by the measures that count", list(map(row, evidence)), note)]
    rest: dict[str, list[str]] = {}
    for metric in others:
        if metric not in blur:
            rest.setdefault(describe(metric).group, []).append(metric)
    for group, metrics in rest.items():
        title, why = _TITLES.get(group, ("Other measures", ""))
        if group == "samples":
            title = "Sample distances that do not count" if evidence else "Sample distances"
            why = "No arm has a speed-up with an interval here; see the cells."
        groups.append(MatrixGroup(title, list(map(row, metrics)), why, folded=bool(evidence) or group != "samples"))
    why = "Most of such a distance is there already when the VAE only reconstructs real clips."
    groups.append(MatrixGroup("Measures blur, not convergence", list(map(row, blur)), why, folded=True))
    return groups


def _baseline(reads: Read) -> Cell:
    """The baseline's cell: what the others are measured against."""
    read = next(iter(reads.values()))
    if read.target is None or read.baseline_steps is None:
        return Cell("–")
    return Cell("1×", f"{read.target:.3g} at {read.baseline_steps:,.0f} steps")


def _cell(read: SpeedUp | None, verdict: Verdict, limit: float, colour: str) -> Cell:
    if read is None:
        return Cell("–")
    counted = read in verdict.counted
    words = {"not reached": "not reached", "undefined": "not defined", "at least": "at once"}.get(read.status)
    text = words or ratio(read.value or 1)
    words = _WORDS.get(read.outcome) if counted else None  # the others have a colour
    notes = [words] if words else []
    notes.append(read.reason or interval_text(read) or "no interval")
    if read.candidate_steps is not None and read.status == "measured":
        notes.append(f"at {read.candidate_steps:,.0f} steps")
    if read.status == "not reached" and read.seeds > 1:
        notes.append(f"in {read.seeds - read.reached} of {read.seeds} runs")
    if read.measures_blur and read.floor_share is not None:
        notes.append(f"{blur(read.floor_share)} is blur")

    def place(value: float) -> float:
        clipped = min(max(value, 1 / limit), limit)
        return 0.5 + 0.5 * math.log(clipped) / math.log(limit)

    bar = Markup()
    if read.low is not None and read.high is not None:
        at = place(read.value) if read.value is not None else None
        bar = interval(place(read.low), place(read.high), at, colour)
    tone = _TONES.get(read.outcome) if counted else None
    return Cell(text, Markup("<br>").join(notes), tone, muted=not counted, interval=bar)
