"""How many times fewer steps an arm needs than the baseline, with an interval, out of noisy curves.

    speed_up(results, "ssvae", "kernel_distance_real/frame").value     # 2.6: baseline's steps / ssvae's

Reading a noisy curve. A score counts only when the curve supports it: single outliers are taken out by a
running median of three (the last evaluation may fall no lower than the trend of the ones before it), the rest
is made non-increasing by isotonic regression, and the crossing is interpolated in log steps. Both arms are
read in the same way, so equal curves give exactly 1. When the candidate never gets there the answer is "not
reached" and no number.

The interval. Over seeds: Student's t on the log of the per-seed speed-ups (the arms share each seed's initial
weights and noise, hence pairs); where the autoencoders were trained with several seeds, on the means over the
transformers of each, because transformers on the same latents are not independent. From the evaluation: everything is
read again under every bootstrap resample of the clips, the same resample for all evaluations; or, where these are
missing, with every score redrawn within its own interval, which is wider because it cannot know what the evaluations
have in common. With both, the wider end counts. With one seed only the second exists. Where the baseline's final score
is not reached, the interval is taken at the candidate's own final score, which both arms have: against the steps that
the candidate took to it, so that near misses stay near 1, or, when the miss is beyond the noise, against all steps that
it trained, so that stalling early does not pay.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from ..metrics.intervals import CONFIDENCE, QUANTILE
from .clusters import student_interval
from .curves import NO_PROGRESS, PairReading, read_pair, smooth_curve, without_outliers
from .results import ComparisonResults, CurvePoint, Estimate

EQUAL_WITHIN = 1.25
"""Arms are called equally fast when the whole interval lies between 1 / 1.25 and 1.25."""
FLOOR_DOMINATES = 0.5
"""A distance measures blur when the VAE's reconstruction is more than this share of it at half training, in any arm."""

_REDRAWS = 500
_MIN_RESAMPLES = 100
_Pair = tuple[list[CurvePoint], list[CurvePoint]]
_Curve = tuple[list[int], list[float]]  # steps and scores
_Curves = list[tuple[_Curve, _Curve]]  # the baseline's and the candidate's, by run

IntervalSource = Literal["seeds and evaluation", "seeds", "evaluation", "none"]
Source = Literal["seeds", "evaluation"]
Outcome = Literal["faster", "slower", "equal", "undecided", "no interval", "undefined"]


@dataclass(frozen=True)
class SpeedUp:
    """Steps the baseline needs for its final score / steps the candidate needs for that score, on one metric.

    value: geometric mean over seeds, None unless every seed reached it. low, high: 95 % interval, None if
    neither seeds nor evaluation give one; a seed that did not reach the score enters it at the best score
    that both arms have. low 0 and high infinity: open, because an arm diverged, was there at its first
    evaluation, or the noise drowns the baseline's improvement. status "at least": the candidate had the score
    at its first evaluation. steps: geometric means over seeds. target: the baseline's final score, mean over
    seeds. reason: why the status is "undefined". widest: which source alone gives the wider interval.
    """

    metric: str
    baseline: str
    candidate: str
    status: Literal["measured", "at least", "not reached", "undefined"]
    value: float | None
    low: float | None
    high: float | None
    baseline_steps: float | None
    candidate_steps: float | None
    target: float | None
    seeds: int
    reached: int
    interval_from: IntervalSource
    floor_share: float | None
    reason: str = ""
    widest: Source | Literal["none"] = "none"

    @property
    def outcome(self) -> Outcome:
        """What the interval allows to say; "equal" only when all of it is close to 1 (see EQUAL_WITHIN)."""
        if self.status == "undefined":
            return "undefined"
        if self.low is None or self.high is None:
            return "no interval"
        if self.low > 1:
            return "faster"
        if self.high < 1:
            return "slower"
        return "equal" if self.low >= 1 / EQUAL_WITHIN and self.high <= EQUAL_WITHIN else "undecided"

    @property
    def measures_blur(self) -> bool:
        """A VAE's own reconstruction error is most of this distance, in any of the comparison's arms."""
        return self.floor_share is not None and self.floor_share > FLOOR_DOMINATES


def speed_up(results: ComparisonResults, candidate: str, metric: str) -> SpeedUp:
    """How many times fewer steps `candidate` needs than the baseline."""
    baseline = results.baseline.name
    both = {
        (vae_seed, s): (results.curve(baseline, s, metric, vae_seed), results.curve(candidate, s, metric, vae_seed))
        for vae_seed, s in results.runs
    }
    both = {run: pair for run, pair in both.items() if all(pair)}
    pairs, vae_seeds = list(both.values()), [vae_seed for vae_seed, _ in both]
    share = max(floor_shares(results, metric).values(), default=None)
    draws = _draws(pairs) if pairs else []
    curves = [(_measured(base), _measured(cand)) for base, cand in pairs]
    readings = _read(curves, draws) if pairs else "no seed was measured in both arms"
    if isinstance(readings, str):
        nothing = (None,) * 6
        return SpeedUp(metric, baseline, candidate, "undefined", *nothing, len(pairs), 0, "none", share, readings)
    reached = sum(reading.status != "not reached" for reading in readings)
    ends = _intervals(readings, vae_seeds, [[read_pair(*pair) for pair in draw] for draw in draws])
    value = candidate_steps = None
    if reached == len(readings):
        value = _geometric_mean([reading.ratio for reading in readings])
        candidate_steps = _geometric_mean([reading.candidate_steps for reading in readings])
    return SpeedUp(
        metric=metric,
        baseline=baseline,
        candidate=candidate,
        status=_status(readings),
        value=value,
        low=min((low for low, _ in ends.values()), default=None),
        high=max((high for _, high in ends.values()), default=None),
        baseline_steps=_geometric_mean([reading.baseline_steps for reading in readings]),
        candidate_steps=candidate_steps,
        target=float(np.mean([reading.target for reading in readings])),
        seeds=len(readings),
        reached=reached,
        interval_from=cast(IntervalSource, " and ".join(ends) or "none"),
        floor_share=share,
        widest=_widest(ends),
    )


def _read(curves: _Curves, draws: Sequence[_Curves]) -> list[PairReading] | str:
    """Each seed's two curves, read; or why there is no speed-up."""
    readings = [read_pair(*pair) for pair in curves]
    reasons = [reading for reading in readings if isinstance(reading, str)]
    if reasons:
        return reasons[0]
    for side, name in enumerate(("the baseline", "the candidate")):
        if not _improves([pair[side] for pair in curves], [[pair[side] for pair in draw] for draw in draws]):
            return f"{name} {NO_PROGRESS}"
    return [reading for reading in readings if not isinstance(reading, str)]


def _improves(curves: Sequence[_Curve], draws: Sequence[Sequence[_Curve]]) -> bool:
    """Whether the last evaluation is better than the first, in the mean over seeds and beyond the evaluation's noise.

    Divergence is another failure, which `read_pair` reports.
    """

    def progress(some: Sequence[_Curve]) -> float:
        read = [without_outliers(*curve) for curve in some]
        return float(np.mean([values[0] - values[-1] for values in read]))

    measured = progress(curves)
    again = sorted(map(progress, draws))
    lowest = again[math.floor((1 - CONFIDENCE) / 2 * (len(again) - 1))] if again else measured
    return not math.isfinite(measured) or (measured > 0 and not lowest <= 0)


def _status(readings: Sequence[PairReading]) -> Literal["measured", "at least", "not reached"]:
    statuses = {reading.status for reading in readings}
    return "not reached" if "not reached" in statuses else "at least" if "at least" in statuses else "measured"


def paired_difference(
    candidate: Sequence[float], baseline: Sequence[float], videos: NDArray[np.int64] | None = None
) -> Estimate:
    """Mean of candidate - baseline, clip by clip in the same order, with its 95 % interval (Student's t).

    videos: of the clips, see `clusters.video_numbers`; None where clips are independent.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    if len(candidate) != len(baseline) or not candidate:
        raise ValueError(f"need the same clips in both arms, got {len(candidate)} and {len(baseline)}")
    difference = np.asarray(candidate, float) - np.asarray(baseline, float)
    mean = float(difference.mean())
    if len(difference) == 1:
        return Estimate(mean)
    return Estimate(mean, *student_interval(difference.tolist(), videos))


def _intervals(
    readings: list[PairReading], vae_seeds: Sequence[int], redrawn: list[list[PairReading | str]]
) -> dict[Source, tuple[float, float]]:
    """The interval over seeds and the one over redrawn evaluations, of those there are."""
    ends: dict[Source, tuple[float, float]] = {}
    if len(readings) > 1:
        gaps = _by_autoencoder([reading.gap for reading in readings], vae_seeds, lambda some: float(np.mean(some)))
        missed = all(math.isinf(gap) for gap in gaps) or student_interval(gaps)[0] > 0
        ranges = [reading.range(missed) for reading in readings]
        lows, highs = (_by_autoencoder([r[side] for r in ranges], vae_seeds, _geometric_mean) for side in (0, 1))
        ends["seeds"] = _t_of_logs(lows)[0], _t_of_logs(highs)[1]
    if redrawn:
        tail = (1 - CONFIDENCE) / 2
        gaps = [sum(0.0 if isinstance(r, str) else r.gap for r in seeds) for seeds in redrawn]
        missed = sum(gap > 0 for gap in gaps) >= (1 - tail) * len(gaps)
        # A redraw without an answer (the baseline flat by chance) says nothing: anything is possible there.
        known = [[(0.0, math.inf) if isinstance(r, str) else r.range(missed) for r in seeds] for seeds in redrawn]
        lows = sorted(_geometric_mean([low for low, _ in seeds]) for seeds in known)
        highs = sorted(_geometric_mean([high for _, high in seeds]) for seeds in known)
        # Order statistics: open ends are never averaged with numbers.
        ends["evaluation"] = lows[math.floor(tail * (len(lows) - 1))], highs[math.ceil((1 - tail) * (len(highs) - 1))]
    return ends


def _by_autoencoder(
    values: Sequence[float], vae_seeds: Sequence[int], mean: Callable[[list[float]], float]
) -> list[float]:
    """One value an autoencoder, where there are several: transformers on the same latents are not independent."""
    groups: dict[int, list[float]] = {}
    for value, vae_seed in zip(values, vae_seeds, strict=True):
        groups.setdefault(vae_seed, []).append(value)
    return list(values) if len(groups) == 1 else [mean(group) for group in groups.values()]


def _draws(pairs: Sequence[_Pair]) -> list[_Curves]:
    """The curves of all seeds under each redraw of the evaluations; empty when a score has no interval."""
    points = [point for pair in pairs for curve in pair for point in curve]
    counts = {len(point.resamples) for point in points}
    if len(counts) == 1 and min(counts) >= _MIN_RESAMPLES:
        # Resample by resample, the same clips in every evaluation.
        return [
            [
                (_curve(base, [p.resamples[r] for p in base]), _curve(cand, [p.resamples[r] for p in cand]))
                for base, cand in pairs
            ]
            for r in range(min(counts))
        ]
    if any(point.low is None or point.high is None for point in points):
        return []
    return list(_independent_draws(pairs))


def _independent_draws(pairs: Sequence[_Pair]) -> Iterator[_Curves]:
    """Each score within its own interval, with one draw for all seeds, which share the held-out clips."""
    steps = sorted({point.step for pair in pairs for curve in pair for point in curve})
    index = {step: i for i, step in enumerate(steps)}
    for noise in np.random.default_rng(0).standard_normal((_REDRAWS, 2, len(steps))):
        yield [
            (
                _curve(base, [_redrawn_value(p, noise[0, index[p.step]]) for p in base]),
                _curve(cand, [_redrawn_value(p, noise[1, index[p.step]]) for p in cand]),
            )
            for base, cand in pairs
        ]


def _redrawn_value(point: CurvePoint, normal: float) -> float:
    """A split normal: each side of the value has the width of its own half of the interval."""
    assert point.low is not None and point.high is not None
    side = point.high - point.value if normal > 0 else point.value - point.low
    return point.value + normal * max(side, 0.0) / QUANTILE


def floor_shares(results: ComparisonResults, metric: str) -> dict[str, float]:
    """By arm: the share of the distance at half training that a perfect generator would keep, in the worst of its runs.

    Arms without a floor are missing.
    """
    shares: dict[str, float] = {}
    for arm in results.arms if not metric.startswith("loss") else ():
        floor = arm.floors.get(metric)
        curves = [results.curve(arm.name, seed, metric, vae_seed) for vae_seed, seed in results.runs] if floor else []
        for curve in filter(None, curves):
            steps, fit = smooth_curve(*_measured(curve))
            half = float(np.interp(steps[-1] / 2, steps, fit))
            if floor is not None and math.isfinite(half) and half > 0:
                shares[arm.name] = max(shares.get(arm.name, 0.0), floor.value / half)
    return shares


def _widest(ends: Mapping[Source, tuple[float, float]]) -> Source | Literal["none"]:
    """Which interval of ratios is the widest, in logs."""
    if not ends:
        return "none"
    widths = {source: math.log(high / low) if low > 0 else math.inf for source, (low, high) in ends.items()}
    return max(ends, key=lambda source: widths[source])


def _t_of_logs(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the geometric mean; an end of 0 or infinity stays open."""
    if 0 in values or math.inf in values:
        return _geometric_mean(values), _geometric_mean(values)
    low, high = student_interval(np.log(values).tolist())
    return math.exp(low), math.exp(high)


def _geometric_mean(values: list[float]) -> float:
    if any(value == 0 for value in values):
        return 0.0
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _measured(points: list[CurvePoint]) -> _Curve:
    return _curve(points, [point.value for point in points])


def _curve(points: list[CurvePoint], scores: list[float]) -> _Curve:
    return [point.step for point in points], scores
