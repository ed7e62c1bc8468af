from fractions import Fraction

import av
import numpy as np
import pytest

from sat_ssvae.data.video_io import probe, read_frames
from sat_ssvae.data.video_write import VideoWriter
from sat_ssvae.errors import UserError


def ramp(count, height=32, width=48):
    levels = np.linspace(20, 230, count).astype(np.uint8)
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def video_with_sound(path, codec, container_format=None):
    """One second of pictures at 25 fps and of a 440 Hz tone."""
    with av.open(str(path), "w", format=container_format) as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        sound = container.add_stream(codec, rate=48000, layout="mono")
        for picture in ramp(25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode(None))
        tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)).astype(np.float32)
        for start in range(0, 48000, 960):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 960], "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def sound_of(path):
    """Codec, samples in [-1, 1], and seconds from the first picture to the first sample."""
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        first = next(container.decode(video)).time
        container.seek(0)
        frames = list(container.decode(sound))
        data = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
        return sound.codec_context.name, data, frames[0].time - first


@pytest.mark.parametrize("fps", [8.0, 23.976023976023978, 25.0, 59.94])
def test_frames_and_rate_come_back(tmp_path, fps):
    path, pictures = tmp_path / "ramp.mp4", ramp(12)
    with VideoWriter(path, fps=fps) as writer:
        for number, picture in enumerate(pictures):
            writer.write(picture, number / Fraction(fps).limit_denominator(60_000))
    assert probe(path).fps == pytest.approx(fps, rel=1e-4) and probe(path).frames == 12
    frames = list(read_frames(path))
    for number, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        assert abs(frame.picture.astype(int) - picture).max() <= 4
        assert float(frame.time) == pytest.approx(number / fps, abs=1e-4)


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    times = [Fraction(0), Fraction(1, 24), Fraction(1, 2), Fraction(51, 100), Fraction(2)]
    with VideoWriter(tmp_path / "variable.mp4", fps=24) as writer:
        for picture, time in zip(ramp(5), times, strict=True):
            writer.write(picture, time)
    written = [float(frame.time) for frame in read_frames(tmp_path / "variable.mp4")]
    assert written == pytest.approx([float(time) for time in times], abs=2e-5)


def test_an_odd_size_is_made_even_and_times_never_go_back(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", fps=10) as writer:
        for picture in ramp(3, 33, 47):
            writer.write(picture, Fraction(0))
    frames = list(read_frames(tmp_path / "odd.mp4"))
    assert len(frames) == 3 and frames[0].picture.shape == (34, 48, 3)


@pytest.mark.parametrize(
    ("codec", "suffix", "kept"), [("aac", "mp4", "aac"), ("flac", "mkv", "flac"), ("pcm_s16le", "mov", "aac")]
)
def test_the_sound_is_kept_and_in_time(tmp_path, codec, suffix, kept):
    source = video_with_sound(tmp_path / f"source.{suffix}", codec)
    with VideoWriter(tmp_path / "copy.mp4", fps=25, sound=source.read_bytes() if suffix == "mkv" else source) as writer:
        for frame in read_frames(source):
            writer.write(frame.picture, frame.time)
    name, data, delay = sound_of(tmp_path / "copy.mp4")
    original_name, original, original_delay = sound_of(source)
    assert (original_name, name) == (codec, kept)
    assert len(data) == pytest.approx(len(original), abs=3000)  # AAC's padding
    strongest = np.abs(np.fft.rfft(data[:48000].astype(float))).argmax() * 48000 / len(data[:48000])
    assert strongest == pytest.approx(440, abs=3)
    assert delay == pytest.approx(original_delay, abs=0.05)


def test_a_source_without_sound_gives_none(tmp_path, tiny_videos):
    source = tiny_videos / "bars0.mp4"
    with VideoWriter(tmp_path / "copy.mp4", fps=24, sound=source) as writer:
        for frame in read_frames(source):
            writer.write(frame.picture, frame.time)
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert not container.streams.audio
    assert probe(tmp_path / "copy.mp4") == probe(source)


def test_nothing_remains_of_an_interrupted_file(tmp_path):
    def interrupted():
        with VideoWriter(tmp_path / "half.mp4", fps=8) as writer:
            writer.write(ramp(1)[0], Fraction(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere"), VideoWriter(tmp_path / "nowhere" / "a.mp4", fps=8):
        pass
