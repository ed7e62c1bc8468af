"""What the bytes of a file tell about its end where FFmpeg does not: a missing one, or another file behind it.

    if is_cut_off("gif", path): ...

FFmpeg's names of formats; a file is a path or its bytes. Of other formats than those here, the answer is no.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .files import opened

_GIF_HEAD = 13
_OGG_PAGE = 27 + 255 + 255 * 255  # the most bytes of one
_MATROSKA = "matroska,webm"
_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_EBML_HEAD = b"\x1aE\xdf\xa3"  # the element that a Matroska file begins with
_UNKNOWN = (0, 0xFFFFFFFF)  # the length of a chunk of AVI that was written to a pipe


def is_cut_off(container: str, source: Path | bytes) -> bool:
    """Whether a file (AVI, GIF, Ogg, ASF, MP4 in fragments) lacks its end, as a half-downloaded one does."""
    if container not in ("avi", "gif", "ogg", "asf", _MOV):
        return False
    with opened(source) as file:
        size = _size(file)
        if container == "avi":  # the pictures take more bytes than there are; an index behind them may be missing
            return any(kind == b"LISTmovi" and end > size + 1 for kind, end in _avi_chunks(file, size))
        if container == "gif":
            return _end_of_gif(file, size) is None
        if container == _MOV:
            return _is_fragment_cut_off(file, size)
        return _is_ogg_cut_off(file, size) if container == "ogg" else _is_asf_cut_off(file, size)


def is_joined(container: str, source: Path | bytes) -> bool:
    """Whether another file (AVI, GIF, Matroska) was put behind the first, whose header does not know of it."""
    if container not in ("avi", "gif", _MATROSKA):
        return False
    with opened(source) as file:
        if container == _MATROSKA:
            return list(_ebml_elements(file, _size(file))).count(_EBML_HEAD) > 1
        if container == "avi":
            return [kind for kind, _ in _avi_chunks(file, _size(file))].count(b"RIFFAVI ") > 1
        end = _end_of_gif(file, _size(file))
        file.seek(end or 0)
        return end is not None and file.read(4) == b"GIF8"


def _size(file: IO[bytes]) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _avi_chunks(file: IO[bytes], size: int) -> Iterator[tuple[bytes, int]]:
    """Name and end of the chunks, down to those in RIFF; the name of a list or RIFF has its type behind it."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if length in _UNKNOWN:
            return
        end = position + 8 + length + length % 2
        nested = head[:4] in (b"RIFF", b"LIST")
        yield head[:4] + (head[8:] if nested else b""), end
        position = position + 12 if head[:4] == b"RIFF" else end


def _is_fragment_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether an MP4 file ends inside a fragment; where there are none, the header says what pictures there are."""
    position, kinds = 0, [b""]
    while position < size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
        if length < 8:  # 0: up to the end
            return False
        kinds.append(head[4:8])
        position += length
    return position > size and b"moof" in kinds and kinds[-1] in (b"moof", b"mdat")


def _ebml_elements(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Names of the outermost elements of a Matroska file, up to one whose length its writer did not know."""
    position = 0
    while position < size:
        file.seek(position)
        name, _ = _ebml_number(file)
        length, bits = _ebml_number(file)
        if not name or not length or bits == (1 << 7 * len(length)) - 1:
            return
        yield name
        position += len(name) + len(length) + bits


def _ebml_number(file: IO[bytes]) -> tuple[bytes, int]:
    """The bytes of a number whose first byte says how many there are, and its value; none at the end of the file."""
    first = file.read(1)
    count = 9 - first[0].bit_length() if first else 0
    if not 1 <= count <= 8:
        return b"", 0
    number = first + file.read(count - 1)
    return number, int.from_bytes(number, "big") & ((1 << 7 * count) - 1)


def _end_of_gif(file: IO[bytes], size: int) -> int | None:
    """Where the trailer, or what no GIF has, ends; None if the file ends before."""
    position = _GIF_HEAD + _table_size(file.read(_GIF_HEAD)[-3:])
    while position < size:
        file.seek(position)
        kind, *head = file.read(10)
        if kind not in b",!":
            return position + 1
        # A picture: place, size, flags, colours, the bits of a code; an extension: its label.
        position += 11 + _table_size(bytes(head[-1:])) if kind == ord(",") else 2
        length = 1
        while length and position < size:
            file.seek(position)
            length = file.read(1)[0]
            position += 1 + length
    return None


def _table_size(flags: bytes) -> int:
    """Bytes of the colours that a header's flags announce."""
    return 3 << (flags[0] % 8 + 1) if flags and flags[0] & 0x80 else 0


def _is_ogg_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether the last page is incomplete."""
    file.seek(max(0, size - _OGG_PAGE))
    tail = file.read()
    page = tail.find(b"OggS")
    while page >= 0:
        body = page + 27 + int.from_bytes(tail[page + 26 : page + 27], "little")
        end = max(body, page + 27) + sum(tail[page + 27 : body])
        if end > len(tail):
            return True
        page = tail.find(b"OggS", end)
    return False


def _is_asf_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether the packets take more bytes than there are; of a stream, the header does not know."""
    start = int.from_bytes(file.read(24)[16:], "little")
    file.seek(start)
    return start + int.from_bytes(file.read(24)[16:], "little") > size
