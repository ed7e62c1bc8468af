"""How much of the training time is spent waiting for data."""

import time
from collections.abc import Iterator

from ..data.shards import Batch


class Timer(Iterator[Batch]):
    """Yields batches and measures how long the loop waits for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._begin, self._waited, self._count = time.monotonic(), 0.0, 0

    def __next__(self) -> Batch:
        begin = time.monotonic()
        batch = next(self._batches)
        self._waited += time.monotonic() - begin
        self._count += 1
        return batch

    def lap(self) -> dict[str, float]:
        """Since the last call: seconds per batch, and the share of that time spent waiting for data, 0 to 1."""
        seconds = time.monotonic() - self._begin
        lap = {"batch_seconds": seconds / max(self._count, 1), "data_share": self._waited / seconds}
        self._begin, self._waited, self._count = time.monotonic(), 0.0, 0
        return lap
