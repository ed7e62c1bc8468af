"""H.264 in mp4 as all of the package writes it: one thread, no B-frames, colours tagged as players expect them."""

from fractions import Fraction

from av.container import OutputContainer
from av.video.stream import VideoStream

from .colours import default_matrix

_TICKS = 90_000  # at least this many in a second: times of a variable frame rate are kept to 11 microseconds


def fine_ticks(rate: Fraction) -> int:
    """Ticks in a second for frames with times of their own; those of even ones are whole numbers of ticks."""
    return rate.numerator * -(-_TICKS // rate.numerator)


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
