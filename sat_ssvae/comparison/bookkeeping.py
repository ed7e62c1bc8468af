"""Bookkeeping of a comparison: how long its stages took, on what machine, and what their inputs were."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..data.samples import INDEX_FILE
from ..data.skips import SKIPPED_FILE
from ..storage import write_json


class Stopwatch:
    """Minutes spent in each stage, across interruptions: `with stopwatch("latents"): ...`.

    They are kept in the JSON file `path`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._minutes: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, (time.monotonic() - start) / 60)

    def add(self, stage: str, minutes: float) -> None:
        """Add time that was measured elsewhere."""
        self._minutes[stage] = self._minutes.get(stage, 0.0) + minutes
        write_json(self._path, self._minutes)

    def rounded(self) -> dict[str, float]:
        """Minutes by stage, to two decimals."""
        return {stage: round(minutes, 2) for stage, minutes in self._minutes.items()}


def content(path: Path) -> list[list[Any]]:
    """Name, size and time of each file in a folder (or of a file): changes when clips or weights are replaced.

    Files that `pack` rewrites each time it checks its output do not count.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        [str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file() and file.name not in (SKIPPED_FILE, INDEX_FILE)
    ]


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores and GPU, for the report."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"cpu": cpu, "cores": os.cpu_count() or 1, **gpu, "python": platform.python_version()}
