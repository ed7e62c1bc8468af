"""A whole video at another frame rate and size, frame by frame.

for picture in read_resampled(path, fps=8, size=(48, 48)): ...      # uint8 RGB H W C
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from .containers import open_video
from .pictures import cover
from .video_io import VideoInfo, nearest_frames, probe


def read_resampled(source: Path | bytes, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames nearest to `k / fps` seconds, as many as `count_resampled` says, scaled and cropped as in `read_clip`.

    Raises:
        VideoError: the file is not a video, or ends before its header says.
    """
    times = [k / fps for k in range(count_resampled(probe(source), fps))]
    scaler = VideoReformatter()
    with open_video(source) as (container, stream):
        for picture in nearest_frames(container, stream, times, source):
            yield cover(picture, size, scaler)


def count_resampled(info: VideoInfo, fps: float) -> int:
    """Frames that `read_resampled` gives, one at least."""
    return max(1, math.ceil(info.duration * fps - 1e-3))
