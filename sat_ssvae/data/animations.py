"""Moving pictures in files whose suffix is that of still ones: WebP, PNG and AVIF.

if is_animated(path): ...               # it is read as a video
source = readable_webp(path, max_pixels) or path
"""

import io
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageFile, UnidentifiedImageError

from .files import VideoError, name_of, opened, reason_of

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
_SHORTEST, _INSTEAD = 11, 100  # milliseconds: browsers show pictures of less than the first for the second


def is_animated(source: Path | bytes) -> bool:
    """Whether a WebP, PNG or AVIF file has several pictures, shown one after the other; no for what cannot be read."""
    try:
        with opened(source) as file:
            if file.read(12)[4:] == b"ftypavis":
                return True
        with opened(source) as file, Image.open(file, formats=["PNG", "WEBP"]) as image:
            return bool(getattr(image, "is_animated", False))
    except PILLOW_ERRORS:
        return False


def readable_webp(source: Path | bytes, max_pixels: int) -> bytes | None:
    """An animated WebP, which FFmpeg cannot read, as a QuickTime file of the same pictures and times; None for others.

    Pictures are decoded by Pillow, transparency over white.

    Raises:
        VideoError: "too large", "truncated", "decoding error".
    """
    if isinstance(source, Path) and source.suffix.lower() != ".webp":  # other files are not opened once more
        return None
    with opened(source) as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WEBP":
            return None
        missing = 8 + int.from_bytes(head[4:8], "little") - file.seek(0, os.SEEK_END)
    if missing > 1:  # a last byte of padding may be left out
        raise VideoError("truncated", f"{name_of(source)}: its end is missing")
    return _converted(source, max_pixels) if is_animated(source) else None


def _converted(source: Path | bytes, max_pixels: int) -> bytes:
    file = io.BytesIO()
    try:
        with (
            opened(source) as own,
            Image.open(own, formats=["WEBP"]) as image,
            av.open(file, "w", format="mov") as container,
        ):
            if image.width * image.height > max_pixels:
                raise VideoError("too large", f"{name_of(source)}: {image.height}x{image.width} pixels")
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
    except VideoError:
        raise
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
