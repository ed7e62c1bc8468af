"""What a job is: items, and the work on one of them, on any machine.

An item's result depends on the item alone, so neither the engine, nor the number of workers, nor a worker that dies can
change it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Advance = Callable[[int], None]
"""Called by a worker with the number of units (clips, files) that it has done."""


@dataclass(frozen=True)
class Item(Generic[T]):
    """A piece of a job that one worker does."""

    name: str
    """Unique; decides which part it belongs to."""
    units: int
    """Its number of clips or files, for the progress bar."""
    load: T
    """The worker's input."""


@dataclass(frozen=True)
class Job(Generic[T, R]):
    """The work on an item; pickled to the workers of a cluster."""

    open: Callable[[int | None], AbstractContextManager[Callable[[T, Advance], R]]]
    """Prepares a worker, once, for this many cores; None for the number in the job's own settings. The function that it
    yields works on an item; UserError from it ends the whole job."""
    uses_gpu: bool = False
    """Whether each worker needs a GPU, if the cluster has any; otherwise it gets some of a machine's cores."""
    overlap: int = 1
    """Items that a worker does at once, so that its processes do not wait for the last clip of a shard."""
