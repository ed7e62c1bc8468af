"""Which timestep shift suits an arm's latents: the same small search for every arm.

    shift = best_shift({1.0: scores, 2.0: others})       # scores: final sample distances by metric

Standardised latents with a steep spectrum are at another noise level for the same t than those with a flat one, so a
schedule that suits one arm may not suit another. Each arm tries `CompareConfig.shifts` with transformers of a seed that
serves nothing else.

The rule: rank the shifts by each distance of the samples decoded at the last evaluation; the smallest sum of ranks
wins, and of equal ones the shift that changes least.
"""

import math
from collections.abc import Mapping

from .verdict import describe


def best_shift(scores: Mapping[float, Mapping[str, float]]) -> float:
    """The winner by shift -> metric -> final score; other metrics than sample distances do not count.

    Raises:
        ValueError: there is nothing to choose from.
    """
    metrics = [name for name in next(iter(scores.values()), {}) if describe(name).group == "samples"]
    if not metrics:
        raise ValueError("no shift with a distance of samples")

    def rank(shift: float) -> int:
        return sum(other[name] < scores[shift][name] for name in metrics for other in scores.values())

    return min(scores, key=lambda shift: (rank(shift), abs(math.log(shift))))
