"""The packer's input (a folder, a CSV or a list) as a list of files with captions and time ranges."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import cast

from ..addresses import copy_files, files_at, is_address, path_of
from ..errors import UserError
from .caption_fields import (
    PATH_KEYS,
    TEXT_SUFFIXES,
    Fields,
    clips_in,
    csv_fields,
    decoded_text,
    fields_in,
    part_of,
    span_of,
)
from .caption_tables import PARQUET, ROW_PER_CLIP, TABLE_SUFFIXES, has_too_many, table_rows
from .captions import CaptionFinder
from .containers import VIDEO_SUFFIXES
from .folders import files_below
from .images import IMAGE_SUFFIXES
from .skips import printable

SIDECAR_SUFFIXES = frozenset(
    {".json", ".jsonl", ".ndjson", ".md", PARQUET, *TABLE_SUFFIXES, *(f".{name}" for name in TEXT_SUFFIXES)}
)
_NO_VIDEOS = SIDECAR_SUFFIXES - TABLE_SUFFIXES


@dataclass(frozen=True)
class PackItem:
    """A file, or its part from `start` to `end` seconds; `id` names it in the shards and in skipped.jsonl.

    `fields` are further values for its line of the meta file.
    """

    path: Path
    id: str
    caption: str = ""
    start: float = 0.0
    end: float | None = None
    fields: Fields = field(default_factory=dict)
    size: int | None = None
    """Bytes, where they are known from a listing."""

    @property
    def source(self) -> str:
        """`id`, with the start where it is a part."""
        return self.id if self.start == 0 and self.end is None else f"{self.id}@{self.start:.3f}"


def pack_items(inputs: Path | Sequence[Path | PackItem], output: Path) -> list[PackItem]:
    """The inputs of `pack` with their captions, in a fixed order, without what is inside `output`.

    Raises:
        UserError: no such file or folder, a malformed CSV, a folder that is the output's, too, videos.txt and
            prompts.txt of different lengths.
    """
    finders: dict[Path, CaptionFinder] = {}
    every = inputs if isinstance(inputs, Sequence) else [inputs]
    lists = [given for given in every if not isinstance(given, PackItem) and given.suffix.lower() in _NO_VIDEOS]
    if lists and len(lists) == len(every):
        raise UserError(f"{lists[0]}: give the folder that it lies in, or a CSV file (path, caption, start, end)")
    return [
        item
        for given in every
        for item in ([given] if isinstance(given, PackItem) else _items_of(given, output, finders))
    ]


def _items_of(given: Path, output: Path, finders: dict[Path, CaptionFinder]) -> Iterator[PackItem]:
    """The files of one input; `finders` are those of folders of which files were given by name."""
    if is_address(given):
        yield from _items_at(given, output)
    elif given.is_dir():
        yield from _folder_items(given, output)
    elif not given.exists():
        raise UserError(f"{given}: no such file or folder")
    elif given.suffix.lower() in TABLE_SUFFIXES:
        yield from _csv_items(given, given.parent)
    else:
        finder = finders.setdefault(given.parent, CaptionFinder(given.parent))
        yield _item(given, given.name, finder.fields(given))


def _items_at(place: Path, output: Path) -> Iterator[PackItem]:
    """The files of an object store: captions are found in a copy of the small files that lie beside the videos."""
    try:
        if place.suffix.lower() in TABLE_SUFFIXES:
            with TemporaryDirectory(prefix="sat-ssvae-") as scratch:
                table = Path(scratch, place.name)
                table.write_bytes(place.read_bytes())
                yield from _csv_items(table, place.parent)
            return
        folder, files = place, files_at(str(place))
        if not files and place.is_file():
            folder, files = place.parent, [(place.name, place.stat().st_size)]
        if not files:
            raise UserError(f"{place}: no such file or folder")
        if str(place).rstrip("/") == str(output).rstrip("/"):
            raise UserError(f"{output}: shards need a folder of their own, which may lie in that of the videos")
        with TemporaryDirectory(prefix="sat-ssvae-") as scratch:
            copy_files(str(folder), [name for name, _ in files if _suffix(name) in SIDECAR_SUFFIXES], Path(scratch))
            for name in (name for name, _ in files if _suffix(name) in VIDEO_SUFFIXES | IMAGE_SUFFIXES):
                Path(scratch, name).parent.mkdir(parents=True, exist_ok=True)
                Path(scratch, name).touch()  # a row whose own video is there counts for no other one
            finder = CaptionFinder(Path(scratch))
            for name, size in files:
                path = folder / name
                if _suffix(name) not in SIDECAR_SUFFIXES and not f"{path}/".startswith(f"{output}/"):
                    yield replace(_item(path, name, finder.fields(Path(scratch, name))), size=size)
    except OSError as error:
        raise UserError(f"{error.filename or place}: {error.strerror or error}") from None


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _item(path: Path, name: str, fields: Fields, start: float = 0.0, end: float | None = None) -> PackItem:
    further = {name: value for name, value in fields.items() if name != "caption"}
    return PackItem(path, printable(name), fields.get("caption", ""), start, end, further)


def _folder_items(folder: Path, output: Path) -> Iterator[PackItem]:
    inside = None if is_address(output) else Path(os.path.relpath(output.resolve(), folder.resolve()))
    if inside == Path():
        raise UserError(f"{output}: shards need a folder of their own, which may lie in that of the videos")
    finder = CaptionFinder(folder)
    for path in sorted(files_below(folder)):
        if path.suffix.lower() not in SIDECAR_SUFFIXES and not (
            inside is not None and path.relative_to(folder).is_relative_to(inside)
        ):
            yield _item(path, str(path.relative_to(folder)), finder.fields(path))


def _csv_items(table: Path, folder: Path) -> Iterator[PackItem]:
    """The rows of a table, whose paths are relative to a folder, or addresses."""
    try:
        rows = table_rows(decoded_text(table.read_bytes()))
        if not any(name in PATH_KEYS for name in csv_fields(dict.fromkeys(rows.fieldnames or (), "-"))):
            raise UserError(f"{table}: the first line must name a column `path` (and caption, start, end, or others)")
        finder = CaptionFinder(table.parent, leave_out=table)
        parts: dict[str, str] = {}  # of each path, what its first row says of its part
        for row in rows:
            yield _csv_item(folder, row, f"{folder / table.name}, line {rows.line_num}", finder, parts)
    except csv.Error as error:
        raise UserError(f"{table}: not a CSV file ({error})") from None


def _csv_item(
    folder: Path, row: Mapping[str | None, str], place: str, finder: CaptionFinder, parts: dict[str, str]
) -> PackItem:
    if has_too_many(row):
        raise UserError(f"{place}: expected at most one value per column (quote captions with commas)")
    cells = csv_fields(cast(Mapping[str, str], row))
    if clips_in(cells):
        raise UserError(f"{place}: it lists {clips_in(cells)} clips of a video; {ROW_PER_CLIP}")
    written = next((str(cells[name]) for name in PATH_KEYS if name in cells), "")
    if not written:
        raise UserError(f"{place}: there is no path")
    try:
        start, end = span_of(cells)
    except ValueError:
        raise UserError(f"{place}: start and end must be seconds or hours:minutes:seconds") from None
    if not start and end is None and part_of(cells) != parts.setdefault(written, part_of(cells)):
        raise UserError(f"{place}: another part of {written}; give its seconds in columns `start` and `end`")
    start = start or 0.0
    if not 0 <= start < (end if end is not None else float("inf")):
        raise UserError(f"{place}: start {start} must be at least 0 and below end {end}")
    path = path_of(written) if "://" in written else folder / written
    if "\\" in written and not is_address(path) and not path.exists():  # as Windows writes it
        path = folder / written.replace("\\", "/")
    beside = {} if is_address(path) else finder.fields(path)
    return _item(path, written, beside | fields_in(cells), start, end)
