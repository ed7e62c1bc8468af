"""Moving pictures in files whose suffix is that of still ones: WebP, PNG and AVIF.

if is_animated(path): ...               # it is read as a video
source = readable_webp(path, max_pixels) or path
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageFile, UnidentifiedImageError

from .files import VideoError, name_of, reason_of

# What Pillow's parsers raise for damaged files (damaged EXIF data, for example).
PILLOW_ERRORS = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    NotImplementedError,
    struct.error,
)
_PNG = b"\x89PNG\r\n\x1a\n"
_ANIMATION = 0x02  # flag of WebP's extended header
_SHORTEST, _INSTEAD = 11, 100  # milliseconds: browsers show pictures of less than the first for the second


def is_animated(source: Path | bytes) -> bool:
    """Whether a WebP, PNG or AVIF file has several pictures, shown one after the other; no for what cannot be read."""
    try:
        with opened(source) as file:
            head = file.read(32)
            if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
                return bool(head[20] & _ANIMATION) and _count_pictures(file) > 1
            if head.startswith(_PNG):
                return _is_animated_png(file)
            return head[4:12] == b"ftypavis"
    except (OSError, IndexError):
        return False


def opened(source: Path | bytes) -> AbstractContextManager[IO[bytes]]:
    """A path or a file's bytes as a file."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _count_pictures(file: IO[bytes]) -> int:
    return sum(name == b"ANMF" for name, _ in _webp_chunks(file))


def _webp_chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Name and end of the chunks of a WebP file."""
    size, position = file.seek(0, os.SEEK_END), 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack("<4sI", file.read(8))
        position += 8 + length + length % 2
        yield name, position


def _is_animated_png(file: IO[bytes]) -> bool:
    """Whether the chunk that tells the number of pictures comes before the first of them."""
    size, position = file.seek(0, os.SEEK_END), len(_PNG)
    while position + 12 <= size:
        file.seek(position)
        length, name, count = struct.unpack(">I4sI", file.read(12))
        if name in (b"acTL", b"IDAT"):
            return bool(name == b"acTL" and count > 1)
        position += 12 + length
    return False


def readable_webp(source: Path | bytes, max_pixels: int) -> bytes | None:
    """An animated WebP, which FFmpeg cannot read, as a QuickTime file of the same pictures and times; None for others.

    Pictures are decoded by Pillow, transparency over white.

    Raises:
        VideoError: "too large", "truncated", "decoding error".
    """
    with opened(source) as file:
        head = file.read(30)
    if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or not is_animated(source):
        return None
    width, height = (1 + int.from_bytes(head[place : place + 3], "little") for place in (24, 27))
    if width * height > max_pixels:
        raise VideoError("too large", f"{name_of(source)}: {height}x{width} pixels")
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if 8 + int.from_bytes(head[4:8], "little") > size + 1:
        raise VideoError("truncated", f"{name_of(source)}: its end is missing")
    return _converted(source)


def _converted(source: Path | bytes) -> bytes:
    file = io.BytesIO()
    try:
        with (
            Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=["WEBP"]) as image,
            av.open(file, "w", format="mov") as container,
        ):
            stream = cast(VideoStream, container.add_stream("png", rate=25))
            stream.width, stream.height, stream.pix_fmt = image.width, image.height, "rgb24"
            stream.codec_context.time_base = Fraction(1, 1000)
            time = 0
            for picture, lasts in _pictures(image):
                frame = VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                for packet in stream.encode(frame):
                    packet.duration = lasts
                    container.mux(packet)
                time += lasts
            container.mux(stream.encode(None))
    except (*PILLOW_ERRORS, av.FFmpegError) as error:
        raise VideoError("decoding error", f"{name_of(source)} ({reason_of(error)})") from None
    return file.getvalue()


def _pictures(image: ImageFile.ImageFile) -> Iterator[tuple[np.ndarray, int]]:
    """The pictures over white, uint8 RGB `H W C`, and for how many milliseconds each is shown."""
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        layer = image.convert("RGBA")
        lasts = round(image.info.get("duration", 0))
        white = Image.new("RGBA", layer.size, "white")
        picture = np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
        yield picture, lasts if lasts >= _SHORTEST else _INSTEAD
