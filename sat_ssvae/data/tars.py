"""A shard's tar as files at known places: listed once, header by header, then read at random.

suffix, data = TarStore(Path("a-000000.tar")).media("00000001")
"""

import contextlib
import io
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from .caption_fields import TEXT_SUFFIXES, Fields, caption_in, composed, json_fields, text_of, with_caption
from .captions import LABEL_FOLDERS, VIDEO_FOLDERS
from .containers import VIDEO_SUFFIXES
from .files import VideoError, name_of, reason_of
from .images import IMAGE_SUFFIXES
from .remote import Remote
from .skips import printable

logger = logging.getLogger(__name__)

_TAR_BLOCK = 512
_COPIED = 1 << 20  # bytes at a time
_BEHIND = 1 << 16  # bytes behind the end in which another tar is noticed; tar fills up its last 10 KiB
_TABLES = frozenset({"csv", "tsv", "jsonl", "ndjson", "parquet"})
_TABLE_NAMES = frozenset({"metadata.json", "captions.json", "prompts.json", "prompts.txt", "captions.txt"})
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd", b"PK": "zip"}
"""First bytes of files that a program of that name unpacks."""
_KINDS = (VIDEO_SUFFIXES, IMAGE_SUFFIXES)


@dataclass
class TarStore:
    """A tar whose members are read at random through an index of offsets, built at the first read."""

    path: Path
    remote: Remote | None = None
    label: str = ""
    """What its samples' names begin with, where that is not the tar's name: also the folder that it is in."""
    _members: dict[str, dict[str, tuple[int, int]]] | None = field(default=None, repr=False)
    _said: set[Path] = field(default_factory=set, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The tar's name without its suffix, below the folder that was given."""
        return self.label or self.path.stem

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
        return suffix.rpartition(".")[2], self._read(*members[suffix])

    def read(self, key: str, suffix: str) -> bytes:
        """The bytes of KEY.suffix.

        Raises:
            VideoError: "not in the tar", "truncated".
        """
        member = self._files_of(key).get(suffix)
        if member is None:
            raise VideoError("not in the tar", f"{self.path} holds no {printable(key)}.{suffix}")
        return self._read(*member)

    def fields(self, key: str) -> Fields:
        """The caption, if any, and the other values in a sample's JSON files; damaged files are ignored."""
        members = self._files_of(key)
        fields: Fields = {}
        with contextlib.suppress(VideoError):  # it is incomplete
            texts = (
                caption_in(text_of(self._read(*members[suffix])))
                for name in TEXT_SUFFIXES
                for suffix in _fields_like(name, members)
            )
            text = next(filter(None, texts), "")
            for suffix in _fields_like("json", members):
                fields = (
                    json_fields(self._read(*members[suffix]), None if text else self.path.parent, self._said) | fields
                )
            return with_caption(fields, text)
        return fields

    def caption(self, key: str) -> str:
        """The caption of a sample; empty if there is none."""
        return str(self.fields(key).get("caption", ""))

    def _files_of(self, key: str) -> dict[str, tuple[int, int]]:
        """Members of a sample; its key may lack the `./` of `tar -C FOLDER -c .`, or contain dots."""
        members = self.members()
        for name in (composed(key), f"./{composed(key)}"):
            if name in members:
                return members[name]
            short, inside = split_name(f"{name}.")
            if found := members.get(short):
                return {suffix.removeprefix(inside): place for suffix, place in found.items() if inside in suffix}
        return {}

    def members(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For each key, suffix -> (offset, size)."""
        if self._members is None:
            try:
                with self._open() as file:
                    self._members = _with_labels(_by_video(_index_tar(file, self.path)))
            except VideoError:
                raise
            except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
                raise VideoError("unreadable tar", f"{self.path} ({self._compression() or error})") from None
        return self._members

    def _compression(self) -> str:
        with contextlib.suppress(OSError), self._open() as file:
            start = file.read(2)
            return next(
                (f"compressed with {name}, unpack it" for mark, name in _COMPRESSED.items() if start == mark), ""
            )
        return ""

    def forget(self) -> None:
        """Drop the index; it is built again when it is needed."""
        self._members = None

    def _open(self) -> IO[bytes]:
        return self.path.open("rb", buffering=0) if self.remote is None else self.remote.open()

    def _read(self, offset: int, size: int) -> bytes:
        with self._open() as file:
            # Checked first: a header may claim more bytes than there is memory.
            if offset + size > file.seek(0, os.SEEK_END):
                raise VideoError("truncated", f"{self.path} ends inside a sample")
            file.seek(offset)
            return _read_all(file, size)


def _media(members: Mapping[str, Any]) -> str | None:
    """The suffix of the video, else of the image; `mp4` before WebDataset's fields, such as `video.mp4`."""
    kinds = (sorted(_with_kind(members, kind), key=lambda suffix: "." in suffix) for kind in _KINDS)
    return next(chain.from_iterable(kinds), None)


def _with_kind(members: Iterable[str], kind: frozenset[str]) -> list[str]:
    return [suffix for suffix in members if f".{suffix.rpartition('.')[2]}" in kind]


def _fields_like(name: str, members: Iterable[str]) -> list[str]:
    """`name` first, then fields of that kind, such as `caption.txt`."""
    return sorted((suffix for suffix in members if suffix.rpartition(".")[2] == name), key=lambda suffix: "." in suffix)


def _by_video(index: dict[str, dict[str, tuple[int, int]]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Split samples with several videos (or images) whose names contain dots: a.1.mp4 and a.2.mp4 are two samples.

    Members that belong to none of them, such as a.txt, are shared. If there is an a.mp4, a.1.mp4 is one of its fields.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for key, members in index.items():
        media = next(filter(None, (_with_kind(members, kind) for kind in _KINDS)), [])
        stems = {suffix.rpartition(".")[0] for suffix in media}
        if len(stems) < 2 or "" in stems:
            samples[key] = members
            continue
        own = {stem: {s.removeprefix(f"{stem}."): s for s in members if s.startswith(f"{stem}.")} for stem in stems}
        shared = members.keys() - {suffix for names in own.values() for suffix in names.values()}
        for stem in sorted(stems):
            names = {**{suffix: suffix for suffix in sorted(shared)}, **own[stem]}
            samples[f"{key}.{stem}"] = {short: members[suffix] for short, suffix in names.items()}
    return samples


def _with_labels(samples: dict[str, dict[str, tuple[int, int]]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Give the files in labels/ or captions/ to the videos of the same names in videos/ or in the folder above."""
    for key in [key for key, members in samples.items() if _media(members)]:
        folders, places = key.split("/"), []
        for depth in range(len(folders)):
            skipped = folders[depth] in VIDEO_FOLDERS and depth + 1 < len(folders)
            rest = folders[depth + 1 :] if skipped else folders[depth:]
            places += ["/".join([*folders[:depth], labels, *rest]) for labels in LABEL_FOLDERS]
        for place in places:
            if place in samples and _media(samples[place]) is None:
                samples[key] = {**samples.pop(place), **samples[key]}
    return samples


@contextlib.contextmanager
def plain_tar(path: Path) -> Iterator["PlainTar"]:
    """A tar to write whose members have neither times nor owners: the same samples give the same bytes."""
    with path.open("wb") as file:
        yield PlainTar(file)
        end = file.tell() + 2 * _TAR_BLOCK
        file.write(bytes(2 * _TAR_BLOCK + -end % tarfile.RECORDSIZE))


class PlainTar:
    """Samples appended to a file, as WebDataset reads them.

    Neither `tarfile` nor WebDataset's writer can take a sample back whose video turns out to be unreadable half-way.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, key: str, files: Mapping[str, bytes | Path]) -> None:
        """Append KEY.suffix for each suffix: these bytes, or a copy of that file.

        Raises:
            VideoError: "unreadable file"; nothing of the sample is in the tar.
            OSError: the tar cannot be written.
        """
        start = self._file.tell()
        try:
            for suffix, content in sorted(files.items()):
                with _opened(content) as source:
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size, member.mode = source.seek(0, os.SEEK_END), 0o444
                    source.seek(0)
                    self._file.write(member.tobuf())
                    for block in _blocks(source, member.size - self._sent(source, member.size), content):
                        self._file.write(block)
                    self._file.write(bytes(-member.size % _TAR_BLOCK))
        except VideoError:
            self._file.seek(start)
            self._file.truncate()
            raise

    def _sent(self, source: IO[bytes], size: int) -> int:
        """Append up to `size` bytes of another file inside the kernel; how many went, none of what has no file."""
        sent = 0
        with contextlib.suppress(OSError):  # who reads and writes the rest finds which of the files is at fault
            number = source.fileno()
            self._file.flush()
            while sent < size and (moved := os.sendfile(self._file.fileno(), number, None, size - sent)):
                sent += moved
        return sent


def _opened(content: bytes | Path) -> IO[bytes]:
    if isinstance(content, bytes):
        return io.BytesIO(content)
    try:
        return content.open("rb", buffering=0)
    except OSError as error:
        raise VideoError("unreadable file", f"{content} ({reason_of(error)})") from None


def _blocks(source: IO[bytes], size: int, content: bytes | Path) -> Iterator[bytes]:
    """The next `size` bytes, in blocks that fit into a processor's cache."""
    while size:
        try:
            block = source.read(min(size, _COPIED))
        except OSError as error:
            raise VideoError("unreadable file", f"{name_of(content)} ({reason_of(error)})") from None
        if not block:
            raise VideoError("unreadable file", f"{name_of(content)} became shorter while it was copied")
        size -= len(block)
        yield block


class _Bounded:
    """A file that is never asked for more than it holds: tarfile trusts any size that a header claims."""

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
    """Read `size` bytes; an unbuffered file returns at most 2 GiB per call, a network file what has arrived."""
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
            # A negative size would lead back to headers that were read before, in an endless loop.
            if member.size < 0 or member.offset < reached:
                raise tarfile.ReadError("a header leads back")
            yield member
            reached = member.offset_data
    except (tarfile.TarError, ValueError, RecursionError) as error:
        if reached < 0:
            raise tarfile.ReadError(str(error)) from None


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) at the first dot of the last part; no key for a hidden file.

    As WebDataset has it, whose regular expression takes minutes for a name of many slashes.
    """
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (folder + slash + stem, suffix.lower()) if stem and "." in file else ("", "")


def _warn_of_unused(
    index: dict[str, dict[str, tuple[int, int]]], repeated: list[str], linked: list[str], path: Path
) -> None:
    """Say what of a tar is left out although somebody put it there."""
    names = [f"{key}.{suffix}" for key, members in index.items() if not _media(members) for suffix in members]
    tables = [n for n in names if n.rpartition(".")[2] in _TABLES or n.rpartition("/")[2] in _TABLE_NAMES]
    videos = {key: [s for s in _with_kind(members, VIDEO_SUFFIXES) if "." not in s] for key, members in index.items()}
    several = [key for key, suffixes in videos.items() if len(suffixes) > 1]
    if tables:
        text = "%s: no captions from %s, tables in tars are not read; put KEY.txt beside KEY.mp4"
        logger.warning(text, path, tables[0])
    if repeated:
        logger.warning("%s: %d names are there again, such as %s; the first is used", path, len(repeated), repeated[0])
    if linked:
        text = "%s: %d links and sparse files are not read, such as %s; tar -h packs what links lead to"
        logger.warning(text, path, len(linked), printable(linked[0]))
    if several:
        logger.warning("%s: several videos in %d samples, such as %s; one is used", path, len(several), several[0])


def _index_tar(file: IO[bytes], path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Offsets of the members by key and suffix; of a repeated name the first one counts, and a warning says so.

    A link to another member, which tar writes for a file that it has packed under another name, is that member.
    """
    index: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    repeated: list[str] = []
    linked: list[str] = []
    bounded = _Bounded(file)
    with tarfile.open(fileobj=bounded, mode="r:") as tar:  # type: ignore[call-overload]  # it needs no other methods
        for member in _whole_members(tar):
            end = member.offset_data + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
            key, suffix = split_name(composed(member.name))
            place: tuple[int, int] | None = None
            if member.isreg() and not member.issparse():
                place = member.offset_data, member.size
            elif member.islnk():
                target, kind = split_name(composed(member.linkname))
                place = index.get(target, {}).get(kind)
            if place is None and (member.issym() or member.islnk() or member.issparse()):
                linked.append(member.name)
            if place and key and index.setdefault(key, {}).setdefault(suffix, place) != place:
                repeated.append(f"{key}.{suffix}")
    _warn_of_unused(index, repeated, linked, path)
    bounded.seek(end)
    if bounded.read(_TAR_BLOCK).strip(b"\0") or bounded.tell() < end + _TAR_BLOCK:
        logger.warning("%s: damaged or cut off after %d samples", path, len(index))
    elif bounded.read(_BEHIND).strip(b"\0"):
        logger.warning("%s: what follows its end, as in joined tars, is not read; join them with tar -A", path)
    return index
