"""In which order samples are read: the same on all ranks, found without counting from the start.

Which source a batch comes from, in exact shares, and where the samples of a source stand in an epoch.
"""

from collections.abc import Sequence

import numpy as np

PERIOD = 1000
"""Batches after which every source has had its share."""


class Mixture:
    """Batch number -> (source, number of the batch among that source's).

    `weights` are positive; each source gets at least one batch in a period. `seed` decides the order within
    periods, and must be the same on all ranks.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.seed = seed
        self.shares = shares(weights)
        self._period: tuple[int, np.ndarray] | None = None

    def __call__(self, batch: int) -> tuple[int, int]:
        """Where batch number `batch` comes from."""
        period, position = divmod(batch, PERIOD)
        if self._period is None or self._period[0] != period:
            sources = np.repeat(np.arange(len(self.shares)), self.shares)
            self._period = period, np.random.default_rng((self.seed, period)).permutation(sources)
        order = self._period[1]
        source = int(order[position])
        earlier = int(np.count_nonzero(order[:position] == source))
        return source, period * self.shares[source] + earlier


def shares(weights: Sequence[float]) -> list[int]:
    """Batches of each source in a period: proportional to its weight, rounded by largest remainder, never 0."""
    exact = np.asarray(weights, dtype=float) / sum(weights) * PERIOD
    whole = np.floor(exact).astype(int)
    by_remainder = np.argsort(whole - exact, kind="stable")
    whole[by_remainder[: PERIOD - int(whole.sum())]] += 1
    for forgotten in np.flatnonzero(whole == 0):
        whole[forgotten] += 1
        whole[whole.argmax()] -= 1
    return [int(count) for count in whole]


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, shuffle_shards: int) -> np.ndarray:
    """A permutation of all samples: shards in random order, those of `shuffle_shards` neighbours mixed."""
    generator = np.random.default_rng((seed, epoch))
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = generator.permutation(len(shard_sizes))
    blocks = [shards[first : first + shuffle_shards] for first in range(0, len(shards), shuffle_shards)]
    return np.concatenate(
        [
            generator.permutation(np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in block]))
            for block in blocks
        ]
    )
