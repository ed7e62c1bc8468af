"""Frames, durations and rates of files that are not as regular as an mp4 of one's own."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from sat_ssvae.data import video_io
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.video_io import probe, read_clip

from .test_video_io import corner_pictures, counted_pictures, encode, frame_numbers

GOP = 12


def counted_at(path, times, codec="libx264", container=None, **stream_options):
    """Pictures that tell their number, at `times` in milliseconds."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=20, options=stream_options)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = GOP, 2 * (codec == "libx264")
        stream.codec_context.bit_rate, stream.codec_context.time_base = 2_000_000, Fraction(1, 1000)
        for time, picture in zip(times, counted_pictures(), strict=False):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def decoded_frames(monkeypatch):
    """A list that grows with every frame that is decoded from here on."""
    decoded, original = [], video_io.decoded
    monkeypatch.setattr(
        video_io, "decoded", lambda *place: (decoded.append(frame.pts) or frame for frame in original(*place))
    )
    return decoded


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ts", {}),
        ("a.flv", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.mkv", {}),
        ("a.mp4", {"x264-params": "open-gop=1:scenecut=0"}),
        ("a.ts", {"x264-params": "open-gop=1:scenecut=0"}),
    ],
)
def test_every_frame_is_found_and_none_far_before_it_decoded(tmp_path, monkeypatch, name, options):
    """A transport stream has no index: a seek misses the key frame, and one to its start misses the first of them."""
    path = counted_at(tmp_path / name, range(0, 3000, 50), **options)
    info = probe(path)
    assert name != "a.avi" or (info.frames, round(info.fps, 2)) == (60, 20)
    decoded = decoded_frames(monkeypatch)
    for number in range(60):
        decoded.clear()
        clip = read_clip(path, start=number / 20, num_frames=1, fps=8, size=(32, 32))
        assert frame_numbers(clip) == [number]
        assert len(decoded) <= 20 + 2 * GOP + 8  # a second back, and the rest of two groups of pictures


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_a_video_that_begins_late_is_no_longer_for_that(tmp_path, name):
    path = counted_at(tmp_path / name, range(2000, 5000, 50))
    info = probe(path)
    assert info.duration == pytest.approx(3.0, abs=0.011) and info.fps == pytest.approx(20)
    for number in (0, 1, 7, 30, 59):
        assert frame_numbers(read_clip(path, start=number / 20, num_frames=1, fps=8, size=(32, 32))) == [number]


def without_rate(data):
    """Overwrite the frame rate in a Matroska file's header, which what browsers record does not have."""
    at = data.index(b"\x23\xe3\x83")
    size = 4 + (data[at + 3] & 0x7F)
    return data[:at] + bytes([0xEC, 0x80 | (size - 2)]) + bytes(size - 2) + data[at + size :]


@pytest.mark.parametrize("container", [{}, {"live": "1"}])
def test_a_recording_of_uneven_frames_is_measured(tmp_path, container):
    """FFmpeg guesses 1000 frames a second there, and a live one does not tell its duration."""
    times = np.cumsum(np.random.default_rng(0).choice([33, 34, 66, 100, 200], 60)) - 33
    path = counted_at(tmp_path / "a.webm", times.tolist(), "libvpx", container, deadline="realtime")
    path.write_bytes(without_rate(path.read_bytes()))
    span = (times[-1] - times[0]) / 1000
    info = probe(path)
    assert info.frames == 60 and info.fps == pytest.approx(60 / info.duration, rel=0.01)
    assert span <= info.duration <= span + 0.2
    last = read_clip(path, start=span, num_frames=1, fps=8, size=(32, 32))
    assert frame_numbers(last) == [59]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_last_frame_lasts_as_long_as_it_says(tmp_path, name):
    """Recordings of a screen have no frame where nothing moves; they are not cut off."""
    source = counted_at(tmp_path / "source.mp4", range(0, 1000, 50))
    with av.open(str(source)) as given, av.open(str(tmp_path / name), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
        for packet in packets:
            if packet.pts == max(packet.pts for packet in packets):
                packet.duration = int(3 / packet.time_base)
            packet.stream = stream
            output.mux(packet)
    with av.open(str(tmp_path / name)) as written:
        if not any(packet.duration for packet in written.demux(video=0)):
            pytest.skip("FFmpeg before 8.1.2 writes no durations into Matroska files")
    info = probe(tmp_path / name)
    assert info.duration > 3.5
    clip = read_clip(tmp_path / name, start=0.9, num_frames=9, fps=4, size=(32, 32))
    assert frame_numbers(clip) == [18] + [19] * 8
    with pytest.raises(VideoError, match="too short"):
        read_clip(tmp_path / name, start=5, num_frames=1, fps=4, size=(32, 32))


@pytest.mark.parametrize("aspect", [(0x7FFFFFFF, 1), (0xFFFF, 1), (5000, 1)])
def test_pixels_of_an_impossible_shape_are_no_crash(tmp_path, aspect):
    path = encode(tmp_path / "v.mp4", corner_pictures(64, 64), 8, sample_aspect_ratio=Fraction(2, 1))
    data = path.read_bytes()
    at = data.index(b"pasp") + 4
    data = data[:at] + struct.pack(">II", *aspect) + data[at + 8 :]
    with pytest.raises(VideoError, match="impossible header"):
        read_clip(data, start=0, num_frames=1, fps=8, size=(1080, 1920))


def test_a_stream_that_begins_in_the_middle_is_no_crash(tiny_video, monkeypatch):
    """PyAV now and then takes its packets for those that were asked for, and does not find the stream (IndexError)."""

    def decode(container, stream, source):
        yield container.streams[1]

    monkeypatch.setattr(video_io, "decoded", decode)
    with pytest.raises(VideoError, match="decoding error"):
        read_clip(tiny_video, start=0, num_frames=1, fps=8, size=(32, 32))
