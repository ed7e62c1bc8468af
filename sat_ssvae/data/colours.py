"""Colours between video frames and RGB, as exact as 8 bits are.

rgb = to_rgb(frame, width, height, scaler)      # uint8 H W C
"""

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Colorspace, VideoReformatter

from .files import VideoError

# ITU-T H.273, tables 2 to 4: matrix coefficients, transfer characteristics.
BT709, UNSPECIFIED, BT601 = 1, 2, 6
_MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""The weights of red and blue in luma; frames with other matrices are refused."""
_HDR = {16: "PQ (HDR10)", 18: "HLG"}
_FULL_RANGE = 2

# libswscale's flags by their numbers; PyAV for Python 3.10 has no names for the last two.
BICUBIC = 0x4
ACCURATE_ROUNDING = 0x40000
FULL_CHROMA = 0x2000  # chroma interpolated for every pixel, not for every second one


def default_matrix(height: int, width: int) -> int:
    """Players take untagged HD for BT.709, anything smaller for BT.601; so do we, and tag what we write.

    HD has 720 rows, or columns if it stands upright, or a larger side of 1280: a film of 1280x544 is HD with black bars
    cut off.
    """
    return BT709 if min(height, width) >= 720 or max(height, width) >= 1280 else BT601


def check_colours(frame: VideoFrame, name: str) -> None:
    """Refuse a frame whose colours are not those of a standard screen.

    Raises:
        VideoError: "HDR", or "unusual colours" such as YCgCo.
    """
    if frame.color_trc in _HDR:
        raise VideoError(
            "HDR",
            f"{name}: {_HDR[frame.color_trc]}; make it SDR first, for example with ffmpeg's filters zscale and tonemap",
        )
    if not frame.format.is_rgb and frame.colorspace not in (0, UNSPECIFIED, *_MATRICES):
        raise VideoError("unusual colours", f"{name}: matrix coefficients {int(frame.colorspace)} of H.273")


def to_rgb(frame: VideoFrame, width: int, height: int, scaler: VideoReformatter) -> np.ndarray:
    """A frame as it is stored (not turned), scaled: uint8 RGB, shape `H W C`; alpha is ignored.

    Without a tag colours are those of `default_matrix`. Within 0.1 of an exact conversion on average, white is 255.
    """
    if not frame.format.is_rgb and frame.colorspace in (0, UNSPECIFIED):
        frame.colorspace = default_matrix(frame.height, frame.width)
    flags = BICUBIC | ACCURATE_ROUNDING | FULL_CHROMA
    bits = frame.format.components[0].bits
    family = "gbrp" if frame.format.is_rgb else "gray" if frame.format.name.startswith(("gray", "ya")) else "yuv444p"
    if bits not in (9, 10, 12, 14, 16) or (family == "yuv444p" and frame.color_range != _FULL_RANGE):
        return scaler.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1).to_ndarray()
    # libswscale takes the largest value of more bits for 256, not 255: up to half a level too bright.
    # And without scaling it fills half of a picture with rubbish where it should drop the alpha of planar RGB.
    target = f"{'gbrap' if frame.format.name.startswith('gbrap') else family}{bits}le"
    scaled = scaler.reformat(
        frame,
        width,
        height,
        target,
        dst_colorspace=frame.colorspace,
        dst_color_range=_FULL_RANGE,
        interpolation=flags,
        threads=1,
    )
    planes = [_plane(plane, np.uint16) / np.float32(2**bits - 1) for plane in scaled.planes]
    if family == "gray":
        rgb = np.stack(planes * 3, axis=-1)
    elif family == "gbrp":
        rgb = np.stack([planes[2], planes[0], planes[1]], axis=-1)
    else:
        middle = np.float32(2 ** (bits - 1) / (2**bits - 1))
        rgb = _from_yuv(planes[0], planes[1] - middle, planes[2] - middle, *_MATRICES[int(frame.colorspace)])
    return (rgb * 255).round().clip(0, 255).astype(np.uint8)


def to_yuv420p(frame: VideoFrame, scaler: VideoReformatter) -> VideoFrame:
    """An RGB frame of even size in 8 bits of limited range and the colours of `default_matrix`.

    Colour samples lie on the left one of two columns, as H.264 has it; libswscale by itself puts them in the middle,
    and what is then written is half a pixel off.
    """
    matrix = _matrix_for(frame.height, frame.width)
    flags = BICUBIC | ACCURATE_ROUNDING
    whole = scaler.reformat(
        frame, format="yuv444p", dst_colorspace=matrix, dst_color_range=1, interpolation=flags, threads=1
    )
    luma, *colours = (_plane(plane, np.uint8) for plane in whole.planes)
    planes = np.concatenate([luma.ravel(), *(_halved(plane).ravel() for plane in colours)])
    halved = VideoFrame.from_ndarray(planes.reshape(-1, frame.width), "yuv420p")
    halved.colorspace, halved.color_range = whole.colorspace, whole.color_range
    return halved


def _halved(plane: np.ndarray) -> np.ndarray:
    """Means of two rows, and around each even column with the weights 1, 2, 1: uint8, half the size."""
    rows = plane[0::2].astype(np.uint16) + plane[1::2]
    even, odd = rows[:, 0::2], rows[:, 1::2]
    before = np.concatenate([even[:, :1], odd[:, :-1]], axis=1)
    return ((before + 2 * even + odd + 4) >> 3).astype(np.uint8)


def _matrix_for(height: int, width: int) -> Colorspace:
    return Colorspace.ITU709 if default_matrix(height, width) == BT709 else Colorspace.ITU601


def scaled_yuv420p(frame: VideoFrame, height: int, width: int, scaler: VideoReformatter) -> VideoFrame | None:
    """A frame of left colour samples as it is stored (not turned), scaled; None if that takes RGB in between."""
    if frame.format.name != "yuv420p" or frame.color_range == _FULL_RANGE:
        return None
    if frame.colorspace in (0, UNSPECIFIED):
        frame.colorspace = default_matrix(frame.height, frame.width)
    flags = BICUBIC | ACCURATE_ROUNDING
    return scaler.reformat(
        frame,
        width,
        height,
        "yuv420p",
        dst_colorspace=_matrix_for(height, width),
        dst_color_range=1,
        interpolation=flags,
        threads=1,
    )


def even_frame(picture: np.ndarray) -> VideoFrame:
    """uint8 RGB `H W C` as a frame of even size: an odd last row or column is repeated."""
    height, width, _ = picture.shape
    padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return VideoFrame.from_ndarray(padded.astype(np.uint8, copy=False), "rgb24")


def _from_yuv(y: np.ndarray, cb: np.ndarray, cr: np.ndarray, of_red: float, of_blue: float) -> np.ndarray:
    red = y + np.float32(2 * (1 - of_red)) * cr
    blue = y + np.float32(2 * (1 - of_blue)) * cb
    green = (y - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return np.stack([red, green, blue], axis=-1)


def _plane(plane: VideoPlane, kind: type[np.unsignedinteger]) -> np.ndarray:
    return np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width]
