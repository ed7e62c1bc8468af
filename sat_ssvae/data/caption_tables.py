"""Tables of captions: rows of JSON, JSON lines, CSV, TSV and Parquet, COCO's two lists, videos.txt with prompts.txt."""

import csv
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from ..errors import UserError
from .caption_fields import (
    ID_KEYS,
    PATH_KEYS,
    URL_KEYS,
    Fields,
    by_known_key,
    caption_in,
    clips_in,
    composed,
    csv_fields,
    decoded_text,
    fields_in,
    known_key,
    part_of,
    text_of,
    with_caption,
)
from .containers import VIDEO_SUFFIXES
from .csv_lines import mended_lines
from .images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
PARQUET = ".parquet"
_BYTES = ("BYTE_ARRAY", "NONE")  # Parquet's types of a column of bytes that are no text
ROW_PER_CLIP = "give a CSV file of a line per clip (path, caption, start, end in seconds) to `sat-ssvae pack`"
UNREADABLE = (OSError, ValueError, RecursionError, NotImplementedError, csv.Error)
"""What reading a table may raise."""
_PART = "\0part"  # a field that no table has: what `part_of` says of a row
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")
_FEW = 8  # tables; of more, such as a JSON file for each of many videos that are gone, not all are asked for each video
_SHOWN = 200  # characters of the columns' names in a message


def table_rows(text: str) -> "csv.DictReader[str]":
    """The rows of a CSV or TSV file, whose cells commas, semicolons, tabs or bars separate.

    A first line `sep=;`, by which Excel is told of the separator, is none of them.
    """
    text = text.lstrip("\r\n")
    head, _, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=(.)"?\s*', head)
    delimiter = told[1] if told else max(",;\t|", key=head.count)
    lines = mended_lines(rest if told else text, delimiter)
    return csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)


def has_too_many(row: Mapping[Any, Any]) -> bool:
    """Whether a row of `table_rows` has more values than columns; empty ones behind a last comma do not count."""
    return any(row.get(None) or ())


class Table:
    """A table in `folder`: fields by path."""

    def __init__(self, folder: Path, rows: Iterable[tuple[str, Fields]]) -> None:
        self._folder = folder
        self._by_path: dict[str, Fields] = {}
        self._by_name: dict[str, str | None] = {}
        parts: dict[str, tuple[str, str]] = {}
        self.cut: set[str] = set()
        """Paths of which rows describe several parts: none of their captions is that of the whole."""
        for written, fields in rows:
            path = composed(written.replace("\\", "/"))  # Windows writes the first
            path = os.path.normpath(os.path.relpath(path, folder) if Path(path).is_absolute() else path)
            part, caption = fields.pop(_PART, ""), fields.get("caption", "")
            if part and caption:
                first = parts.setdefault(path, (part, caption))
                self.cut |= {path} if part != first[0] and caption != first[1] else set()
            self._by_path[path] = {**fields, **self._by_path.get(path, {})}  # of several rows, the first
            for name in _names_of(path):
                self._by_name[name] = path if self._by_name.get(name, path) == path else None
        self._by_path |= {path: {} for path in self.cut}

    def names(self) -> Iterable[str]:
        """The names of its paths, with and without suffix."""
        return self._by_name

    def fields(self, video: Path, *, by_name: bool) -> Fields:
        """The row with the video's path; else, with `by_name`, the only row of its name whose own path has no file."""
        path = composed(os.path.relpath(video, self._folder))
        for written in (path, str(Path(path).with_suffix(""))):
            if written in self._by_path:
                return self._by_path[written]
        for name in _names_of(path) if by_name else ():
            written = self._by_name.get(name) or ""
            if written and not (self._folder / written).exists():
                return self._by_path[written]
        return {}


def _names_of(path: str) -> tuple[str, ...]:
    """What tells a file from others: its folder and name, its name, its name without the suffix."""
    parts = Path(path).parts
    return (*(["/".join(parts[-2:])] if len(parts) > 1 else []), *dict.fromkeys((parts[-1], Path(path).stem)))


class Tables:
    """The tables in a folder: what all of them say of a video, the first of those that contradict each other."""

    def __init__(self, folder: Path, leave_out: Path | None) -> None:
        self._tables = list(_read_tables(folder, leave_out))
        self._having: dict[str, list[int]] = {}  # numbers of the tables that have a name
        if len(self._tables) > _FEW:
            for number, table in enumerate(self._tables):
                for name in table.names():
                    self._having.setdefault(name, []).append(number)

    def fields(self, video: Path, *, by_name: bool) -> Fields:
        """See `Table.fields`."""
        fields: Fields = {}
        numbers: Iterable[int] = range(len(self._tables))
        if len(self._tables) > _FEW:
            name = Path(composed(video.name))
            numbers = sorted({*self._having.get(name.name, ()), *self._having.get(name.stem, ())})
        for number in numbers:
            fields = {**self._tables[number].fields(video, by_name=by_name), **fields}
        return fields


_OF_OURS = re.compile(r"(unified_reward_v\d|reconstruction\.|restoration\.|score\.|skipped|.*\.meta\.jsonl)")
"""Beginnings of the names of tables that our own commands write beside videos or shards."""


def _read_tables(folder: Path, leave_out: Path | None) -> Iterator[Table]:
    """The tables in a folder, in order of precedence."""
    videos = folder / "videos.txt"
    names = ("prompts.txt", "prompt.txt", "captions.txt")
    prompts = next((path for name in names if (path := folder / name).is_file()), None)
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []
    media = {path.stem for path in files if _is_media(path)}
    tables = [path for path in files if is_table(path) and not _OF_OURS.match(path.name)]
    if packed := [path for path in files if path.suffix.lower() in _PACKED and is_table(path.with_suffix(""))]:
        logger.warning("%s: no captions from it, it is compressed; unpack it", packed[0])
    for path in sorted(tables, key=lambda path: (path.stem != "metadata", list(_KINDS).index(path.suffix.lower()))):
        sidecar = path.suffix.lower() == ".json" and path.stem != "metadata" and path.stem in media
        if not sidecar and path.is_file() and not (leave_out and leave_out.samefile(path)):
            try:
                table = Table(folder, table_captions(path))
            except UNREADABLE as error:
                logger.warning("%s: no captions from it, it cannot be read (%s)", path, error)
                continue
            if table.cut:
                text = "%s: no captions of %d videos, since it lists several parts of each; %s"
                logger.warning(text, path, len(table.cut), ROW_PER_CLIP)
            yield table
    if prompts is not None and videos.is_file():
        yield Table(folder, _paired_lines(videos, prompts))


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table."""
    return path.suffix.lower() in _KINDS


def table_captions(path: Path) -> Iterable[tuple[str, Fields]]:
    """What a table says of each path in it; raises one of `UNREADABLE`."""
    return _KINDS[path.suffix.lower()](path)


def _json_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """A row, a list of rows, or an object of lists of them, or of fields or captions by path; else JSON lines."""
    text = text_of(path.read_bytes())
    try:
        content = json.loads(text)
    except ValueError:
        yield from _json_lines(path, text)
        return
    content = _rows_of_columns(content) or content
    if not isinstance(content, dict):
        yield from _with_paths(path, content if isinstance(content, list) else [])
        return
    rows = [*_row(content), *_annotated(content)]
    yield from rows or ((str(name), fields_in(value)) for name, value in content.items())
    for values in content.values():
        for row in _single(path, values if isinstance(values, list) else [values]):
            yield from _rows_in(row)


def _rows_of_columns(content: object) -> list[Fields]:
    """The rows of an object of columns (lists, or objects by row as pandas writes them), one of which has paths."""
    if not isinstance(content, dict) or not {known_key(name) for name in content} & {*PATH_KEYS, *ID_KEYS}:
        return []
    columns = [list(values.values()) if isinstance(values, dict) else values for values in content.values()]
    if not all(isinstance(values, list) for values in columns) or len(set(map(len, columns))) != 1:
        return []
    return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]


def _annotated(content: Mapping[str, Any]) -> Iterator[tuple[str, Fields]]:
    """Captions in COCO's way: a list of files with numbers, and one of captions with the files' numbers."""
    lists = {
        name: [row for row in rows if isinstance(row, dict)] for name, rows in content.items() if isinstance(rows, list)
    }
    for kind in ("image", "video"):
        listed = [row for row in lists.get(f"{kind}s", []) if "id" in row]
        files = {
            str(row["id"]): _path_in(row) or row.get("name") or next((path for path, _ in _row(row)), None)
            for row in listed
        }
        for row in lists.get("annotations", []):
            path = files.get(str(row.get(f"{kind}_id")))
            if path and caption_in(row):
                yield str(path), with_caption({}, caption_in(row))


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Fields]]:
    broken, rows = 0, []
    for line in text.split("\n"):
        try:
            rows.append(json.loads(line) if line.strip() else {})
        except (ValueError, RecursionError):
            broken += 1
    yield from _with_paths(path, rows)
    if broken:
        logger.warning("%s: %d lines are not JSON, they give no captions", path, broken)


def _csv_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    rows = list(table_rows(decoded_text(path.read_bytes())))
    whole = [csv_fields(row) for row in rows if not has_too_many(row)]
    yield from _with_paths(path, whole)
    if broken := len(rows) - len(whole):  # a caption with a comma and no quotes
        logger.warning("%s: %d lines have more values than columns, they give no captions", path, broken)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """The rows of a Parquet file, without columns of bytes: some have the videos themselves there."""
    from pyarrow import parquet  # slow to import

    file = parquet.ParquetFile(path)
    columns = [column.path for column in file.schema if (column.physical_type, column.logical_type.type) != _BYTES]
    rows = file.read(columns=columns).to_pylist()
    yield from _with_paths(path, json.loads(json.dumps(rows, default=str)))  # dates and the like as text


_KINDS: Mapping[str, Callable[[Path], Iterable[tuple[str, Fields]]]] = MappingProxyType(
    {
        **dict.fromkeys((".jsonl", ".ndjson", ".json"), _json_rows),
        **dict.fromkeys(sorted(TABLE_SUFFIXES), _csv_rows),
        PARQUET: _parquet_rows,
    }
)


def _with_paths(path: Path, rows: Sequence[Any]) -> Iterator[tuple[str, Fields]]:
    """The rows of a table that name a video; a warning where all lack that."""
    named = [pair for row in _single(path, rows) for pair in _rows_in(row)]
    unnamed = next((row for row in rows if isinstance(row, dict) and (caption_in(row) or _is_headless(row))), None)
    if unnamed and not named:
        columns = ", ".join(map(str, unnamed))
        logger.warning(
            "%s: no captions from it, none of its columns is `path` or `video_id`: %s", path, columns[:_SHOWN]
        )
    yield from named


def _single(path: Path, rows: Sequence[Any]) -> list[Any]:
    """The rows without those of several clips, which a warning counts."""
    single = [row for row in rows if not isinstance(row, dict) or not clips_in(by_known_key(row))]
    if several := len(rows) - len(single):
        text = "%s: no captions from %d lines, which list several clips of a video; %s"
        logger.warning(text, path, several, ROW_PER_CLIP)
    return single


def _is_headless(row: Mapping[Any, Any]) -> bool:
    """Whether a CSV file has no line of names, but one of a file where that should be."""
    return any(re.fullmatch(r"\S*\.(?=\w*[A-Za-z])\w{2,4}", str(key)) for key in row)


def _paired_lines(videos: Path, prompts: Path) -> Iterator[tuple[str, Fields]]:
    names, captions = (_lines(path) for path in (videos, prompts))
    while names and not names[-1] and len(names) > len(captions):
        names.pop()
    while captions and not captions[-1] and len(captions) > len(names):
        captions.pop()
    if len(names) != len(captions):
        raise UserError(
            f"{videos} has {len(names)} lines and {prompts.name} {len(captions)}: line N of one belongs to line N of "
            "the other; repair or move them"
        )
    yield from ((name, with_caption({}, caption)) for name, caption in zip(names, captions, strict=True) if name)


def _lines(path: Path) -> list[str]:
    """The lines of a text file; the last one may end in a line break."""
    return [line.strip() for line in decoded_text(path.read_bytes()).removesuffix("\n").split("\n")]


def _rows_in(value: object, depth: int = 2) -> Iterator[tuple[str, Fields]]:
    """The row that an object is, else those inside of it: Vript has a video's clips in an object of objects."""
    rows = list(_row(value))
    inside = value.values() if isinstance(value, dict) and depth and not rows else ()
    yield from rows or (row for item in inside for row in _rows_in(item, depth - 1))


def _row(row: object) -> Iterator[tuple[str, Fields]]:
    if isinstance(row, dict):
        known = by_known_key(row)
        path = next((found for key in (*PATH_KEYS, "videos") if (found := _path_in(known.get(key)))), "")
        named = str(known.get("name") or "")
        if not path and (caption_in(row) or _is_media(Path(named))):
            path = named
        # `id` numbers the captions where another column names the images, and `clip_id` may number a video's clips.
        keys = ID_KEYS if "image_id" in known else (*ID_KEYS, "id")
        keys = keys[1:] + keys[:1] if str(known.get(keys[0], "")).isdigit() else keys
        name = next((str(known[key]) for key in keys if known.get(key) not in (None, "")), "")
        address = next((str(known[key]) for key in URL_KEYS if known.get(key)), "")
        part = {_PART: part_of(known)}
        if path:
            yield _without_query(path) if "://" in path else path, fields_in(row) | part
        elif name:
            captioned = row if caption_in(row) else {("caption" if key == "name" else key): row[key] for key in row}
            yield name, fields_in(captioned) | part
        elif address:
            yield _without_query(address), fields_in(row) | part


def _path_in(value: object) -> str:
    """A path, the path of an object, or the only one in a list."""
    if isinstance(value, dict):
        return next((str(value[key]) for key in PATH_KEYS if value.get(key)), "")
    if isinstance(value, list):
        return value[0] if len(value) == 1 and isinstance(value[0], str) else ""
    return str(value or "")


def _without_query(address: str) -> str:
    """An address up to the end of the file's name; the folders before tell files of the same name apart."""
    return unquote(address.partition("?")[0].partition("#")[0])
