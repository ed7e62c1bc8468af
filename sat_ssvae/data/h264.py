"""Colours between RGB and video, and H.264 in mp4 as all of the package writes it.

One thread, no B-frames, colours tagged as players expect them.
"""

from fractions import Fraction

import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

BT709, UNSPECIFIED, BT601 = 1, 2, 6  # matrix coefficients, ITU-T H.273 table 4

# libswscale's flags by their numbers; PyAV for Python 3.10 has no names for the last two.
BICUBIC = 0x4
ACCURATE_ROUNDING = 0x40000
FULL_CHROMA = 0x2000  # chroma interpolated for every pixel, not for every second one


def default_matrix(height: int) -> int:
    """Players take untagged HD for BT.709, anything smaller for BT.601; so do we, and tag what we write."""
    return BT709 if height >= 720 else BT601


def even_frame(picture: np.ndarray) -> VideoFrame:
    """uint8 RGB `H W C` as a frame of even size: an odd last row or column is repeated."""
    height, width, _ = picture.shape
    padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return VideoFrame.from_ndarray(padded.astype(np.uint8, copy=False), "rgb24")


def add_h264_stream(
    container: OutputContainer, rate: Fraction, height: int, width: int, *, crf: int, keyframe_interval: float = 1.0
) -> VideoStream:
    """A stream for even frames of this size, with a key frame every `keyframe_interval` seconds."""
    # x264's macroblock tree gives other bytes now and then, even in one thread
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "fast", "mbtree": "0"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.max_b_frames = 0
    stream.codec_context.gop_size = max(1, round(keyframe_interval * rate))
    stream.codec_context.colorspace = default_matrix(height)
    stream.codec_context.color_range = 1
    return stream


def to_yuv420p(frame: VideoFrame, scaler: VideoReformatter) -> VideoFrame:
    """An RGB frame in the colours that `add_h264_stream` tags."""
    return scaler.reformat(
        frame,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709 if default_matrix(frame.height) == BT709 else Colorspace.ITU601,
        dst_color_range=1,
        interpolation=BICUBIC | ACCURATE_ROUNDING,
        threads=1,
    )
