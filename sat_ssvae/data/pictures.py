"""Decoded frames as upright RGB pictures."""

import struct
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from .colours import check_colours, even_frame, scaled_yuv420p, to_rgb, to_yuv420p
from .containers import MAX_PIXELS
from .files import VideoError, name_of

_LEFT_COLOUR = frozenset({"h264", "hevc", "mpeg2video"})
"""Codecs whose colour samples lie on the left if nothing else is said; PyAV does not tell."""


class DisplayedShape(NamedTuple):
    """Size as displayed, and how to turn a stored frame upright: transpose it first, then flip it."""

    height: int
    width: int
    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False


class Picture(NamedTuple):
    """A decoded frame and its displayed shape; `left_colour`: its colour samples lie on the left of two columns."""

    frame: VideoFrame
    shape: DisplayedShape
    left_colour: bool = False


def cover(picture: Picture, size: tuple[int, int], scaler: VideoReformatter) -> np.ndarray:
    """Scale a frame so that it covers `size`, crop at the centre: uint8 RGB, shape `H W C`."""
    height, width = size
    scale = max(height / picture.shape.height, width / picture.shape.width)
    covering = (max(height, round(picture.shape.height * scale)), max(width, round(picture.shape.width * scale)))
    if covering[0] * covering[1] > MAX_PIXELS:
        detail = f"{picture.shape.height}x{picture.shape.width} pixels to cover {height}x{width}"
        raise VideoError("impossible header", detail)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return upright_rgb(picture, covering, scaler)[top : top + height, left : left + width]


def upright_rgb(picture: Picture, size: tuple[int, int], scaler: VideoReformatter) -> np.ndarray:
    """Scale a frame to the displayed (height, width) `size`, turned upright: uint8 RGB, shape `H W C`."""
    shape = picture.shape
    height, width = size[::-1] if shape.transposed else size
    rgb = to_rgb(picture.frame, width, height, scaler)
    rgb = rgb.swapaxes(0, 1) if shape.transposed else rgb
    return rgb[:: -1 if shape.upside_down else 1, :: -1 if shape.mirrored else 1]


def upright_yuv420p(
    picture: Picture, size: tuple[int, int], scaler: VideoReformatter, second: VideoReformatter
) -> VideoFrame:
    """Scale a frame to the displayed (height, width) `size`, turned upright, as `to_yuv420p` has it.

    A size that is odd becomes even: the last row or column is repeated. Most frames need no detour over RGB.
    """
    turned = picture.shape.transposed or picture.shape.upside_down or picture.shape.mirrored
    direct = picture.left_colour and not (turned or size[0] % 2 or size[1] % 2)
    if direct and (scaled := scaled_yuv420p(picture.frame, *size, scaler)):
        return scaled
    return to_yuv420p(even_frame(upright_rgb(picture, size, scaler)), second)


def displayed(stream: VideoStream, frame: VideoFrame, source: Path | bytes) -> Picture:
    """A decoded frame with its displayed shape.

    Raises:
        VideoError: an impossible size, or colours that cannot be shown (HDR).
    """
    check_colours(frame, name_of(source))
    aspect = float(stream.sample_aspect_ratio or 1)
    height, width = frame.height, max(1, round(frame.width * aspect))
    if height * width > MAX_PIXELS:
        raise VideoError("impossible header", f"{name_of(source)}: {height}x{width} pixels as displayed")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Picture(frame, DisplayedShape(height, width), stream.codec_context.name in _LEFT_COLOUR)
    # Displayed x = a x + c y, y = b x + d y, by the nearest quarter turn.
    a, b, _, c, d = struct.unpack("=9i", bytes(cast(bytes, matrix)))[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Picture(frame, DisplayedShape(height, width, upside_down=d < 0, mirrored=a < 0))
    return Picture(frame, DisplayedShape(width, height, transposed=True, upside_down=b < 0, mirrored=c < 0))
