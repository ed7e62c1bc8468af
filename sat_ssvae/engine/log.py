"""Logs that survive interruptions: a CSV with declared columns, and JSON lines."""

import contextlib
import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from .. import distributed
from ..errors import UserError
from ..storage import atomic, read_json_lines, write_text

L = TypeVar("L", bound="_StepLog")


class _StepLog:
    """A file with one line per step, on rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def close(self) -> None:
        # Every row was flushed. A failed write was reported then, and would fail again here.
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def __enter__(self: L) -> L:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _flushed(self, file: TextIO) -> Iterator[None]:
        try:
            yield
            file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room and give the same command again, it "
                "continues from the last checkpoint"
            ) from None


class MetricsLog(_StepLog):
    """Append rows that begin with a step. Rows of an interrupted run after `start` are dropped first.

    `columns` are the file's header, `step` first.

    Raises:
        UserError: the file has different columns, or the disk is full.
    """

    def __init__(self, path: Path, columns: Sequence[str], start: int) -> None:
        super().__init__(path)
        self.columns = list(columns)
        if distributed.rank() != 0:
            return
        kept = [row for row in self._read() if int(row["step"]) <= start]
        with atomic(path, durable=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self.columns)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row and flush it."""
        if self._file is not None:
            with self._flushed(self._file):
                self._writer.writerow({"step": step, **values})

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != self.columns:
                raise UserError(f"{self.path}: has other columns than this version writes; delete or move it")
            # A killed process may leave an incomplete last line.
            return [row for row in reader if None not in row.values() and row["step"].isdigit()]


class JsonLog(_StepLog):
    """Append lines of JSON that begin with a step; infinite and NaN become null. Otherwise as `MetricsLog`."""

    def __init__(self, path: Path, start: int) -> None:
        super().__init__(path)
        if distributed.rank() != 0:
            return
        kept = [line for line in read_json_lines(path) if line["step"] <= start]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept), durable=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Append one line and flush it."""
        if self._file is not None:
            plain = {name: _finite(value) for name, value in values.items()}
            with self._flushed(self._file):
                self._file.write(json.dumps({"step": step, **plain}) + "\n")


def _finite(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if math.isfinite(value) else None
