"""Unbiased kernel distance between two sets of feature vectors, with an interval.

    distance = kernel_distance(generated, real)
    low, high = bootstrap_interval(generated, real, seed=0)

The squared maximum mean discrepancy of Gretton et al. (JMLR 2012, lemma 6) with the polynomial kernel of the
Kernel Inception Distance (Binkowski et al., ICLR 2018): k(a, b) = (a.b / D + 1)^3. Unlike a Frechet distance
its expectation does not depend on the number of samples, so the value of a hundred clips can be compared
with that of ten thousand; it may fall below 0 when both sets come from one distribution.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .intervals import MIN_VALUES, QUANTILE

_RESAMPLES_AT_ONCE = 256


class _Gram(NamedTuple):
    """Kernel matrices of two sets, with 0 for a sample and itself."""

    xx: Tensor  # n n
    yy: Tensor  # m m
    xy: Tensor  # n m


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD between features `x` (n, D) and `y` (m, D), n and m at least 2, in float64.

    Raises:
        UserError: fewer than two samples in a set, or features that are not finite.
        ValueError: the shapes do not fit.
    """
    gram = _gram(x, y)
    return float(_weighted_distance(gram, x.new_ones(1, len(x)).double(), x.new_ones(1, len(y)).double()))


def bootstrap_interval(x: Tensor, y: Tensor, *, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """95 % interval (low, high) for the squared MMD between the distributions that `x` and `y` come from.

    Both sets are resampled with replacement. Pairs made of one sample drawn twice are left out of the
    within-set means: a sample is far more similar to itself than to others, so counting them (the naive
    bootstrap) would shift every resample upwards and with it the interval. The interval is the estimate plus
    and minus the normal quantile times the standard deviation over resamples. It is wider than needed when
    both sets come from the same distribution (the bootstrap overstates the spread of a degenerate
    U-statistic, Arcones and Gine 1992) and close to its nominal coverage otherwise. Samples must be
    independent: with clips that overlap in time, or come from one video, the interval is too narrow.

    Equal seeds give equal intervals. `resamples`: at least 2.

    Raises:
        UserError: as `kernel_distance`, or fewer than four samples in a set.
        ValueError: as `kernel_distance`, or a number out of range.
    """
    if resamples < 2:
        raise ValueError(f"need resamples >= 2, got {resamples}")
    distances = bootstrap_distances(x, y, seed=seed, resamples=resamples)
    estimate, margin = kernel_distance(x, y), QUANTILE * float(distances.std())
    return estimate - margin, estimate + margin


def bootstrap_distances(x: Tensor, y: Tensor, *, seed: int = 0, resamples: int = 1000) -> Tensor:
    """The squared MMD under each resample of both sets, (resamples,), as `bootstrap_interval` spreads them.

    Equal seeds and set sizes draw the same samples, so the resamples of several distances belong together.

    Raises:
        UserError: as `kernel_distance`, or fewer than four samples in a set.
        ValueError: as `kernel_distance`.
    """
    gram = _gram(x, y)
    if min(len(x), len(y)) < MIN_VALUES:
        raise UserError(f"an interval needs at least {MIN_VALUES} clips in each set, got {len(x)} and {len(y)}")
    drawn = _draws((len(x), len(y)), seed, resamples)
    return torch.cat([_weighted_distance(gram, of_x.to(x.device), of_y.to(x.device)) for of_x, of_y in drawn])


def bootstrap_counts(sizes: tuple[int, int], *, seed: int = 0, resamples: int = 1000) -> tuple[Tensor, Tensor]:
    """How often each sample of two sets of these sizes is drawn by `bootstrap_distances`, (resamples, size) each."""
    of_x, of_y = zip(*_draws(sizes, seed, resamples), strict=True)
    return torch.cat(of_x), torch.cat(of_y)


def _draws(sizes: tuple[int, int], seed: int, resamples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Counts of some resamples at a time."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, resamples - start)
        first = _resampling_counts(rows, sizes[0], generator)
        yield first, _resampling_counts(rows, sizes[1], generator)


def checked_sets(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features between which there is a distance, in float64; raises as `kernel_distance`."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(f"expected features (n, D) and (m, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(len(x), len(y)) < 2:
        raise UserError(f"a distance needs at least 2 clips in each set, got {len(x)} and {len(y)}")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise UserError("features are not finite: the generated or decoded video holds NaN or infinite pixels")
    return x.double(), y.double()


def _gram(x: Tensor, y: Tensor) -> _Gram:
    x, y = checked_sets(x, y)
    xx, yy, xy = (_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    return _Gram(xx.fill_diagonal_(0), yy.fill_diagonal_(0), xy)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _resampling_counts(rows: int, size: int, generator: torch.Generator) -> Tensor:
    """How often each of `size` samples is drawn, (rows, size); never one sample only."""
    drawn = torch.randint(size, (rows, size), generator=generator)
    while (single := (drawn == drawn[:, :1]).all(1)).any():
        drawn[single] = torch.randint(size, (int(single.sum()), size), generator=generator)
    counts = torch.zeros(rows, size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _weighted_distance(gram: _Gram, weight_x: Tensor, weight_y: Tensor) -> Tensor:
    """Squared MMD (rows,) when sample i counts `weight[., i]` times, over pairs of different samples."""

    def within(kernel: Tensor, weight: Tensor) -> Tensor:
        pairs = weight.sum(1) ** 2 - weight.square().sum(1)
        return ((weight @ kernel) * weight).sum(1) / pairs

    across = ((weight_x @ gram.xy) * weight_y).sum(1) / (weight_x.sum(1) * weight_y.sum(1))
    return within(gram.xx, weight_x) + within(gram.yy, weight_y) - 2 * across
