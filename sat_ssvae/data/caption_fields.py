"""What files say of a clip: captions and further fields, from text, JSON and rows of tables."""

import ast
import codecs
import contextlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

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
MEASURED = frozenset({"key", "source", "duration", "fps", "frames", "width", "height", "start", "end"})
"""Fields that are not taken from a table, because a video's own values go under these names."""
_LIKE_CAPTION = re.compile(r"(?!neg|system).*(caption|prompt)s?")
"""Such as `video_caption` and `text_prompt`, which count where there is none of CAPTION_KEYS."""
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


def _is_plain(value: object) -> bool:
    return (isinstance(value, (str, bool, int)) and value != "") or (isinstance(value, float) and math.isfinite(value))
