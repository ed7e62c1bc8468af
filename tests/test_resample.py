import av
import numpy as np
import pytest

from sat_ssvae.data.files import VideoError
from sat_ssvae.data.resample import count_resampled, read_resampled
from sat_ssvae.data.video_io import probe, read_clip

from .test_reconstruct import waves
from .test_video_io import encode


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


@pytest.mark.parametrize("seconds", [1.0, 1.3, 2.0])
def test_sound_that_outlasts_the_pictures(tmp_path, seconds):
    """mkv tells one duration, of pictures and sound together."""
    path = tmp_path / "in.mkv"
    with av.open(path, "w") as container:
        pictures, sound = container.add_stream("libx264", rate=24), container.add_stream("aac", rate=16000)
        pictures.width, pictures.height, pictures.pix_fmt, sound.layout = 32, 32, "yuv420p", "mono"
        for number in range(24):
            gray = np.full((32, 32, 3), 8 * number, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * seconds)), np.float32), "fltp", "mono")
        silence.rate = 16000
        container.mux(sound.encode(silence))
        for stream in (pictures, sound):
            container.mux(stream.encode(None))
    assert len(list(read_resampled(path, 8, (16, 16)))) in (8, 9)


def test_a_cut_off_file_is_not_taken_for_one_that_ends(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    data = encode(tmp_path / "v.mkv", list(noise), 20).read_bytes()
    assert len(list(read_resampled(data, 8, (16, 16)))) == 24
    with pytest.raises(VideoError, match="truncated"):
        list(read_resampled(data[: len(data) // 2], 8, (16, 16)))


def test_what_is_no_video(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    with pytest.raises(VideoError, match="not a video"):
        next(read_resampled(tmp_path / "broken.mp4", 8, (16, 16)))
