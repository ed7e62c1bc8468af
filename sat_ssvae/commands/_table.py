"""Tables on the terminal and in files."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..storage import write_text


def aligned(rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Rows of equal length as lines of aligned columns, all but the first flush right unless `right` is false."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
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
