"""The lines of a CSV file with quotes that are not closed mended, so that none of them swallows the rows behind it.

rows = csv.DictReader(mended_lines(text, ","), delimiter=",", skipinitialspace=True)
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from .containers import VIDEO_SUFFIXES
from .images import IMAGE_SUFFIXES

_LONGEST = 64  # lines of a caption in quotes
_NAMES_A_FILE = re.compile(
    rf'\s*"?[^\n,;\t|"]+({"|".join(map(re.escape, sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES)))})"?\s*[,;\t|]',
    re.IGNORECASE,
)
"""The beginning of a row, which no caption has inside."""


def mended_lines(text: str, delimiter: str) -> Iterator[str]:
    """The lines of a table; of a row with a quote that is not closed, or not at a cell's end, its cells anew.

    Such a row ends at the end of its line. A cell in quotes may have several lines as long as none begins another row.
    """
    lines = io.StringIO(text, newline="").readlines()
    while lines and not lines[-1].strip():
        lines.pop()
    columns = len(next(_reader(lines[:1], delimiter, strict=False), []))
    place = 0
    while place < len(lines):
        count = _lines_of_row(lines, place, delimiter) if '"' in lines[place] else 1
        if count:
            yield from lines[place : place + count]
        else:
            yield _quoted(_cells(lines[place], delimiter, columns), delimiter)
        place += count or 1


def _reader(lines: Iterable[str], delimiter: str, *, strict: bool) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _lines_of_row(lines: Sequence[str], place: int, delimiter: str) -> int:
    """How many lines the row has that begins at `place`; 0 if its quotes are not right."""
    taken = 0

    def more() -> Iterator[str]:
        nonlocal taken
        for line in lines[place : place + _LONGEST]:
            if taken and _NAMES_A_FILE.match(line):
                return
            taken += 1
            yield line

    try:
        next(_reader(more(), delimiter, strict=True), None)
    except csv.Error:
        return 0
    return taken


def _cells(line: str, delimiter: str, columns: int) -> list[str]:
    """The cells of a row by its delimiters alone if these are as many as columns, else by the quotes that are right."""
    plain = [cell.strip() for cell in line.rstrip("\r\n").split(delimiter)]
    if len(plain) == columns:
        return [_without_lone_quote(cell) for cell in plain]
    return [cell.strip() for cell in next(_reader([line], delimiter, strict=False), [])]


def _without_lone_quote(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        cell = cell[1:-1]
    elif cell.count('"') % 2:
        cell = cell.removeprefix('"') if cell.startswith('"') else cell.removesuffix('"')
    return cell.replace('""', '"')


def _quoted(cells: Sequence[str], delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return file.getvalue()
