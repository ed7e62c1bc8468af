"""The engines that run a job; its result does not depend on the engine.

for item, result in run_job(job, items, config, "packing clips", "clip", done=done):
...                                                     # as they finish, in any order
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..progress import progress_bar
from .isolation import in_order
from .job import Advance, Item, Job
from .settings import JobConfig

T = TypeVar("T")
R = TypeVar("R")


def run_locally(job: Job[T, R], items: Sequence[Item[T]], advance: Advance) -> Iterator[tuple[Item[T], R]]:
    """Items with their results, in order, from this process and those that the job itself starts."""
    with job.open(None) as work:
        if job.overlap == 1:
            for item in items:
                yield item, work(item.load, advance)
            return
        with ThreadPoolExecutor(job.overlap) as threads:
            results = in_order(threads, lambda item: work(item.load, advance), items, job.overlap)
            yield from zip(items, results, strict=True)


def run_job(
    job: Job[T, R], items: Sequence[Item[T]], config: JobConfig, title: str, unit: str, done: int = 0
) -> Iterator[tuple[Item[T], R]]:
    """Items with their results as they finish, with a progress bar over all workers.

    `title` and `unit` (singular) are the bar's; `done`: units done by an earlier run.

    Raises:
        UserError: a worker's; no Ray, or no cluster at the address.
    """
    if not items:
        return
    lock, waiting = threading.Lock(), config.engine == "ray"
    with progress_bar(done + sum(item.units for item in items), title, unit, initial=done) as bar:

        def advance(units: int) -> None:
            nonlocal waiting
            with lock:
                if waiting:  # the start of a cluster's workers does not count for the rate
                    bar.unpause()
                    waiting = False
                bar.update(units)

        if config.engine == "local":
            yield from run_locally(job, items, advance)
        else:
            from .ray_engine import run_on_ray

            yield from run_on_ray(config.ray_address, job, items, advance)
