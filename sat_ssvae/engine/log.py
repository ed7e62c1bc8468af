"""Logs that survive interruptions: a CSV with declared columns, and JSON lines."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import distributed
from ..errors import UserError
from ..storage import GrowingText, read_json_lines, write_text


class MetricsLog:
    """Append rows that begin with a step, on rank 0 alone. Rows of an interrupted run after `start` are dropped first.

    `columns` are the file's header, `step` first.

    Raises:
        UserError: the file has different columns, or the disk is full.
    """

    def __init__(self, path: Path, columns: Sequence[str], start: int) -> None:
        self.path, self.columns = path, list(columns)
        if distributed.rank() == 0:
            header = dict(zip(self.columns, self.columns, strict=True))
            kept = [row for row in self._read() if int(row["step"]) <= start]
            write_text(path, self._text([header, *kept]), durable=True)
            self._file = GrowingText(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row."""
        if distributed.rank() == 0:
            _append(self._file, self.path, self._text([{"step": step, **values}]))

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns).writerows(rows)
        return text.getvalue()

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != self.columns:
                raise UserError(f"{self.path}: has other columns than this version writes; delete or move it")
            # A killed process may leave an incomplete last line.
            return [row for row in reader if None not in row.values() and row["step"].isdigit()]


class JsonLog:
    """Append lines of JSON that begin with a step; infinite and NaN become null. Otherwise as `MetricsLog`."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        if distributed.rank() == 0:
            kept = [line for line in read_json_lines(path) if line["step"] <= start]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept), durable=True)
            self._file = GrowingText(path)

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Append one line."""
        if distributed.rank() == 0:
            plain = {name: _finite(value) for name, value in values.items()}
            _append(self._file, self.path, json.dumps({"step": step, **plain}) + "\n")


def _append(file: GrowingText, path: Path, line: str) -> None:
    try:
        file.add(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room and give the same command again, it "
            "continues from the last checkpoint"
        ) from None


def _finite(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if math.isfinite(value) else None
