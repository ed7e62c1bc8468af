"""A whole video at another frame rate and size, frame by frame.

for picture in read_resampled(path, fps=8, size=(48, 48)): ...      # uint8 RGB H W C
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from .files import VideoError
from .video_io import VideoInfo, cover, nearest_frames, open_video, probe


def read_resampled(source: Path | bytes, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames nearest to `k / fps` seconds, as many as `count_resampled` says, scaled and cropped as in `read_clip`.

    Some formats tell the duration of pictures and sound together alone: where sound goes on, it ends with the pictures.

    Raises:
        VideoError: the file is not a video, or ends before its header says.
    """
    times = [k / fps for k in range(count_resampled(probe(source), fps))]
    scaler = VideoReformatter()
    with open_video(source) as (container, stream):
        sound_may_last_longer = stream.duration is None and len(container.streams) > 1
        pictures = nearest_frames(container, stream, times, source)
        try:
            for picture in pictures:
                yield cover(picture, size, scaler)
        except VideoError as error:
            if error.cause != "truncated" or not sound_may_last_longer:
                raise


def count_resampled(info: VideoInfo, fps: float) -> int:
    """Frames that `read_resampled` gives, one at least."""
    return max(1, math.ceil(info.duration * fps - 1e-3))
