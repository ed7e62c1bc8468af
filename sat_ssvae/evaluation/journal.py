"""Results that are stored one by one, so that an interrupted run continues where it stopped.

known = read_journal(path, Record)
append(path, record)      # a dataclass of plain values, one JSON line
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError

R = TypeVar("R")


def read_journal(path: Path, kind: type[R]) -> list[R]:
    """The records in order, none if there is no file; the incomplete last line of a killed process is cut off.

    Raises:
        UserError: the file holds something else.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    try:
        return [kind(**json.loads(line)) for line in data[:whole].splitlines()]
    except (ValueError, TypeError):
        raise UserError(f"{path}: holds something other than this command's results; move it away") from None


def append(path: Path, record: Any) -> None:
    """Append a record, an instance of a dataclass, as one line; it is flushed when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
