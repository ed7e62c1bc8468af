"""What the packer is given: a folder, a CSV or a list, as a list of files with captions and time ranges."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .skips import printable

SIDECAR_SUFFIXES = frozenset({".txt", ".json", ".jsonl", ".csv", ".md"})


@dataclass(frozen=True)
class PackItem:
    """A file, or its part from `start` to `end` seconds; `id` names it in the shards and in skipped.jsonl."""

    path: Path
    id: str
    caption: str = ""
    start: float = 0.0
    end: float | None = None


def list_items(inputs: Path | Sequence[Path | PackItem], output: Path) -> list[PackItem]:
    """The inputs of `pack`, in a fixed order, without what lies in `output`.

    Raises:
        UserError: no such file or folder, a malformed CSV, a folder that is the output's, too.
    """
    if isinstance(inputs, Path):
        if inputs.is_dir():
            return list(_folder_items(inputs, output))
        if not inputs.exists():
            raise UserError(f"{inputs}: no such file or folder")
        if inputs.suffix.lower() == ".csv":
            return list(_csv_items(inputs))
        return [PackItem(inputs, inputs.name)]
    return [
        item for given in inputs for item in ([given] if isinstance(given, PackItem) else list_items(given, output))
    ]


def _folder_items(folder: Path, output: Path) -> Iterator[PackItem]:
    inside = Path(os.path.relpath(output.resolve(), folder.resolve()))
    if inside == Path():
        raise UserError(f"{output}: shards need a folder of their own, which may lie in that of the videos")
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if path.suffix.lower() in SIDECAR_SUFFIXES or path.relative_to(folder).is_relative_to(inside):
            continue
        sidecar = path.with_suffix(".txt")
        caption = sidecar.read_text(errors="replace").strip() if sidecar.is_file() else ""
        yield PackItem(path, printable(str(path.relative_to(folder))), caption)


def _csv_items(table: Path) -> Iterator[PackItem]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            known = {"path", "caption", "start", "end"}
            if rows.fieldnames is None or "path" not in rows.fieldnames or not known.issuperset(rows.fieldnames):
                raise UserError(f"{table}: the first line must name the columns path[,caption][,start][,end]")
            for row in rows:
                yield _csv_item(table, row, f"{table}, line {rows.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a CSV file in UTF-8 ({error})") from None


def _csv_item(table: Path, row: Mapping[str | None, str], place: str) -> PackItem:
    if None in row or not row["path"]:
        raise UserError(f"{place}: expected a path and at most one value per column (quote captions with commas)")
    try:
        start = float(row.get("start") or 0)
        end = float(row["end"]) if row.get("end") else None
    except ValueError:
        raise UserError(f"{place}: start and end must be seconds") from None
    if not 0 <= start < (end if end is not None else float("inf")):
        raise UserError(f"{place}: start {start} must be at least 0 and below end {end}")
    return PackItem(table.parent / row["path"], printable(row["path"]), row.get("caption") or "", start, end)
