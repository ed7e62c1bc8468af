"""Still images, as clips of one frame.

clip = read_image(path, size=(256, 256))     # uint8 C 1 H W

A source is a path or the file's bytes; what is wrong with a file is a `VideoError`.
"""

import contextlib
import io
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from .animations import PILLOW_ERRORS, is_animated
from .containers import MAX_PIXELS
from .files import VideoError, check_file, name_of, reason_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
"""Of still images; PNG, WebP and AVIF files may also be videos, which `is_image` tells."""


def is_image(suffix: str, source: Path | bytes) -> bool:
    """Whether a file of this suffix (with or without the dot) is a still image rather than a video."""
    return f".{suffix.removeprefix('.').lower()}" in IMAGE_SUFFIXES and not is_animated(source)


def read_image(source: Path | bytes, *, size: tuple[int, int]) -> Tensor:
    """A still image as a clip of one frame: uint8 `C 1 H W`; EXIF rotation applied, transparency over white.

    Raises:
        VideoError: not a readable image.
    """
    picture = open_image(source)
    fitted = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).unsqueeze(1).contiguous()


def open_image(source: Path | bytes) -> Image.Image:
    """An upright RGB image; see `read_image`."""
    check_file(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VideoError("too large", f"{name_of(source)}: {image.height}x{image.width} pixels")
            if pages := _further_pages(image):
                raise VideoError("several pages", f"{name_of(source)}: {pages + 1} pictures; make a video of them")
            upright = ImageOps.exif_transpose(_with_rounded_levels(image, source))
            if upright.mode[0] in "IF":  # gray of more bits, which Pillow's own conversion would make white or black
                upright = Image.fromarray(_gray_of_8_bits(np.asarray(upright)))
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layer = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    except VideoError:
        raise
    except PILLOW_ERRORS as error:
        raise VideoError("not an image", f"{name_of(source)} ({reason_of(error)})") from None


def _further_pages(image: ImageFile.ImageFile) -> int:
    """TIFF's pages of the size of the first one; smaller ones are previews of it."""
    if image.format != "TIFF":
        return 0
    sizes = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        sizes.append(image.size)
    image.seek(0)
    return sizes.count(sizes[0]) - 1


def _with_rounded_levels(image: ImageFile.ImageFile, source: Path | bytes) -> Image.Image:
    """An opened image; one whose colours have 16 bits is decoded by FFmpeg and rounded, as Pillow only drops bits."""
    if image.format not in ("PNG", "TIFF") or image.mode[0] not in "RL" or ";16" not in str(image.tile):
        return image
    image.load()  # raises where pixels are missing, which FFmpeg would fill
    data = source if isinstance(source, bytes) else source.read_bytes()
    decoder = cast(VideoCodecContext, av.CodecContext.create(image.format.lower(), "r"))
    with contextlib.suppress(av.FFmpegError):  # Pillow reads what FFmpeg cannot
        for frame in [*decoder.decode(av.Packet(data)), *decoder.decode(None)]:
            rounded = Image.fromarray(_rounded(frame))
            rounded.getexif().update(image.getexif())
            return rounded
    return image


def _rounded(frame: VideoFrame) -> np.ndarray:
    """The 16-bit values of a packed frame (gray or RGB, with or without alpha) as uint8 `H W C`, or `H W` of gray."""
    (plane,) = frame.planes
    rows = np.frombuffer(memoryview(plane), ">u2" if frame.format.is_big_endian else "<u2")
    values = rows.reshape(frame.height, -1)[:, : frame.width * len(frame.format.components)]
    levels = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return levels.reshape(frame.height, frame.width, -1)


def _gray_of_8_bits(values: np.ndarray) -> np.ndarray:
    """16-bit integers, or floats from -1 to 1, or whose white is 1, 255 or 65535 (by their maximum), as gray 0..255."""
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0)
    if -1.01 <= finite.min() < -0.5 and finite.max() <= 1.01:
        finite = (finite + 1) / 2
    whole = np.issubdtype(values.dtype, np.integer)
    white = 65535.0 if whole else next((top for top in (1.0, 255.0) if finite.max() <= top * 1.01), 65535.0)
    return (finite * (255 / white)).round().clip(0, 255).astype(np.uint8)


def encode_jpeg(image: Image.Image) -> bytes:
    """An RGB image as a JPEG file of high quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()
