"""Files that are complete or absent, local or in an object store, and flushed to the disk if they must be.

with atomic(path) as partial:
    save_file(tensors, partial)
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .addresses import is_address, upload
from .errors import first_line

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 20
_NAME_PART = 48  # characters of the final name in the partial one, which has to stay below 255 bytes
_REWRITTEN = 60.0  # seconds
_ABANDONED = 24 * 3600.0  # seconds without a change after which a partial file counts as abandoned


@contextlib.contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A local file to write to: renamed to `path`, or uploaded to it, at the end; removed if the block fails.

    A block that removes it leaves `path` unchanged.

    The file gets the permissions of the user's umask, even if its writer sets others (safetensors: 0600). Partial
    names are unique: the last of several writers wins, with a complete file. They end in `.partial`, so a writer
    that chooses the format by the suffix must be given the format.

    `path` is the final name, whose folder is created, or a place in an object store (`addresses.path_of`). `durable`:
    wait until the file and its name are on the disk.
    """
    if is_address(path):
        with _uploaded(path) as partial:
            yield partial
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{path.name[:_NAME_PART]}."
    _remove_leftovers(path.parent, prefix)
    partial = path.with_name(f"{prefix}{secrets.token_hex(4)}.partial")
    held = partial.open("ab")
    _hold(held)
    mode = partial.stat().st_mode & 0o777  # by the umask or the folder's default access list
    try:
        yield partial
        if not partial.exists():
            return
        with contextlib.suppress(PermissionError):  # some network file systems have no permissions
            partial.chmod(mode)
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    finally:
        held.close()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A local folder to write to: renamed to `path`, which must not exist yet, or removed if the block fails."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hold(file: IO[bytes]) -> bool:
    """Mark a file as being written until it is closed; returns whether another process has already marked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def try_lock(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file for this process; False where another one holds it, True on a file system without locks.

    Unlike flock's, this lock ends with the process: children that were forked from it do not hold it any longer.
    """
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


@contextlib.contextmanager
def _uploaded(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sat-ssvae-") as folder:
        partial = Path(folder, f"{path.name[-_NAME_PART:]}.partial")
        partial.touch()
        yield partial
        if partial.exists():
            upload(partial, path)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Delete old partial files of killed processes; even if a clock jumps, not those being written.

    A link has its own age, not that of its target.
    """
    for leftover in folder.glob(f"{glob.escape(prefix)}????????.partial"):
        with contextlib.suppress(OSError):  # another process is deleting it, or it belongs to another user
            if time.time() - leftover.lstat().st_mtime > _ABANDONED:
                with leftover.open("ab") as file:
                    if not _hold(file):
                        leftover.unlink()


def remove_partials(folder: Path, prefix: str) -> None:
    """Delete the partial files of killed writers in a folder, local or not, whose names begin with `prefix`.

    Unlike `atomic`, which spares recent ones: nobody else may be writing files of these names.
    """
    for leftover in folder.glob(f"{glob.escape(prefix)}*.partial"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file, UTF-8, completely or not at all."""
    with atomic(path, durable=durable) as partial:
        partial.write_bytes(text.encode("utf-8"))


def save_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None, *, durable: bool = False
) -> None:
    """Write a safetensors file completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path, durable=durable) as partial:
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, metadata)
        except SafetensorError as error:  # a full disk, for example
            raise OSError(errno.EIO, first_line(error), str(path)) from None


def write_json(path: Path, value: object) -> None:
    """Write a value as an indented JSON file, completely or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json_lines(path: Path) -> list[Any]:
    """The values in a file of JSON lines; none if there is no file.

    Lines that a killed process cut off, or that several hosts garbled on a network file system, are left out.
    """
    values = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            values.append(json.loads(line))
    return values


class GrowingText:
    """Lines that are appended to a file, and are kept if the process is killed; several processes may share the file.

    Files at an address cannot grow: the whole file is written again, once a minute and by `flush`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._remote = path, is_address(path)
        self._file: io.FileIO | None = None
        self._lines: list[str] | None = None
        self._written = time.monotonic()

    def add(self, line: str) -> None:
        """Append a line, given with its line break.

        Raises:
            OSError: it cannot be written, or fits in part only.
        """
        if not self._remote:
            self._file = self._file or self._opened()
            data = line.encode("utf-8")
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        if self._lines is None:
            self._lines = [self._path.read_text(encoding="utf-8")] if self._path.is_file() else []
        self._lines.append(line)
        if time.monotonic() - self._written > _REWRITTEN:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are still missing."""
        if self._lines is not None:
            write_text(self._path, "".join(self._lines))
            self._written = time.monotonic()

    def _opened(self) -> io.FileIO:
        """Unbuffered, so that a line is written in one piece; a half line of a killed process is ended."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        half = self._path.is_file() and self._path.read_bytes()[-1:] not in (b"", b"\n")
        file = self._path.open("ab", buffering=0)
        weakref.finalize(self, file.close)
        if half:
            file.write(b"\n")
        return file


def sync(*paths: Path) -> None:
    """Wait until files, and the names in folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest_of(source: Path | bytes) -> str:
    """SHA-256 of a file, or of its bytes."""
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        digest.update(source)
    else:
        with source.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
