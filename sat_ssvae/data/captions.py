"""Where captions of videos are kept: one finder for packing, encoding, training and reward.

    finder = CaptionFinder(Path("data"))
    finder.fields(Path("data/videos/a.mp4"))        # {"caption": "a cat", "motion": 3.5}

In this order: NAME.txt (or .caption, .text, .prompt) and NAME.json beside NAME.mp4; the same in labels/, captions/ or
the like beside the video or its folder videos/, as CogVideoX has it; a table in the video's folder or one above it: a
JSON, JSON lines, CSV or TSV file with paths or names (such as WebVid's videoid) or COCO's two lists, or videos.txt with
prompts.txt line by line. Whatever else a table or JSON file says becomes fields for `data.filters`.
"""

import ast
import codecs
import contextlib
import csv
import itertools
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import UserError
from .csv_lines import mended_lines

logger = logging.getLogger(__name__)

Fields = dict[str, Any]
CAPTION_KEYS: tuple[str, ...] = ("caption", "text", "prompt", "captions", "prompts", "cap", "long_caption")
CAPTION_KEYS += ("short_caption", "description", "sentence", "encap")
PATH_KEYS: tuple[str, ...] = (
    "path",
    "file_name",
    "filename",
    "file",
    "video",
    "video_path",
    "video_name",
    "video_file",
)
PATH_KEYS += ("file_path", "filepath", "clip", "clip_path", "media", "media_path", "relative_path", "fname", "src")
URL_KEYS = ("url", "video_url", "contenturl", "link")
"""Columns of addresses, whose last part is a file's name, in tables without a path or an id."""
ID_KEYS = ("videoid", "video_id", "clip_id", "sample_id", "uid", "uuid", "vid", "key")
"""Columns of a file's name without its suffix, in tables without a path; WebVid's caption is then its `name`."""
TEXT_SUFFIXES = ("txt", "caption", "text", "prompt")
_SIDECARS = frozenset({"json", *TEXT_SUFFIXES})
LABEL_FOLDERS = ("labels", "captions", "label", "caption", "prompts", "texts", "txt")
VIDEO_FOLDERS = ("videos", "video")
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
MEASURED = frozenset({"key", "source", "duration", "fps", "frames", "width", "height", "start", "end"})
"""Fields that are not taken from a table, because a video's own values go under these names."""
_LIKE_CAPTION = re.compile(r"(?!neg|system).*(caption|prompt)s?")
"""Such as `video_caption` and `text_prompt`, which count where there is none of CAPTION_KEYS."""
WHERE = (
    "(NAME.txt, NAME.caption or NAME.json beside, labels/NAME.txt, captions/NAME.txt, videos.txt with prompts.txt, a "
    "JSON, JSON lines, CSV or TSV file of paths and captions)"
)
"""For messages."""
ROW_PER_CLIP = "give a CSV file of a line per clip (path, caption, start, end in seconds) to `sat-ssvae pack`"
_SHOWN = 200  # characters of the columns' names in a message
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_TEXT_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes accents apart, other systems and editors do not."""
    return unicodedata.normalize("NFC", name)


_KNOWN_KEYS = dict.fromkeys((*CAPTION_KEYS, *PATH_KEYS, *URL_KEYS, *ID_KEYS, "name", *MEASURED))
_SPELT = {name.replace("_", ""): name for name in _KNOWN_KEYS}


@lru_cache(4096)
def known_key(key: str) -> str:
    """The key that is known here, for another spelling such as `File Name` or `videoPath`; others as they are."""
    lower = key.strip().lower()
    return lower if lower in _KNOWN_KEYS else _SPELT.get(re.sub(r"[\W_]", "", lower), key.strip())


def text_of(data: bytes) -> str:
    """A text file's content without a byte order mark and surrounding space."""
    return decoded_text(data).strip()


def decoded_text(data: bytes) -> str:
    """UTF-8, UTF-16 with its mark, or the usual encoding of older Windows programs."""
    encoding = next((name for mark, name in _TEXT_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("cp1252" if encoding == "utf-8" else encoding, errors="replace")


def caption_in(content: object, depth: int = 3) -> str:
    """The caption in a JSON value: a string, the first in a list, or what an object has under `CAPTION_KEYS`.

    The value of such a key may be an object by language, of which `en` is taken.
    """
    if isinstance(content, str):
        return content.strip()
    if depth and isinstance(content, list):
        return next(filter(None, (caption_in(item, depth - 1) for item in content)), "")
    if depth and isinstance(content, dict):
        known = {known_key(str(key)): value for key, value in content.items()}
        values = [known.get(key) for key in CAPTION_KEYS]
        values += [value for key, value in known.items() if _LIKE_CAPTION.fullmatch(key.lower())]
        values += [_answer_in(known.get(key)) for key in ("conversations", "messages")]
        return next(filter(None, (caption_in(_in_english(value), depth - 1) for value in values)), "")
    return ""


def _answer_in(turns: object) -> object:
    """What the model says last in a conversation, as data sets for tuning on instructions have captions."""
    said = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    models = [turn for turn in said if (turn.get("from") or turn.get("role")) in ("gpt", "assistant")]
    return (models[-1].get("value") or models[-1].get("content")) if models else None


def _in_english(value: object) -> object:
    return value["en"] if isinstance(value, dict) and "en" in value else value


def fields_in(content: object) -> Fields:
    """The caption, if there is one, and the other plain values of a JSON value."""
    fields: Fields = {}
    if isinstance(content, dict):
        fields = {
            str(name): value
            for name, value in content.items()
            if known_key(str(name)) not in {*MEASURED, *CAPTION_KEYS, *PATH_KEYS} and _is_plain(value)
        }
    return with_caption(fields, caption_in(content))


def with_caption(fields: Mapping[str, Any], caption: str) -> Fields:
    """The fields with this caption, if it is not empty."""
    return {**fields, "caption": caption} if caption else dict(fields)


def json_fields(data: bytes) -> Fields:
    """`fields_in` of a JSON file; empty if it is damaged, since that must not cost the video."""
    try:
        return fields_in(json.loads(decoded_text(data)))
    except (ValueError, RecursionError):
        return {}


def csv_value(text: str) -> str | float | bool:
    """A cell as a number or truth value if it reads like one."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return json.loads(text) if _NUMBER.fullmatch(text) else text


def csv_fields(row: Mapping[str, str | None]) -> Fields:
    """The non-empty cells of a row, under known names where a column's name is another spelling of one.

    A list of captions, as pandas writes it, is a list.
    """
    texts = {*PATH_KEYS, *URL_KEYS, *ID_KEYS, "name"}
    cells = [(known_key(name), text) for name, text in row.items() if text and name is not None]
    fields: Fields = {name: text if name in texts else csv_value(text) for name, text in cells}
    return fields | {name: _listed(text) for name, text in cells if name in CAPTION_KEYS}


def _listed(text: str) -> Any:
    """The list that a cell writes in Python's or JSON's way, else the cell."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text)
            return found if found and all(isinstance(item, str) for item in found) else text
    return text


def clips_in(fields: Fields) -> int:
    """How many clips a row describes, each with a caption and a time, as those of Panda-70M do; 0 if it is for one."""
    captions: list[str] = next((fields[key] for key in CAPTION_KEYS if isinstance(fields.get(key), list)), [])
    timed = any(key.lower().startswith(("timestamp", "time_stamp")) and str(fields[key])[:1] == "[" for key in fields)
    return len(captions) if timed and len(captions) > 1 else 0


def table_rows(text: str) -> "csv.DictReader[str]":
    """The rows of a CSV or TSV file, whose cells commas, semicolons, tabs or bars separate.

    A first line `sep=;`, by which Excel is told of the separator, is none of them.
    """
    head, _, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=(.)"?\s*', head)
    delimiter = told[1] if told else max(",;\t|", key=head.count)
    lines = mended_lines(rest if told else text, delimiter)
    return csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)


def has_too_many(row: Mapping[Any, Any]) -> bool:
    """Whether a row of `table_rows` has more values than columns; empty ones behind a last comma do not count."""
    return any(row.get(None) or ())


class CaptionFinder:
    """What is known about the videos in a folder, apart from the files themselves.

    Args:
        root: the folder that was given; tables and labels in it, below it and one above it count.
        leave_out: a table that does not count.
    """

    def __init__(self, root: Path, leave_out: Path | None = None) -> None:
        self._leave_out = leave_out
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - unlike `absolute` it resolves `..`, unlike `resolve` no links
        self._tables: dict[Path, list[_Table]] = {}
        self._labels: dict[Path, list[Path]] = {}
        self._names: dict[Path, dict[str, str] | None] = {}

    def fields(self, video: Path) -> Fields:
        """The caption, if there is one, and further fields of a video.

        Raises:
            UserError: videos.txt and prompts.txt do not have the same number of lines.
        """
        video = Path(os.path.abspath(video))  # noqa: PTH100
        known: Fields = {}
        for folder in self._folders(video):
            for table in self._tables_in(folder):
                known = {**table.fields(video, by_name=folder.is_relative_to(self._root)), **known}
        for data in _contents(self._beside(video, ("json",))):
            known = {**known, **json_fields(data)}
        texts = (text_of(data) for data in _contents(self._beside(video, TEXT_SUFFIXES)))
        return with_caption(known, next(filter(None, texts), ""))

    def caption(self, video: Path) -> str:
        """The caption of a video; empty if there is none."""
        return str(self.fields(video).get("caption", ""))

    def _folders(self, video: Path) -> list[Path]:
        """The video's own folder and those above it, up to the one above the root."""
        lowest = video.parent
        above = [lowest, *lowest.parents]
        end = above.index(self._root) + 2 if self._root in above else 1
        return above[:end]

    def _beside(self, video: Path, suffixes: Iterable[str]) -> Iterator[Path]:
        """Where files of these suffixes may belong to a video, the nearest first."""
        for suffix in suffixes:
            names = f"{video.stem}.{suffix}", f"{video.stem}.{suffix.upper()}", f"{video.name}.{suffix}"
            yield from self._there(video.with_name(name) for name in names)
        for folder in self._folders(video):
            inside = video.relative_to(folder)
            for labels, suffix in itertools.product(self._labels_in(folder), suffixes):
                places = [(labels / inside).with_suffix(f".{suffix}")]
                if inside.parts[0] in VIDEO_FOLDERS:
                    places.append((labels / Path(*inside.parts[1:])).with_suffix(f".{suffix}"))
                yield from self._there(places)

    def _there(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Those of the files that are there, as they are spelt there, or may be in a folder that cannot be listed."""
        for path in paths:
            names = self._names_in(path.parent)
            if names is None:
                yield path
            elif name := names.get(composed(path.name)):
                yield path.with_name(name)

    def _names_in(self, folder: Path) -> dict[str, str] | None:
        """Names of files that may hold captions, by their composed form; None for a folder that cannot be listed."""
        if folder not in self._names:
            try:
                names = [path.name for path in folder.iterdir() if path.name.rpartition(".")[2].lower() in _SIDECARS]
                self._names[folder] = {composed(name): name for name in names}
            except OSError:
                self._names[folder] = None
        return self._names[folder]

    def _labels_in(self, folder: Path) -> list[Path]:
        if folder not in self._labels:
            self._labels[folder] = [place for name in LABEL_FOLDERS if (place := folder / name).is_dir()]
        return self._labels[folder]

    def _tables_in(self, folder: Path) -> "list[_Table]":
        if folder not in self._tables:
            self._tables[folder] = list(_read_tables(folder, self._leave_out))
        return self._tables[folder]


class _Table:
    """A table in `folder`: fields by path."""

    def __init__(self, folder: Path, rows: Iterable[tuple[str, Fields]]) -> None:
        self._folder = folder
        self._by_path: dict[str, Fields] = {}
        self._by_name: dict[str, str | None] = {}
        for written, fields in rows:
            path = composed(written.replace("\\", "/"))  # Windows writes the first
            path = os.path.normpath(os.path.relpath(path, folder) if Path(path).is_absolute() else path)
            self._by_path[path] = {**fields, **self._by_path.get(path, {})}  # of several rows, the first
            for name in {Path(path).name, Path(path).stem}:
                self._by_name[name] = path if self._by_name.get(name, path) == path else None

    def fields(self, video: Path, *, by_name: bool) -> Fields:
        """The row with the video's path; else, with `by_name`, the only row of its name whose own path has no file."""
        path = composed(os.path.relpath(video, self._folder))
        for written in (path, str(Path(path).with_suffix(""))):
            if written in self._by_path:
                return self._by_path[written]
        for name in (Path(path).name, Path(path).stem) if by_name else ():
            written = self._by_name.get(name) or ""
            if written and not (self._folder / written).exists():
                return self._by_path[written]
        return {}


_OF_OURS = re.compile(r"(unified_reward_v\d|reconstruction\.|restoration\.|score\.|skipped|.*\.meta\.jsonl)")
"""Beginnings of the names of tables that our own commands write beside videos or shards."""


def _read_tables(folder: Path, leave_out: Path | None) -> Iterator[_Table]:
    """The tables in a folder, in order of precedence."""
    videos = folder / "videos.txt"
    names = ("prompts.txt", "prompt.txt", "captions.txt")
    prompts = next((path for name in names if (path := folder / name).is_file()), None)
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []
    alone = Counter(path.stem for path in files)  # NAME.json beside NAME.mp4 is no table
    suffixes = (".jsonl", ".ndjson", ".json")
    kinds: dict[str, Callable[[Path], Iterable[tuple[str, Fields]]]] = dict.fromkeys(suffixes, _json_rows)
    kinds |= dict.fromkeys(TABLE_SUFFIXES, _csv_rows)
    tables = [path for path in files if path.suffix.lower() in kinds and not _OF_OURS.match(path.name)]
    for path in sorted(tables, key=lambda path: (path.stem != "metadata", list(kinds).index(path.suffix.lower()))):
        sidecar = path.suffix.lower() == ".json" and path.stem != "metadata" and alone[path.stem] > 1
        if not sidecar and path.is_file() and not (leave_out and leave_out.samefile(path)):
            try:
                yield _Table(folder, kinds[path.suffix.lower()](path))
            except (OSError, ValueError, RecursionError, csv.Error) as error:
                logger.warning("%s: no captions from it, it cannot be read (%s)", path, error)
    if prompts is not None and videos.is_file():
        yield _Table(folder, _paired_lines(videos, prompts))


def _json_rows(path: Path) -> Iterator[tuple[str, Fields]]:
    """A row, a list of rows, or an object of lists of them, or of fields or captions by path; else JSON lines."""
    text = text_of(path.read_bytes())
    try:
        content = json.loads(text)
    except ValueError:
        yield from _json_lines(path, text)
        return
    rows = list(_row(content))
    if isinstance(content, dict) and not rows:
        rows = [*_annotated(content), *((str(name), fields_in(value)) for name, value in content.items())]
    yield from rows
    for values in content.values() if isinstance(content, dict) else [content]:
        for row in values if isinstance(values, list) else []:
            yield from _row(row)


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
    single = [row for row in whole if not clips_in(row)]
    yield from _with_paths(path, single)
    if broken := len(rows) - len(whole):  # a caption with a comma and no quotes
        logger.warning("%s: %d lines have more values than columns, they give no captions", path, broken)
    if several := len(whole) - len(single):
        text = "%s: no captions from %d lines, which list several clips of a video; %s"
        logger.warning(text, path, several, ROW_PER_CLIP)


def _with_paths(path: Path, rows: Sequence[Any]) -> Iterator[tuple[str, Fields]]:
    """The rows of a table that name a video; a warning where all lack that."""
    named = [pair for row in rows for pair in _row(row)]
    unnamed = next((row for row in rows if isinstance(row, dict) and (caption_in(row) or _is_headless(row))), None)
    if unnamed and not named:
        columns = ", ".join(map(str, unnamed))
        logger.warning(
            "%s: no captions from it, none of its columns is `path` or `video_id`: %s", path, columns[:_SHOWN]
        )
    yield from named


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


def _row(row: object) -> Iterator[tuple[str, Fields]]:
    if isinstance(row, dict):
        known = {known_key(str(key)).lower(): value for key, value in row.items()}
        path = next((found for key in (*PATH_KEYS, "videos") if (found := _path_in(known.get(key)))), "")
        if not path and caption_in(row):
            path = str(known.get("name") or "")
        # `id` may number the captions where another column names the videos.
        keys = (*ID_KEYS, "id") if sum(key.endswith("id") for key in known) == 1 else ID_KEYS
        name = next((str(known[key]) for key in keys if known.get(key) not in (None, "")), "")
        address = next((str(known[key]) for key in URL_KEYS if known.get(key)), "")
        if path:
            yield _without_query(path) if "://" in path else path, fields_in(row)
        elif name:
            yield (
                name,
                fields_in(row if caption_in(row) else {("caption" if key == "name" else key): row[key] for key in row}),
            )
        elif address:
            yield _without_query(address), fields_in(row)


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


def _contents(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def _is_plain(value: object) -> bool:
    return (isinstance(value, (str, bool, int)) and value != "") or (isinstance(value, float) and math.isfinite(value))
