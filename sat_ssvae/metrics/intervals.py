"""The mean of some scores with its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MIN_VALUES = 4
"""With fewer, resamples repeat themselves and the interval would be far too narrow."""


@dataclass(frozen=True)
class MeanInterval:
    """Mean of `count` values, and the 95 % interval of the mean where there are enough of them."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f}{interval}"


def mean_interval(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000) -> MeanInterval:
    """Percentile bootstrap of the mean (Efron 1979): 95 % of the means of resamples lie between low and high.

    The values must be independent, one a video or one a pair of videos. Equal seeds give equal intervals.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    data = torch.tensor(values, dtype=torch.float64)
    if len(data) < MIN_VALUES:
        return MeanInterval(float(data.mean()), None, None, len(data))
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, 1_000_000 // len(data))  # resamples at once: memory stays small however many values there are
    means = torch.cat(
        [
            data[torch.randint(len(data), (min(rows, resamples - start), len(data)), generator=generator)].mean(1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return MeanInterval(float(data.mean()), low, high, len(data))
