"""What is read is a path or a file's bytes; what is wrong with it is a `VideoError`, with a category to count by."""

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from ..errors import UserError, one_line

META_SUFFIX = ".meta.jsonl"
"""Of the file beside a shard that has a line of JSON for each of its samples."""


class VideoError(UserError):
    """A file that cannot be used.

    Attributes:
        cause: short category: "missing file", "empty file", "not a video", "no video stream", "decoding error",
            "truncated", "too short", "too large", "impossible header", "no timestamps", "not an image",
            "several pages", "unreadable file".
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        return VideoError, (self.cause, str(self).removeprefix(f"{self.cause}: "))


def check_file(source: Path | bytes) -> None:
    """Raise VideoError if there is nothing to read."""
    try:
        problem = _problem(source)
    except OSError as error:
        raise VideoError("unreadable file", f"{name_of(source)} ({reason_of(error)})") from None
    if problem:
        raise VideoError(problem, name_of(source))


def _problem(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return "" if source else "empty file"
    if not source.is_file():
        return "missing file"
    return "" if source.stat().st_size else "empty file"


def opened(source: Path | bytes) -> AbstractContextManager[IO[bytes]]:
    """A path or a file's bytes as a file."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def name_of(source: Path | bytes) -> str:
    """The name of a source in messages."""
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def reason_of(error: Exception) -> str:
    """An error's reason on one line."""
    return one_line(getattr(error, "strerror", None) or error)
