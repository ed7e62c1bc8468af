"""Logs that survive interruptions: a CSV with declared columns, from which curves are drawn, and lines of JSON."""

import contextlib
import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from .. import distributed
from ..errors import UserError
from ..storage import atomic, write_text


class MetricsLog:
    """Append rows that begin with a step. Rows after `start`, which an interrupted run left, are dropped first.

    Only rank 0 writes.

    Args:
        path: the CSV file.
        columns: its header, `step` first.
        start: the step from which the run continues.

    Raises:
        UserError: the file has other columns, or the disk is full.
    """

    def __init__(self, path: Path, columns: Sequence[str], start: int) -> None:
        self.path = path
        self.columns = list(columns)
        self._file = None
        if distributed.rank() != 0:
            return
        kept = [row for row in self._read() if int(row["step"]) <= start]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path, durable=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self.columns)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row and flush it."""
        if self._file is not None:
            with _room_for(self.path):
                self._writer.writerow({"step": step, **values})
                self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            _close(self._file)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != self.columns:
                raise UserError(f"{self.path}: has other columns than this version writes; delete or move it")
            # A killed process may leave half a line at the end.
            return [row for row in reader if None not in row.values() and row["step"].isdigit()]


class JsonLog:
    """Append lines of JSON that begin with a step; infinite and NaN become null. Otherwise as `MetricsLog`."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self._file = None
        if distributed.rank() != 0:
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # A killed process may leave half a line at the end.
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= start]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(kept), durable=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Append one line and flush it."""
        if self._file is not None:
            plain = {name: _finite(value) for name, value in values.items()}
            with _room_for(self.path):
                self._file.write(json.dumps({"step": step, **plain}) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            _close(self._file)

    def __enter__(self) -> "JsonLog":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@contextlib.contextmanager
def _room_for(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room and give the same command again, it continues "
            "from the last checkpoint"
        ) from None


def _close(file: TextIO) -> None:
    # Every row was flushed. A row that could not be written was reported then, and would fail again here.
    with contextlib.suppress(OSError):
        file.close()


def _finite(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if math.isfinite(value) else None
