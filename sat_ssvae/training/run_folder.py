"""A run's folder belongs to one configuration, kept in config.json, and to one training process at a time.

with claimed_folder(config, output):
    ...
"""

import contextlib
import fcntl
import json
import reprlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import distributed
from ..engine.checkpoints import LATEST
from ..errors import UserError
from ..storage import try_lock, write_text
from .settings import TrainConfig

OPERATIONAL = {
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "milestone_every",
    "max_skipped_steps",
    "monitor",
    "data.num_workers",
    "data.max_skip_share",
    "data.cache",
    "data.cache_gib",
}
"""Settings that do not change the steps of a run, such as those that depend on the machine."""


LOCK = ".lock"
_FLOCK = "hhqqi0q"
"""The C struct flock of 64-bit Linux: type, whence, start, length, process."""


@contextlib.contextmanager
def claimed_folder(config: TrainConfig, output: Path) -> Iterator[None]:
    """Lock `output` for this run and write its configuration there; `OPERATIONAL` settings may change.

    Raises:
        UserError: the folder holds a run with other settings, or another process trains in it.
    """
    if distributed.rank() != 0:
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    with alone(output):
        _keep_config(config, output)
        yield


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Lock the folder: two runs in it would delete each other's checkpoints.

    Raises:
        UserError: another process holds the lock.
    """
    path = output / LOCK
    with path.open("a") as file:
        if not try_lock(file):
            raise UserError(
                f"{output}: another process trains there; wait for it, stop it, or choose another name "
                f"(if its machine died and the lock remains, delete {path})"
            )
        yield


def is_held(output: Path) -> bool:
    """Whether a process holds the folder's lock, or that of CogVideoX's comparison, which is an flock.

    Raises:
        OSError: a file system without locks cannot tell.
    """
    path = output / LOCK
    if not path.exists():
        return False
    with path.open("rb") as file:
        asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0))
        if struct.unpack(_FLOCK, asked)[0] != fcntl.F_UNLCK:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _keep_config(config: TrainConfig, output: Path) -> None:
    path = output / "config.json"
    wanted = json.dumps(config.model_dump(mode="json"), indent=1)
    if path.exists():
        held = path.read_text(encoding="utf-8")
        if held == wanted:
            return
        try:
            there = _steps(json.loads(held))
        except ValueError as error:
            raise UserError(
                f"{path}: damaged ({error}); delete it, and the run continues with the given settings"
            ) from None
        if differing := _differing(there, _steps(json.loads(wanted))):
            raise UserError(
                f"{output} holds a run with another configuration ({differing}); choose another name, to start from "
                f"its weights with resume_from={output / LATEST}, or delete it"
            )
    write_text(path, wanted, durable=True)


def _steps(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """The settings that change the steps of a run, by dotted names."""
    steps: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{section}{name}"
        if path in OPERATIONAL:
            continue
        steps |= _steps(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return steps


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first settings that differ, as text."""
    unknown = object()
    names = [name for name in {**there, **here} if there.get(name, unknown) != here.get(name, unknown)]

    def said(values: Mapping[str, Any], name: str) -> str:
        return reprlib.repr(values[name]) if name in values else "unknown"

    some = [f"{name}: {said(there, name)} there, {said(here, name)} now" for name in names[:3]]
    return "; ".join(some) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
