"""What headers say that is not so: lengths in milliseconds, hidden frames, the sound's duration, other streams."""

import itertools
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from sat_ssvae.data.clips import unsuitable
from sat_ssvae.data.containers import VIDEO_SUFFIXES, decoded, open_video
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.index import Sample
from sat_ssvae.data.pack import pack
from sat_ssvae.data.resample import read_resampled
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.video_io import probe, read_clip, read_frames
from sat_ssvae.data.video_write import VideoWriter
from sat_ssvae.errors import UserError

from .numbered_videos import CODECS, CUT, PACK, is_whole, number_of, numbered, record
from .shard_files import small
from .test_video_io import corner_pictures, corners, encode


@pytest.mark.parametrize("fps", [16, 24, 30, Fraction(30000, 1001)])
@pytest.mark.parametrize("count", [17, 49, 81])
@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mp4", "libx264")])
def test_a_clip_of_exactly_the_wanted_length(tmp_path, name, codec, count, fps):
    (tmp_path / "in").mkdir()
    path = record(tmp_path / "in" / name, count, fps, codec, milliseconds=True)
    assert is_whole(path, count, float(probe(path).fps), tmp_path / "out")


@pytest.mark.parametrize("milliseconds", [5061, 5062, 5063])
def test_a_duration_that_a_meta_file_rounds(tmp_path, milliseconds):
    sample = Sample(0, "a", "a", milliseconds / 1000, 16, 48, 32, "")
    assert unsuitable(sample, small(tmp_path, num_frames=81, fps=16)) is None
    cause, detail = unsuitable(sample, small(tmp_path, num_frames=85, fps=16))
    assert cause == "too short" and detail == "81 frames at 16 per second, wanted 85 at 16"


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.flv", "a.mp4", "a.wmv"])
@pytest.mark.parametrize("sound", [0.0, 1.0, 2.9, 6.0])
def test_sound_that_outlasts_the_pictures_or_ends_before(tmp_path, name, sound):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    record(path, 49, 24, CODECS.get(path.suffix, "libx264"), sound=sound)
    assert is_whole(path, 49, 24, tmp_path / "out")


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mjpeg"])
@pytest.mark.parametrize("gap", [0, 1, 13])
def test_empty_chunks_behind_the_first_picture_of_an_avi(tmp_path, codec, gap):
    """FFmpeg writes them where the sound begins before the pictures; libx264 has frames out of order, too."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.bit_rate = 1_000_000
        frames = [av.VideoFrame.from_ndarray(picture, "rgb24") for picture in numbered(17)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number + (gap if number else 0)
            packet.time_base = Fraction(1, 8)
            output.mux(packet)
    assert path.read_bytes().partition(b"movi")[2].partition(b"idx1")[0].count(b"00dc\0\0\0\0") == gap
    assert is_whole(path, 17, 8, tmp_path / "out")
    for number in range(17):
        clip = read_clip(path, start=number / 8, num_frames=1, fps=8, size=(32, 48))
        assert number_of(clip[:, 0].permute(1, 2, 0).numpy()) == number


def test_wmv_of_frames_that_are_shown_in_another_order(tmp_path):
    """It stores the times of decoding."""
    (tmp_path / "in").mkdir()
    path = record(tmp_path / "in" / "a.wmv", 25, 24)
    with open_video(path) as (_, stream):
        assert stream.codec_context.has_b_frames
    assert is_whole(path, 25, 24, tmp_path / "out")
    clip = read_clip(path, start=17 / 24, num_frames=1, fps=24, size=(32, 48))
    assert number_of(clip[:, 0].permute(1, 2, 0).numpy()) == 17


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("sound", [0.0, 1.0, 4.0])
def test_a_matroska_file_that_begins_before_zero(tmp_path, codec, sound):
    (tmp_path / "in").mkdir()
    source, path = record(tmp_path / "a.mp4", 17, 8, codec), tmp_path / "in" / "a.mkv"
    sounds = record(tmp_path / "b.mkv", 1, 8, sound=sound) if sound else None
    with av.open(str(source)) as given, av.open(str(path), "w", options=CUT) as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        other = None
        if sounds:
            with av.open(str(sounds)) as heard:
                other = output.add_stream_from_template(heard.streams.audio[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                shift = round(0.625 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                output.mux(packet)
        if sounds:
            with av.open(str(sounds)) as heard:
                for packet in heard.demux(heard.streams.audio[0]):
                    if packet.size:
                        packet.stream = other
                        output.mux(packet)
    assert is_whole(path, 17, 8, tmp_path / "out")


class EndsWithRepeats:
    """A video behind whose last picture Ogg's empty packets say that it is shown again; PyAV cannot write Theora."""

    format = SimpleNamespace(name="ogg")

    def __init__(self, container, repeats):
        self._container, self._repeats = container, repeats

    def demux(self, stream):
        end = None
        for packet in self._container.demux(stream):
            if packet.size:
                yield packet
                end = packet.pts + packet.duration
            else:
                for index in range(self._repeats):
                    empty = av.Packet(b"")
                    empty.stream, empty.time_base = stream, stream.time_base
                    empty.pts, empty.duration = end + index * LASTS, LASTS
                    yield empty
                yield packet


LASTS = 512


@pytest.mark.parametrize("repeats", [0, 1, 30])
def test_an_empty_packet_shows_the_picture_again(tmp_path, repeats):
    path = record(tmp_path / "a.mp4", 10, 24, "mpeg4")
    with open_video(path) as (container, stream):
        frames = list(decoded(EndsWithRepeats(container, repeats), stream, path))
    assert [number_of(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(10))
    assert [frame.duration for frame in frames] == [LASTS] * 9 + [LASTS * (1 + repeats)]


@pytest.mark.parametrize("fps", [8, 16, 24])
def test_a_gif_counts_in_hundredths_of_a_second(tmp_path, fps):
    path = tmp_path / "a.gif"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("gif", rate=fps)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb8"
        for index, picture in enumerate(numbered(17)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="rgb8")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    info = probe(path)
    assert info.fps == pytest.approx(fps, rel=0.03) and info.frames == 17
    sample = Sample(0, "a", "a", info.duration, info.fps, 48, 32, "")
    assert unsuitable(sample, small(tmp_path, num_frames=17, fps=fps)) is None


@pytest.mark.parametrize("start", [0.0, 1.5])
@pytest.mark.parametrize("sound", [0.0, 4.0])
def test_a_half_downloaded_file_is_truncated(tmp_path, sound, start):
    path = record(tmp_path / f"whole.{'mp4' if sound else 'mkv'}", 97, 24, sound=sound, start=start)
    data = path.read_bytes()
    if sound:  # pictures first, then the sound: interleave them
        path = interleaved(path, tmp_path / "mixed.mkv")
        data = path.read_bytes()
    assert len(list(read_frames(data))) == 97
    half = data[: len(data) // 2]
    for read in (lambda: list(read_frames(half)), lambda: list(read_resampled(half, 24, (32, 48)))):
        with pytest.raises(VideoError, match="truncated"):
            read()


def interleaved(source, path):
    with av.open(str(source)) as given, av.open(str(path), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in given.streams}
        packets = [packet for packet in given.demux() if packet.size and packet.dts is not None]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            packet.stream = streams[packet.stream_index]
            output.mux(packet)
    return path


MATRICES = list(
    itertools.chain.from_iterable(
        [((a, 0, 0, d), "plain"), ((0, a, d, 0), "transposed")] for a in (1, -1) for d in (1, -1)
    )
)


@pytest.mark.parametrize(("matrix", "kind"), MATRICES)
def test_the_whole_display_matrix_is_used(tmp_path, matrix, kind):
    a, b, c, d = matrix
    data = encode(tmp_path / "v.mp4", corner_pictures(64, 96), 8).read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    packed = struct.pack(">9i", *(65536 * v for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    data = data[:place] + packed + data[place + 36 :]
    info = probe(data)
    assert (info.height, info.width) == ((96, 64) if kind == "transposed" else (64, 96))
    stored = {(-1, -1): "red", (1, -1): "green", (1, 1): "blue", (-1, 1): "white"}  # x, y from the centre
    shown = {(a * x + c * y, b * x + d * y): name for (x, y), name in stored.items()}
    expected = [shown[place] for place in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    clip = read_clip(data, start=0, num_frames=1, fps=8, size=(info.height, info.width))
    assert corners(clip[:, 0]) == expected
    picture = next(read_frames(data)).picture
    assert corners(picture.transpose(2, 0, 1)) == expected


def test_the_video_is_the_best_stream(tmp_path):
    """Not a cover picture, not a thumbnail, not the first by habit."""
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as output:
        streams = []
        for codec, height, disposition in (("png", 128, "attached_pic"), ("libx264", 32, ""), ("libx264", 64, "")):
            stream = output.add_stream(codec, rate=8)
            stream.height = stream.width = height
            stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
            if disposition:
                stream.disposition = av.stream.Disposition.attached_pic
            streams.append(stream)
        for stream in streams:
            for _ in range(1 if stream is streams[0] else 9):
                picture = np.full((stream.height, stream.width, 3), 128, np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            output.mux(stream.encode(None))
    info = probe(path)
    assert (info.height, info.width, info.frames) == (64, 64, 9)


def test_a_cover_picture_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        audio, cover = output.add_stream("aac", rate=48000), output.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate, silence.pts = 48000, 0
        output.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        output.mux(cover.encode(None))
        output.mux(audio.encode(silence))
        output.mux(audio.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        probe(tmp_path / "a.mp4")


FORMATS = {".mts": "mpegts", ".m2ts": "mpegts", ".3gp": "3gp", ".vob": "vob", ".ogv": "ogg"}


def test_a_photo_in_heif_is_no_video(tmp_path):
    """FFmpeg takes each of its tiles for a video."""
    path = encode(tmp_path / "photo.mp4", corner_pictures(64, 96, 1), 8)
    path.write_bytes(path.read_bytes().replace(b"ftypisom", b"ftypheic", 1))
    path = path.rename(tmp_path / "photo.heic")
    with pytest.raises(VideoError, match=r"photo\.heic: a still picture in HEIF; convert it to JPEG or PNG"):
        probe(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_less_usual_suffixes_are_seen_everywhere(tmp_path, suffix):
    codec = {".ogv": "libvpx", ".vob": "mpeg2video"}.get(suffix, "libx264")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"A{suffix.upper()}"
    with av.open(str(path), "w", format=FORMATS[suffix]) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in corner_pictures(48, 64, 25):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode(None))
    (clip,) = fixed_clips(small(tmp_path / "in"), stride=100)
    assert clip.key == f"in/A{suffix.upper()}"
    assert pack(tmp_path / "in", tmp_path / "out", PACK).samples == 1
    assert suffix in VIDEO_SUFFIXES


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "http:x.mp4", "file:y.mp4", "pipe:1.mp4", "concat:a|b.mp4", "%d #?*[1].mp4"]
)
def test_a_name_is_never_an_address(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "v.mp4", corner_pictures(64, 96, 9), 8).rename(name)
    assert probe(Path(name)).frames == 9
    (clip,) = fixed_clips(small("."), stride=100)
    assert clip.key.endswith(f"/{name}")
    with VideoWriter(Path(f"out-{name}"), 8) as writer:
        for frame in read_frames(Path(name)):
            writer.write(frame.picture, frame.time)
    assert probe(Path(f"out-{name}")).frames == 9


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.avi", "huffyuv", "rgb24"),
        ("a.avi", "rawvideo", "bgr24"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.wmv", "wmv2", "yuv420p"),
        ("a.flv", "flv", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.ogv", "libvpx", "yuv420p"),
    ],
)
@pytest.mark.parametrize("share", [0.6, 0.75])
def test_a_file_without_its_end_is_truncated(tmp_path, name, codec, pixels, share):
    """FFmpeg fills the rest of the last picture, shortens AVI's duration and drops that of WMV."""
    pictures = np.random.default_rng(0).integers(0, 255, (72, 32, 48, 3), np.uint8)
    whole = tmp_path / f"whole{name[1:]}"
    with av.open(str(whole), "w") as output:
        stream = output.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)))
        output.mux(stream.encode(None))
    assert probe(whole).frames == sum(1 for _ in read_frames(whole)) == 72
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(VideoError, match="truncated"):
        list(read_frames(path))
    with pytest.raises(VideoError, match="truncated"):
        list(read_resampled(path, 8, (32, 48)))
    with pytest.raises(UserError, match=r"no usable video or image \(1 truncated\)"):
        pack(path, tmp_path / "out", PACK)
