"""Tables on the terminal and in files."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..storage import write_text


def aligned(rows: Sequence[Sequence[str]], *, right: bool = True, most: int | None = None) -> str:
    """Rows of equal length as lines of aligned columns.

    `right`: right-align all columns but the first. `most`: width limit of the columns after the first; a longer
    cell shifts the rest of its line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if most is not None:
        columns = list(zip(*rows, strict=True))[1:]
        widths[1:] = [max(len(cell) for cell in column if len(cell) <= most) for column in columns]
    lines = [
        [
            row[0].ljust(widths[0]),
            *(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width in zip(row[1:], widths[1:], strict=True)
            ),
        ]
        for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines) + "\n"


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as a CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())
