"""A shard's tar as files at known places: listed once, header by header, then read at random.

suffix, data = TarStore(Path("a-000000.tar")).media("00000001")
"""

import contextlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from webdataset.writer import TarWriter

from .files import VideoError
from .images import IMAGE_SUFFIXES
from .remote import Remote
from .skips import printable
from .video_io import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

_TAR_BLOCK = 512


@dataclass
class TarStore:
    """A tar whose members are read at random through an index of offsets, built at the first read."""

    path: Path
    remote: Remote | None = None
    _members: dict[str, dict[str, tuple[int, int]]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The tar's name without its suffix."""
        return self.path.stem

    def keys(self) -> list[str]:
        """Keys of the samples, in the tar's order."""
        return list(self.members())

    def media(self, key: str) -> tuple[str, bytes]:
        """The suffix and the bytes of a sample's video, else of its image.

        Raises:
            VideoError: "not in the tar", "no video or image", "truncated".
        """
        members = self._files_of(key)
        if not members:
            raise VideoError("not in the tar", f"{self.path} holds no {printable(key)}")
        suffix = _media(members)
        if suffix is None:
            raise VideoError("no video or image", f"{self.path}: {printable(key)} has {', '.join(members)} only")
        return suffix, self._read(*members[suffix])

    def read(self, key: str, suffix: str) -> bytes:
        """The bytes of KEY.suffix.

        Raises:
            VideoError: "not in the tar", "truncated".
        """
        member = self._files_of(key).get(suffix)
        if member is None:
            raise VideoError("not in the tar", f"{self.path} holds no {printable(key)}.{suffix}")
        return self._read(*member)

    def caption(self, key: str) -> str:
        """The caption in KEY.json or KEY.txt; empty where there is none."""
        members = self._files_of(key)
        if "json" in members:
            try:
                content = json.loads(self._read(*members["json"]))
            except (ValueError, RecursionError):
                raise VideoError("broken json", f"{self.path}: {printable(key)}.json") from None
            return str(content.get("caption") or "") if isinstance(content, dict) else ""
        return self._read(*members["txt"]).decode(errors="replace").strip() if "txt" in members else ""

    def _files_of(self, key: str) -> dict[str, tuple[int, int]]:
        """Under the name that `tar -C FOLDER -c .` gives it, too, which nobody writes into a meta file."""
        members = self.members()
        return members.get(key) or members.get(f"./{key}") or {}

    def members(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For each key, suffix -> (offset, size)."""
        if self._members is None:
            try:
                with self._open() as file:
                    self._members = _index_tar(file, self.path)
            except VideoError:
                raise
            except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
                raise VideoError("unreadable tar", f"{self.path} ({error})") from None
        return self._members

    def forget(self) -> None:
        """Drop the index; it is built again when it is needed."""
        self._members = None

    def _open(self) -> IO[bytes]:
        return self.path.open("rb", buffering=0) if self.remote is None else self.remote.open()

    def _read(self, offset: int, size: int) -> bytes:
        with self._open() as file:
            # Asked before it is read: a header may claim more than there is memory for.
            if offset + size > file.seek(0, os.SEEK_END):
                raise VideoError("truncated", f"{self.path} ends inside a sample")
            file.seek(offset)
            return _read_all(file, size)


def _media(members: Mapping[str, Any]) -> str | None:
    videos = [suffix for suffix in members if f".{suffix}" in VIDEO_SUFFIXES]
    images = [suffix for suffix in members if f".{suffix}" in IMAGE_SUFFIXES]
    return next(iter(videos + images), None)


@contextlib.contextmanager
def plain_tar(path: Path) -> Iterator[TarWriter]:
    """A tar to write whose members have neither times nor owners: the same samples give the same bytes."""
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
        yield writer


class _Bounded:
    """A file that is never asked for more than it holds: headers claim any size, and tarfile believes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self.tell = file.tell
        file.seek(0)

    def read(self, size: int) -> bytes:
        return _read_all(self._file, max(0, min(size, self._size - self.tell())))

    def seek(self, offset: int) -> int:
        return self._file.seek(min(offset, self._size))


def _read_all(file: IO[bytes], size: int) -> bytes:
    """An unbuffered file gives 2 GiB at most at a time, one on a network whatever it has."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _whole_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members up to the first damaged header; a first one that is damaged raises tarfile.ReadError."""
    reached = -1
    try:
        for member in tar:
            # A negative size leads back, to headers that were read before, for ever.
            if member.size < 0 or member.offset < reached:
                raise tarfile.ReadError("a header leads back")
            yield member
            reached = member.offset_data
    except (tarfile.TarError, ValueError, RecursionError) as error:
        if reached < 0:
            raise tarfile.ReadError(str(error)) from None


def _split(name: str) -> tuple[str, str]:
    """(key, suffix) at the first dot of the last part; no key for a hidden file.

    As WebDataset has it, whose regular expression takes minutes for a name of many slashes.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (folder + slash + stem, suffix.lower()) if stem and "." in file else ("", "")


def _index_tar(file: IO[bytes], path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Offsets of the members by key and suffix; a repeated name counts once."""
    index: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    bounded = _Bounded(file)
    with tarfile.open(fileobj=bounded, mode="r:") as tar:  # type: ignore[call-overload]  # it needs no other methods
        for member in _whole_members(tar):
            end = member.offset_data + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
            key, suffix = _split(member.name)
            if member.isreg() and not member.issparse() and key:
                index.setdefault(key, {}).setdefault(suffix, (member.offset_data, member.size))
    bounded.seek(end)
    if bounded.read(_TAR_BLOCK).strip(b"\0") or bounded.tell() < end + _TAR_BLOCK:
        logger.warning("%s: damaged or cut off after %d samples", path, len(index))
    return index
