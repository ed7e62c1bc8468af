"""What could not be used, counted by cause and listed in a file, so that nothing is lost silently."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import GrowingText, read_json_lines

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"
_MIN_READS = 50  # before the share of failed ones means anything


@dataclass(frozen=True)
class Skip:
    """Something left out: its name, a short category, and details."""

    source: str
    cause: str
    detail: str

    def to_json(self, **more: object) -> str:
        """One line of a skipped.jsonl."""
        return json.dumps({**asdict(self), **more}) + "\n"


class SkipLog:
    """Counts skips by cause, appends each new one to a file, stops a run that reads too many broken samples.

    `path` is opened at the first skip, and several ranks may share it; None only counts. `max_share`: share of
    failed reads above which `check` raises, 0..1. `note` is called with every read that failed, known or not.
    """

    def __init__(
        self, path: Path | None = None, *, max_share: float = 0.1, note: Callable[[Skip], object] | None = None
    ) -> None:
        self.path, self._note = path, note
        self.max_share = max_share
        self.counts: Counter[str] = Counter()
        self.reads = 0
        self.failures: Counter[str] = Counter()
        self._known = {(skip["source"], skip["cause"]) for skip in (read_skips(path) if path else ())}
        self._lines = None if path is None else GrowingText(path)

    def filtered(self, skip: Skip, *, listed: bool = True) -> None:
        """Note a sample that is left out unread (too short, out of a filter's range, broken meta line).

        All ranks leave out the same, so one of them lists it.
        """
        self.counts[skip.cause] += 1
        if listed:
            self._list(skip)

    def failed(self, skip: Skip) -> None:
        """Note a read that failed."""
        self.reads += 1
        self.failures[skip.cause] += 1
        if self._note is not None:
            self._note(skip)
        self.filtered(skip)

    def succeeded(self, clips: int = 1) -> None:
        """Note reads that went well."""
        self.reads += clips

    def check(self) -> None:
        """Raise UserError, naming the causes, when more than `max_share` of the reads failed."""
        failed = self.failures.total()
        if self.reads >= _MIN_READS and failed > self.max_share * self.reads:
            where = f", listed in {self.path}" if self.path else ""
            raise UserError(
                f"{failed} of {self.reads} clips could not be read ({causes_in_words(self.failures)}){where}: "
                "repair or remove them"
            )

    def flush(self) -> None:
        """Write skips that an object store does not have yet.

        Raises:
            UserError: they cannot be written.
        """
        try:
            if self._lines is not None:
                self._lines.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None

    def _list(self, skip: Skip) -> None:
        if (skip.source, skip.cause) in self._known:
            return
        self._known.add((skip.source, skip.cause))
        logger.debug("skipped %s: %s (%s)", skip.source, skip.cause, skip.detail)
        try:
            if self._lines is not None:
                self._lines.add(skip.to_json())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None


def causes_in_words(causes: Counter[str]) -> str:
    """The causes with their counts, most frequent first."""
    return ", ".join(f"{count} {cause}" for cause, count in causes.most_common())


def printable(name: str) -> str:
    """A file name with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_skips(path: Path) -> list[dict[str, Any]]:
    """The lines of a skipped.jsonl, see `storage.read_json_lines`."""
    return read_json_lines(path)
