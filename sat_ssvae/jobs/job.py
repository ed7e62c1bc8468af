"""What a job is: items, and what to do with one, on whichever machine.

An item's result depends on the item alone, so neither the engine, nor the number of workers, nor a worker that died and
whose item another one took can change it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

Advance = Callable[[int], None]
"""Called by a worker with the number of units (clips, files) that it has done."""


@dataclass(frozen=True)
class Item(Generic[T]):
    """A piece of a job that one worker does as a whole."""

    name: str
    """Unique; decides which part it belongs to."""
    units: int
    """How many clips or files it is, for the progress bar."""
    load: T
    """What the worker needs to know."""


class Job(Protocol[T_contra, R_co]):
    """What there is to do with an item; pickled to the workers of a cluster."""

    @property
    def uses_gpu(self) -> bool:
        """Whether a worker has a GPU to itself, where the cluster has any; else it has some of a machine's cores."""

    @property
    def overlap(self) -> int:
        """Items that a worker does at a time, so that its processes do not wait for the last clip of a shard."""

    def open(self, cpus: int | None) -> AbstractContextManager[Callable[[T_contra, Advance], R_co]]:
        """Get ready for work, once for each worker, on this many cores; None: as the job's own settings say.

        The function works on an item. UserError from it ends the whole job.
        """
        ...
