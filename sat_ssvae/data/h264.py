"""H.264 in mp4 as all of the package writes it: one thread, no B-frames, colours tagged as players expect them."""

from fractions import Fraction

import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .colours import default_matrix


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
    stream.codec_context.colorspace = default_matrix(height, width)
    stream.codec_context.color_range = 1
    return stream
