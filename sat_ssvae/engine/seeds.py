"""Random numbers as functions of a place in a run, so that an interrupted run needs no generator's state.

noise = torch.randn(shape, generator=generator(seed, NOISE, rank, step))
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


def generator(*place: int) -> torch.Generator:
    """A CPU generator for a place: the run's seed, the purpose, and rank, step or epoch; none negative."""
    return torch.Generator().manual_seed(_seed(place))


@contextlib.contextmanager
def seeded(*place: int) -> Iterator[None]:
    """Run the block with PyTorch's global CPU generator seeded for a place; its state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(place))
        yield


def _seed(place: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
