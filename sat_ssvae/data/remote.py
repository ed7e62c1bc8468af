"""Shards that are elsewhere: fetched whole into a cache when first read, by one process for all.

An address is `https://host/a-000000.tar`, one that fsspec opens, such as `s3://bucket/a-000000.tar`, or `pipe:` and a
command that prints the shard, such as `pipe:ssh host cat a-000000.tar`.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from filelock import FileLock

from ..addresses import PAUSE, TRIES, download, is_address, without_secrets
from ..errors import UserError
from ..storage import atomic
from .files import META_SUFFIX, VideoError, reason_of

logger = logging.getLogger(__name__)

_TAR_BLOCK = 512
_HTTP = ("http://", "https://")
TIMEOUT = 60.0
"""Seconds that a server may stay silent."""
PIPE_TIMEOUT = 600.0
"""Seconds that a command may print nothing."""
_FETCHED_AT_ONCE = 8
REST = 300.0
"""Seconds for which a failed fetch is not retried: a shard has a thousand samples."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of fetched shards, shared by processes; `limit` in bytes, 0 for none."""

    folder: Path
    limit: int = 0
    _failed: dict[str, tuple[float, str]] = field(default_factory=dict, repr=False, compare=False)

    def place(self, url: str) -> Path:
        """Where the shard of `url` is cached, under a name unique to the address."""
        name = re.search(r"([^/\s?&=]+)\.tar", url)
        return self.folder / f"{name[1] if name else 'shard'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.tar"

    def fetch(self, url: str, target: Path, tries: int = TRIES) -> None:
        """Fetch `target`, which appears when it is complete.

        Raises:
            VideoError: "unreachable", after several tries, and for some minutes without another one.
        """
        since, reason = self._failed.get(url, (-REST, ""))
        if time.monotonic() - since < REST:
            raise VideoError("unreachable", reason)
        if target.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(f"{target.suffix}.lock")):
            if target.exists():
                return
            for attempt in range(tries):
                try:
                    with atomic(target) as partial, partial.open("w+b") as file:
                        length_known = _copy(url, file)
                        if not _is_whole(file, target.suffix, length_known):
                            raise OSError(f"what came is no whole {target.suffix}")
                    break
                # ValueError: an address or a header that cannot be understood.
                except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
                    gone = isinstance(error, (FileNotFoundError, PermissionError))
                    if isinstance(error, urllib.error.HTTPError):
                        gone = error.code in (403, 404, 410)
                        error.close()  # it holds the connection
                    if gone or attempt + 1 == tries:
                        reason = without_secrets(f"{url} ({reason_of(error)})")
                        self._failed[url] = time.monotonic(), reason
                        raise VideoError("unreachable", reason) from None
                    time.sleep(PAUSE * 2**attempt)
        self._make_room(target)

    def _make_room(self, newest: Path) -> None:
        if not self.limit:
            return
        shards = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process is making room as well
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
        _run(url.removeprefix("pipe:"), file)
        return False
    if not url.startswith(_HTTP):
        return download(url, Path(file.name))
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise OSError(f"it comes compressed ({encoding})")
        shutil.copyfileobj(response, file, 1 << 20)
        expected = response.headers.get("Content-Length")
    if expected is not None and file.tell() != int(expected):
        raise OSError(f"{file.tell()} of {expected} bytes came")
    return expected is not None


def _run(command: str, file: IO[bytes]) -> None:
    """Run the user's own command, as WebDataset does.

    If any part of it fails, what it printed is not a whole shard; all parts end together.
    """
    process = subprocess.Popen(["bash", "-o", "pipefail", "-c", command], stdout=file, start_new_session=True)
    printed, since = 0, time.monotonic()
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(timeout=min(1.0, PIPE_TIMEOUT)):
                    raise OSError(f"it ended with status {process.returncode}")
                return
            if (size := os.fstat(file.fileno()).st_size) > printed:
                printed, since = size, time.monotonic()
            elif time.monotonic() - since >= PIPE_TIMEOUT:
                raise OSError(f"it printed nothing for {PIPE_TIMEOUT:g} seconds")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_whole(file: IO[bytes], suffix: str, length_known: bool) -> bool:
    """Whether it begins as a tar or a meta file and ends as a tar; an error page does neither."""
    file.seek(0)
    head = file.read(_TAR_BLOCK)
    if suffix != ".tar":
        return head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{")
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    if length_known:  # a tar that was cut off before it was stored there gives what it has, as a local one does
        return True
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * _TAR_BLOCK))
    return size % _TAR_BLOCK == 0 and file.read() == bytes(2 * _TAR_BLOCK)


@dataclass(frozen=True)
class Remote:
    """A shard's tar in the cache, fetched again if it was evicted in the meantime."""

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
                os.utime(self.place)  # recently used files stay
                return file
            except FileNotFoundError:
                self.cache.fetch(self.url, self.place)
        raise VideoError("unreachable", f"{without_secrets(self.url)}: the cache is too small, raise data.cache_gib")


def fetch_listings(shards: Sequence[Remote]) -> None:
    """Fetch the meta files of shards, several at once; a shard that has none is fetched itself.

    Raises:
        UserError: no .tar address, or neither can be had.
    """
    for shard in shards:
        if ".tar" not in shard.url:
            raise UserError(f"{without_secrets(shard.url)}: expected the address of a .tar shard")
    with ThreadPoolExecutor(_FETCHED_AT_ONCE) as pool:
        fetched = [pool.submit(_fetch_listing, shard) for shard in shards]
        try:
            for future in fetched:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_listing(shard: Remote) -> None:
    head, _, tail = shard.url.rpartition(".tar")
    place = shard.place.with_name(f"{shard.place.stem}{META_SUFFIX}")
    # A command that fails does not say whether there is no such file, which is nothing to wait for.
    tries = 1 if shard.url.startswith("pipe:") else TRIES
    try:
        shard.cache.fetch(f"{head}{META_SUFFIX}{tail}", place, tries)
    except VideoError as error:
        public = without_secrets(shard.url)
        logger.warning("%s: no %s beside it, so it is fetched whole now (%s)", public, META_SUFFIX, error)
        try:
            shard.cache.fetch(shard.url, shard.place)
        except VideoError as again:
            raise UserError(f"{again}: check the address and the network") from None


def is_remote(place: str) -> bool:
    """Whether a path is an address, or a command that prints a shard."""
    return place.startswith((*_HTTP, "pipe:")) or is_address(place)
