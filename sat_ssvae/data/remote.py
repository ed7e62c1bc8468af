"""Shards that lie elsewhere: fetched whole into a cache when first read, by one process for all.

An address is `https://host/a-000000.tar`, or `pipe:` and a command that prints the shard, such as
`pipe:aws s3 cp s3://bucket/a-000000.tar -`.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from filelock import FileLock

from ..errors import UserError
from .files import VideoError

logger = logging.getLogger(__name__)

SCHEMES = ("http://", "https://", "pipe:")
TRIES = 3
TIMEOUT = 60.0
"""Seconds that a server may be silent."""
_PAUSE = 1.0


@dataclass(frozen=True)
class ShardCache:
    """A folder of fetched shards, shared by processes; `limit` in bytes, 0 for none."""

    folder: Path
    limit: int = 0

    def place(self, url: str) -> Path:
        """Where the shard of `url` is kept, with a name that differs where addresses do."""
        name = re.search(r"([^/\s]+)\.tar", url)
        return self.folder / f"{name[1] if name else 'shard'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.tar"

    def fetch(self, url: str, target: Path, tries: int = TRIES) -> None:
        """Have `target`, which appears when it is complete.

        Raises:
            VideoError: "unreachable", after several tries.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(f"{target.suffix}.lock")):
            if target.exists():
                return
            partial = target.with_suffix(f"{target.suffix}.partial")
            for attempt in range(tries):
                try:
                    with partial.open("w+b") as file:
                        if not _copy(url, file) and not _is_whole(file, target.suffix):
                            raise OSError(f"what came is no whole {target.suffix}")
                    break
                except (OSError, urllib.error.URLError, subprocess.CalledProcessError) as error:
                    partial.unlink(missing_ok=True)
                    gone = isinstance(error, urllib.error.HTTPError) and error.code in (403, 404, 410)
                    if gone or attempt + 1 == tries:
                        raise VideoError("unreachable", f"{url} ({error})") from None
                    time.sleep(_PAUSE * 2**attempt)
            partial.replace(target)
        self._make_room(target)

    def _make_room(self, newest: Path) -> None:
        if not self.limit:
            return
        shards = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                shards.append((path.stat(), path))
        used = sum(status.st_size for status, _ in shards)
        for status, path in sorted(shards, key=lambda shard: shard[0].st_mtime):
            if used <= self.limit:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                used -= status.st_size


def _copy(url: str, file: IO[bytes]) -> bool:
    """Write what a server sends or a command prints; returns whether its length is known to be right."""
    if url.startswith("pipe:"):
        # The user's own command, as in WebDataset: its configuration says what to run. Whichever part of it fails, what
        # it printed is not a whole shard.
        command = ["bash", "-o", "pipefail", "-c", url.removeprefix("pipe:")]
        subprocess.run(command, check=True, stdout=file)
        return False
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        shutil.copyfileobj(response, file, 1 << 20)
        expected = response.headers.get("Content-Length")
    if expected is not None and file.tell() != int(expected):
        raise OSError(f"{file.tell()} of {expected} bytes came")
    return expected is not None


def _is_whole(file: IO[bytes], suffix: str) -> bool:
    """Whether it ends as tars do, or begins as a meta file does; a page that says what went wrong does neither."""
    if suffix != ".tar":
        file.seek(0)
        return file.read(1) == b"{"
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1024))
    return size % 512 == 0 and file.read() == bytes(1024)


def find_remote(url: str, cache: ShardCache) -> Path:
    """The place of a shard's tar; the meta file beside it is fetched now, the tar when it is read.

    Raises:
        UserError: no .tar address, or neither can be had.
    """
    if ".tar" not in url:
        raise UserError(f"{url}: expected the address of a .tar shard")
    place = cache.place(url)
    head, _, tail = url.rpartition(".tar")
    # A command that fails does not say whether there is no such file, which is nothing to wait for.
    tries = 1 if url.startswith("pipe:") else TRIES
    try:
        cache.fetch(f"{head}.meta.jsonl{tail}", place.with_name(f"{place.stem}.meta.jsonl"), tries)
    except VideoError as error:
        logger.warning("%s: no .meta.jsonl beside it, so it is fetched whole now (%s)", url, error)
        try:
            cache.fetch(url, place)
        except VideoError as again:
            raise UserError(f"{again}: check the address and the network") from None
    return place


@dataclass(frozen=True)
class Remote:
    """Has a shard's tar at its place in the cache, again if it made room for others meanwhile."""

    url: str
    cache: ShardCache
    place: Path = field(repr=False)

    def open(self) -> IO[bytes]:
        """The tar, opened for reading.

        Raises:
            VideoError: "unreachable".
        """
        for _ in range(TRIES):
            try:
                file = self.place.open("rb", buffering=0)
                os.utime(self.place)  # what was used lately stays
                return file
            except FileNotFoundError:
                self.cache.fetch(self.url, self.place)
        raise VideoError("unreachable", f"{self.url}: the cache is too small, raise data.cache_gib")


def is_remote(place: str) -> bool:
    """Whether a path is an address."""
    return place.startswith(SCHEMES)
