"""Which timestep shift suits an arm's latents: the same small search for every arm.

    shift = best_shift({1.0: scores, 2.0: others})       # scores: final sample distances by metric

At the same t, noise hides less of standardised latents with a steep spectrum than of those with a flat one, so a
schedule that suits one arm may not suit another. Each arm tries `CompareConfig.shifts` with transformers of a seed that
is used for nothing else.

The rule: rank the shifts by each distance of the samples decoded at the last evaluation; the smallest sum of ranks
wins, and among equals the shift that changes least.

    against = shift_comparison(results, "stock", {1.0: curves, 3.0: others}, seed)

shows what a shift alone does: one arm's latents and initial transformer under all shifts, as a comparison of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .results import ArmResult, ComparisonResults, CurvePoint
from .wording import describe


def best_shift(scores: Mapping[float, Mapping[str, float]]) -> float:
    """The winner among final scores by shift and metric; only sample distances count.

    Raises:
        ValueError: there is nothing to choose from.
    """
    metrics = [name for name in next(iter(scores.values()), {}) if describe(name).group == "samples"]
    if not metrics:
        raise ValueError("no shift with a distance of samples")

    def rank(shift: float) -> int:
        return sum(other[name] < scores[shift][name] for name in metrics for other in scores.values())

    return min(scores, key=lambda shift: (rank(shift), abs(math.log(shift))))


def shift_comparison(
    results: ComparisonResults, arm: str, curves: Mapping[float, Sequence[CurvePoint]], seed: int
) -> ComparisonResults:
    """An arm's search as a comparison whose arms are the shifts; the baseline is the one that changes least.

    `curves`: evaluations of each shift's transformer; `seed`: of these transformers.
    """
    shifts = sorted(curves, key=lambda shift: abs(math.log(shift)))
    found = results.arm(arm)

    def under(shift: float) -> ArmResult:
        training = {**found.training, "timestep shift": shift}
        return replace(found, name=f"{arm}, shift {shift:g}", training=training, reconstruction_difference={})

    points = [replace(point, arm=under(shift).name) for shift in shifts for point in curves[shift]]
    return replace(
        results,
        arms=tuple(under(shift) for shift in shifts),
        curves=tuple(points),
        seeds=(seed,),
        vae_seeds=results.vae_seeds[:1],
        warnings=(f"The same latents of {arm} under several timestep shifts: what differs is the schedule alone.",),
    )
