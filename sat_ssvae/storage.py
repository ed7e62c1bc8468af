"""Files that are whole or absent, and on the disk when they have to be.

with atomic(path) as partial:
save_file(tensors, partial)
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20


@contextlib.contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to: renamed to it at the end, removed when the block fails.

    The file gets the permissions of the user's umask, whatever its writer (safetensors: 0600) gave it.

    Args:
        path: the final name; its folder must exist.
        durable: wait until the file and its name are on the disk.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch()
    mode = partial.stat().st_mode & 0o777
    try:
        yield partial
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


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with atomic(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


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
