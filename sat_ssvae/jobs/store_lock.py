"""A lock in an object store, where no lock ends by itself with its process: an object that its owner keeps changing.

with locked(folder, "pack", Part(1, 1)) as claim:   # folder/.pack.held
    claim.check()                                   # between pieces of work

The owner writes a new number into it every `BEAT` seconds. Who finds it watches it, for `PATIENCE` seconds of its own
monotonic clock at most: if it changes, the owner lives; otherwise it is taken over. No two clocks are compared, so none
of them need be right. An owner that was stopped or cut off for longer finds another one's object, and ends.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeGuard

from ..addresses import contents_at, swap
from ..errors import UserError
from .settings import Part

logger = logging.getLogger(__name__)

BEAT = 15.0
"""Seconds between an owner's signs of life."""
PATIENCE = 60.0
"""Seconds without one after which an owner counts as dead."""
_LOOK = 1 / 8
"""Of `BEAT`: the time between two looks at another one's lock."""


class Claim:
    """A job's right to a folder."""

    def __init__(self) -> None:
        self.lost = ""
        """Why it has the right no longer; empty while it has."""

    def check(self) -> None:
        """Raise UserError if another job has taken the folder over."""
        if self.lost:
            raise UserError(self.lost)


@contextlib.contextmanager
def locked(folder: Path, name: str, part: Part) -> Iterator[Claim]:
    """Keep other jobs of this name out of a folder of a store, except those for other parts.

    Raises:
        UserError: another one is running there.
        OSError: the store cannot say.
    """
    lock = _Lock(folder, name, part)
    stop = threading.Event()
    beats = threading.Thread(target=lock.beat, args=(stop,), name="lock", daemon=True)
    try:
        lock.acquire()
        beats.start()
        yield lock.claim
    finally:
        stop.set()
        if beats.ident is not None:
            beats.join()  # otherwise a request under way could write the object after it was deleted
        lock.release()


class _Lock:
    """The object of one job."""

    def __init__(self, folder: Path, name: str, part: Part) -> None:
        self.claim = Claim()
        self._folder, self._name, self._part = folder, name, part
        self._path = folder / f".{name}{part.suffix}.held"
        self._what = f"{name} of part {part}" if part.count > 1 else name
        self._owner = {"process": f"process {os.getpid()} on {socket.gethostname()}", "id": secrets.token_hex(8)}
        self._number = 0
        self._written = self._next()

    def _next(self) -> bytes:
        self._number += 1
        return json.dumps({**self._owner, "beat": self._number}).encode()

    def _rivals(self) -> dict[Path, bytes]:
        """The objects, with their contents, that keep this job out."""
        paths = [self._folder / f".{self._name}.held", self._path]
        if self._part.count == 1:
            paths += self._folder.glob(f".{self._name}.part-*-of-*.held")
        found = {path: contents_at(path) for path in dict.fromkeys(paths)}
        return {path: data for path, data in found.items() if data is not None}

    def acquire(self) -> None:
        """Write the object, after those of dead owners are gone.

        Raises:
            UserError: another owner lives.
        """
        dead = self._watched(self._rivals())
        if not swap(self._path, dead.pop(self._path, None), self._written):
            self._refuse(contents_at(self._path))
        for path, data in dead.items():
            if contents_at(path) == data:
                path.unlink(missing_ok=True)
        for path, data in self._rivals().items():
            if path != self._path:  # begun at the same moment
                self._refuse(data)

    def _watched(self, rivals: Mapping[Path, bytes]) -> dict[Path, bytes]:
        """Those of the objects whose owners are dead."""
        began = time.monotonic()
        if rivals:
            logger.warning(
                "%s: locked by %s; waiting up to %.0f s for a sign of life", self._folder, _shown(rivals), PATIENCE
            )
        while rivals:
            waited = time.monotonic() - began
            now = {path: contents_at(path) for path in rivals}
            for path, data in now.items():
                if data not in (None, rivals[path]):
                    self._refuse(data)
            rivals = {path: data for path, data in now.items() if data is not None}
            if waited >= PATIENCE:
                break
            time.sleep(BEAT * _LOOK)
        return dict(rivals)

    def _refuse(self, data: bytes | None) -> NoReturn:
        owner = _shown({self._path: data}) if data else "another process"
        raise UserError(
            f"{self._folder}: another {self._what} works there ({owner}); wait for it, or choose another folder"
        )

    def beat(self, stop: threading.Event) -> None:
        """Change the object again and again, until `stop` or until it is another one's."""
        while not stop.wait(BEAT) and not self.claim.lost:
            try:
                self._beat()
            except OSError as error:  # the next one may come through
                logger.debug("%s: %s", error.filename, error.strerror)

    def _beat(self) -> None:
        new = self._next()
        if swap(self._path, self._written, new):
            self._written = new
            return
        there = contents_at(self._path)
        if self._is_ours(there):  # a conflict that passed, or an earlier beat whose answer was lost
            self._written = there
            return
        owner = f" ({_shown({self._path: there})})" if there else ""
        self.claim.lost = (
            f"{self._folder}: another {self._what} took over{owner}, since this one gave no sign of life for a while; "
            "what is finished is kept"
        )

    def release(self) -> None:
        """Delete the object, if it is still this job's; a failure costs the next job `PATIENCE` seconds."""
        with contextlib.suppress(OSError):
            if self._is_ours(contents_at(self._path)):
                self._path.unlink(missing_ok=True)

    def _is_ours(self, data: bytes | None) -> TypeGuard[bytes]:
        return data is not None and self._owner["id"].encode() in data


def _shown(objects: Mapping[Path, bytes]) -> str:
    """The owners, as far as they can be read."""
    owners = []
    for data in objects.values():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            owners.append(str(json.loads(data)["process"]))
    return ", ".join(sorted(owners)[:3]) + (", ..." if len(owners) > 3 else "") or "another process"
