"""What files say of a clip: captions and further fields, from text, JSON and rows of tables."""

import ast
import codecs
import contextlib
import json
import logging
import math
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Fields = dict[str, Any]
CAPTION_KEYS: tuple[str, ...] = ("caption", "text", "prompt", "captions", "prompts", "cap", "long_caption")
CAPTION_KEYS += ("dense_caption", "short_caption", "description", "sentence", "encap")
CAPTION_KEYS += ("caption_en", "text_en", "prompt_en", "content")
PATH_KEYS: tuple[str, ...] = (
    "path",
    "file_name",
    "filename",
    "file",
    "video",
    "video_path",
    "video_name",
    "video_file",
    "video_file_name",
)
PATH_KEYS += ("file_path", "filepath", "clip", "clip_path", "media", "media_path", "relative_path", "fname", "src")
URL_KEYS = ("url", "video_url", "contenturl", "link", "image", "image_path")
"""Columns of addresses, whose last part is a file's name, and of images, in tables without a path or an id."""
ID_KEYS: tuple[str, ...] = ("clip_id", "videoid", "video_id", "youtube_id", "sample_id", "uid", "uuid", "vid", "key")
"""Columns of a file's name without its suffix, in tables without a path; WebVid's caption is then its `name`."""
TEXT_SUFFIXES = ("txt", "caption", "text", "prompt")
MEASURED = frozenset({"key", "source", "duration", "fps", "frames", "width", "height", "start", "end"})
"""Fields that are not taken from a table, because a video's own values go under these names."""
SPAN_KEYS: tuple[tuple[str, str], ...] = (
    ("start", "end"),
    ("start_time", "end_time"),
    ("start_timestamp", "end_timestamp"),
)
SPAN_KEYS += (("start_sec", "end_sec"), ("start_seconds", "end_seconds"), ("clip_start", "clip_end"), ("begin", "end"))
"""Columns of the seconds from which and to which a row describes a video."""
_TELLS_PART = re.compile(
    r"((clip|segment|scene|shot|frame|t)_?)?(start|begin|end|time_?stamp)s?([ _].*|time|sec|seconds|frame|stamp)?"
    r"|(clip|segment|scene|shot)_?(id|index|number)|segment|span"
)
_TIMECODE = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")
_LIKE_CAPTION = re.compile(r"(?!neg|system).*(caption|prompt|description)s?")
"""Such as `video_caption` and `text_prompt`, which count where there is none of CAPTION_KEYS."""
_NO_CAPTION = frozenset({"nan", "none", "null", "n/a", "<na>", "video", "image"})
"""What programs write where a value is missing, and kinds of files, which some have under `content`."""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_TEXT_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes accents apart, other systems and editors do not."""
    return unicodedata.normalize("NFC", name)


_KNOWN_KEYS = dict.fromkeys((*CAPTION_KEYS, *PATH_KEYS, *URL_KEYS, *ID_KEYS, "name", *MEASURED, *chain(*SPAN_KEYS)))
_SPELT = {name.replace("_", ""): name for name in _KNOWN_KEYS}


@lru_cache(4096)
def known_key(key: str) -> str:
    """The key that is known here, for another spelling such as `File Name` or `videoPath`; others as they are."""
    lower = key.strip().lower()
    return lower if lower in _KNOWN_KEYS else _SPELT.get(re.sub(r"[\W_]", "", lower), key.strip())


def by_known_key(row: Mapping[Any, Any]) -> Fields:
    """A row or JSON object under known keys, in small letters."""
    return {known_key(str(key)).lower(): value for key, value in row.items()}


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
        caption = content.strip()
        return "" if caption.lower() in _NO_CAPTION else caption
    if depth and isinstance(content, list) and not _are_parts(content):
        # ShareGPT4Video numbers the captions of parts, and that of the whole is -1.
        content = [item for item in content if _is_of_whole(item)] or content
        return next(filter(None, (caption_in(item, depth - 1) for item in content)), "")
    if depth and isinstance(content, dict):
        known = by_known_key(content)
        if _tells_of_parts(content):
            return ""
        keys = (*CAPTION_KEYS[:-1], *(key for key in known if _LIKE_CAPTION.fullmatch(key)), CAPTION_KEYS[-1])
        values = [known.get(key) for key in keys]
        values += [_answer_in(known.get(key)) for key in ("conversations", "messages")]
        values += [windows] if isinstance(windows := known.get("windows"), list) else []  # of Cosmos' curation
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


def json_fields(data: bytes, folder: Path | None, said: set[Path]) -> Fields:
    """`fields_in` of a video's JSON file; empty if it is damaged, since that must not cost the video.

    Where it has captions of the video's parts alone, a warning says so for `folder`, if there is one and it is not
    among those in `said`, to which it is added.
    """
    try:
        content = json.loads(decoded_text(data))
        fields = fields_in(content)
    except (ValueError, RecursionError):
        return {}
    if folder and folder not in said and "caption" not in fields and _tells_of_parts(content):
        said.add(folder)
        text = "%s: no captions from JSON files that list several parts of a video; cut it into them, or write NAME.txt"
        logger.warning(text, folder)
    return fields


def csv_value(text: str) -> str | float | bool:
    """A cell as a number or truth value if it reads like one."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return json.loads(text) if _NUMBER.fullmatch(text) else text


def csv_fields(row: Mapping[str, str | None]) -> Fields:
    """The non-empty cells of a row, under known names where a column's name is another spelling of one.

    A list of captions, as pandas writes it, is a list.
    """
    texts = {*PATH_KEYS, *URL_KEYS, *ID_KEYS, "name", "id"}
    cells = [(known_key(name), text) for name, text in row.items() if text and name is not None]
    fields: Fields = {name: text if name.lower() in texts else csv_value(text) for name, text in cells}
    return fields | {name: _listed(text) for name, text in cells if name in CAPTION_KEYS}


def _listed(text: str) -> Any:
    """The list that a cell writes in Python's or JSON's way, else the cell."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text)
            return found if found and all(isinstance(item, str) for item in found) else text
    return text


def clips_in(fields: Mapping[str, Any]) -> int:
    """How many clips a row describes, each with a caption and a time, as those of Panda-70M do; 0 if it is for one."""
    captions: list[Any] = next((fields[key] for key in CAPTION_KEYS if isinstance(fields.get(key), list)), [])
    if len(captions) < 2 or any(map(_is_of_whole, captions)):
        return 0
    timed = any(key.lower().startswith(("timestamp", "time_stamp")) and str(fields[key])[:1] == "[" for key in fields)
    return len(captions) if timed or _are_parts(captions) else 0


def _tells_of_parts(content: Any) -> bool:
    """Whether a video's JSON has captions of several parts of it instead of one of the whole."""
    if isinstance(content, dict):
        return list in map(type, content.values()) and clips_in(by_known_key(content)) > 0
    return isinstance(content, list) and _are_parts(content)


def _are_parts(items: list[Any]) -> bool:
    return len(items) > 1 and all(isinstance(item, dict) and part_of(item) for item in items)


def _is_of_whole(item: object) -> bool:
    return isinstance(item, dict) and str(item.get("idx")) == "-1"


def part_of(row: Mapping[str, Any]) -> str:
    """What a row says about when its part of a video begins and ends, such as `start_time` or `timestamp`."""
    return ", ".join(f"{row[key]}" for key in row if _TELLS_PART.fullmatch(key.lower()) and row[key] not in (None, ""))


def span_of(cells: Fields) -> tuple[float | None, float | None]:
    """Seconds from which and to which a row describes a video, None where it does not say.

    Raises:
        ValueError: `start` or `end` are neither seconds nor hours:minutes:seconds. Columns of other names that are
            not, such as a date in `start_time`, do not count.
    """
    for start, end in SPAN_KEYS[1:]:
        if start in cells and end in cells:
            with contextlib.suppress(ValueError):
                return _seconds(cells[start]), _seconds(cells[end])
    start, end = SPAN_KEYS[0]
    return (_seconds(cells[start]) if start in cells else None), (_seconds(cells[end]) if end in cells else None)


def _seconds(value: object) -> float:
    text = str(value).strip()
    found = _TIMECODE.fullmatch(text)
    if found is None:
        return float(text)
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))


def _is_plain(value: object) -> bool:
    return (isinstance(value, (str, bool, int)) and value != "") or (isinstance(value, float) and math.isfinite(value))
