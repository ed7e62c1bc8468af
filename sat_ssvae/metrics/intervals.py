"""The mean of some scores with its bootstrap interval, and what all intervals have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""The coverage of every interval here."""
QUANTILE = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
"""That many standard deviations to each side of a normal estimate."""
MIN_VALUES = 4
"""With fewer, resamples repeat themselves and the interval would be far too narrow."""


def written(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number for people, `−0.03`: with a true minus, and without a sign if it rounds to 0."""
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return (text if text.strip("+-0.") else text.lstrip("+-")).replace("-", "−")


def in_brackets(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """An interval to put behind its value, ` (1.9 to 2.3)`; empty where there is none."""
    return "" if low is None or high is None else f" ({form(low)} to {form(high)})"


@dataclass(frozen=True)
class MeanInterval:
    """Mean of `count` values, with its 95 % interval if there are enough of them."""

    mean: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        return written(self.mean, 3) + in_brackets(self.low, self.high, lambda end: written(end, 3))


def mean_interval(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000) -> MeanInterval:
    """Mean with the percentile bootstrap's interval (Efron 1979): 95 % of the resamples' means lie within it.

    The values must be independent, one per video or pair of videos. Equal seeds give equal intervals.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    mean = float(np.mean(values))
    if len(values) < MIN_VALUES:
        return MeanInterval(mean, None, None, len(values))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // len(values)),  # memory stays small however many values there are
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return MeanInterval(mean, float(interval.low), float(interval.high), len(values))
