import numpy as np
import pytest

from sat_ssvae.data.resample import count_resampled, read_resampled
from sat_ssvae.data.video_io import VideoError, probe, read_clip

from .test_reconstruct import waves


@pytest.mark.parametrize(
    ("frames", "fps", "expected"), [(39, 8, 13), (15, 8, 5), (1, 8, 1), (24, 48, 48), (25, 24, 25)]
)
def test_a_whole_video_at_another_rate(tmp_path, frames, fps, expected):
    source = waves(tmp_path / "in.mp4", frames, 24, 20)
    pictures = list(read_resampled(source, fps, (16, 16)))
    assert len(pictures) == count_resampled(probe(source), fps) == expected
    few = min(expected, 4)
    clip = read_clip(source, start=0, num_frames=few, fps=fps, size=(16, 16)).permute(1, 2, 3, 0).numpy()
    assert np.array_equal(np.stack(pictures[:few]), clip)


def test_what_is_no_video(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    with pytest.raises(VideoError, match="not a video"):
        next(read_resampled(tmp_path / "broken.mp4", 8, (16, 16)))
