"""Reading a noisy, lower-is-better curve: when does it reach a score, robustly?

    read_crossing(*smooth_curve([100, 200, 400, 800], [4.0, 3.1, 2.2, 2.0]), target=2.5)     # 325.6

Three stages, each with a reason: averaging dense logs into groups (a log of every step is not an evaluation),
a running median of three (one lucky or unlucky evaluation does not count), and isotonic regression (the remaining
noise must not make training go backwards). There is no smoothing width to choose.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

NO_PROGRESS = "does not improve beyond its noise from the first evaluation to the last"
"""Why a speed-up is undefined where an arm's transformer has not trained."""
MAX_POINTS = 64
"""A curve with more points is averaged within this many groups of consecutive ones."""


def smooth_curve(steps: Sequence[float], scores: Sequence[float]) -> tuple[list[float], list[float]]:
    """The curve as it is read: (steps, non-increasing scores).

    steps: increasing, at least 0. scores: lower is better; NaN counts as diverged (infinitely bad).

    Raises:
        ValueError: no points, unequal lengths, or steps that do not increase.
    """
    if not len(steps) or len(steps) != len(scores):
        raise ValueError(f"need as many scores as steps and at least one, got {len(scores)} for {len(steps)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)) or steps[0] < 0:
        raise ValueError("the steps of a curve must increase and not be negative")
    if len(steps) > MAX_POINTS:
        steps, scores = ([float(group.mean()) for group in np.array_split(x, MAX_POINTS)] for x in (steps, scores))
    fit = isotonic_regression(without_outliers(steps, scores), increasing=False).x
    return [float(step) for step in steps], fit.tolist()


def without_outliers(steps: Sequence[float], scores: Sequence[float]) -> list[float]:
    """Running median of three. A curve that falls ever more slowly passes unchanged.

    The ends have one neighbour only: the first may not lie below the second (a lucky start is no progress),
    and the last falls no lower than the trend of the two before it. Three points or fewer are returned as
    they are.
    """
    y = [math.inf if math.isnan(score) else score for score in scores]
    if len(y) < 4:
        return y
    smooth = [sorted(y[i - 1 : i + 2])[1] for i in range(1, len(y) - 1)]
    first = max(y[0], smooth[0])
    before, last = smooth[-2:]
    trend = last
    if math.isfinite(before) and math.isfinite(last):
        trend += (last - before) * (steps[-1] - steps[-2]) / (steps[-2] - steps[-3])
    return [first, *smooth, sorted((y[-1], last, trend))[1]]


def read_crossing(steps: Sequence[float], fit: Sequence[float], target: float) -> float | None:
    """Where a non-increasing curve is first at or below `target`, linear in log steps (from 0: in steps); or None."""
    i = next((i for i, score in enumerate(fit) if score <= target), None)
    if i is None:
        return None
    if i == 0:
        return float(steps[0])
    left, right = float(steps[i - 1]), float(steps[i])
    above = fit[i - 1]
    if not math.isfinite(above):
        return right
    share = (above - target) / (above - fit[i])
    if left == 0:
        return share * right
    return left * (right / left) ** share


@dataclass(frozen=True)
class PairReading:
    """One seed's two curves, read.

    ratio: baseline's steps to its final score / candidate's (`inf` steps when not reached). gap: how much
    worse the candidate's final score is than the target, negative when it is better. near, stalled: for "not
    reached", the ratio at the candidate's own final score, counting the candidate's steps to it, or all that
    it trained.
    """

    status: Literal["measured", "at least", "not reached"]
    target: float
    gap: float
    baseline_steps: float
    candidate_steps: float
    near: float = math.nan
    stalled: float = math.nan

    @property
    def ratio(self) -> float:
        """0 when not reached."""
        return self.baseline_steps / self.candidate_steps

    def range(self, missed: bool) -> tuple[float, float]:
        """Where the speed-up lies, for an interval. missed: the gap is beyond the noise."""
        if self.status == "measured":
            return self.ratio, self.ratio
        if self.status == "at least":
            return self.ratio, math.inf
        common = self.stalled if missed else self.near
        return (0.0 if math.isinf(self.gap) else common), common


def read_pair(
    baseline: tuple[Sequence[float], Sequence[float]], candidate: tuple[Sequence[float], Sequence[float]]
) -> PairReading | str:
    """Read one seed's two curves (steps, scores), or say why there is nothing to read."""
    base_steps, base_fit = smooth_curve(*baseline)
    cand_steps, cand_fit = smooth_curve(*candidate)
    target, last = base_fit[-1], cand_steps[-1]
    if not math.isfinite(target):
        return "the baseline diverged"
    needed = _reached(base_steps, base_fit, target)
    if needed <= base_steps[0]:
        return f"the baseline {NO_PROGRESS}"
    gap, got = cand_fit[-1] - target, read_crossing(cand_steps, cand_fit, target)
    if got is not None and got <= cand_steps[0] == 0:
        return "the candidate has the baseline's final score before any training"
    if got is not None:
        return PairReading("at least" if got <= cand_steps[0] else "measured", target, gap, needed, got)
    # Even one more step would have been too many: strictly less than if the last step had done it.
    bound = math.nextafter(needed / last, 0)
    if math.isinf(gap):
        return PairReading("not reached", target, gap, needed, math.inf, bound, bound)
    back = max(1.0, _reached(base_steps, base_fit, cand_fit[-1]))
    own = max(1.0, _reached(cand_steps, cand_fit, cand_fit[-1]))
    return PairReading("not reached", target, gap, needed, math.inf, min(bound, back / own), min(bound, back / last))


def _reached(steps: Sequence[float], fit: Sequence[float], target: float) -> float:
    """`read_crossing` of a curve that is known to end at or below the target."""
    crossing = read_crossing(steps, fit, target)
    assert crossing is not None, "a non-increasing curve reaches what it ends on"
    return crossing
