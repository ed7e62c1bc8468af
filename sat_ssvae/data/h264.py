"""H.264 in mp4 as all of the package writes it: one thread, no B-frames, colours tagged as players expect them."""

from fractions import Fraction

from av.container import OutputContainer
from av.video.stream import VideoStream

from .colours import default_matrix


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
