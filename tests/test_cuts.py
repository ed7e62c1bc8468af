"""Videos that were cut or recorded without encoding them again, and less usual containers."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from sat_ssvae.data.clips import unsuitable
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.index import Sample
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.resample import read_resampled
from sat_ssvae.data.video_io import probe, read_frames

from .numbered_videos import CODECS, CUT, is_whole, number_of, numbered, record, record_at, trim
from .shard_files import samples_in, small


@pytest.mark.parametrize("cut", [0.02, 0.1, 1.03, 2.4, 2.51])
def test_an_mp4_cut_without_encoding_it_again(tmp_path, cut):
    source = record(tmp_path / "long.mp4", 100, 24)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "cut.mp4"
    trim(source, path, cut)
    with av.open(str(path)) as container:
        shown = sum(1 for _ in container.decode(video=0))
        assert container.streams.video[0].frames > shown
    assert is_whole(path, shown, 24, tmp_path / "out")


def edit(path, edits):
    """Give an mp4 of 24 fps this edit list of (first picture, number of pictures); None for an empty edit."""
    data = path.read_bytes()
    at = data.index(b"elst") - 4
    size, delay = struct.unpack_from(">I", data, at)[0], struct.unpack_from(">i", data, at + 20)[0]
    movie, media = (struct.unpack_from(">I", data, data.index(name) + 16)[0] for name in (b"mvhd", b"mdhd"))
    entries = [
        (count * movie // 24, -1 if first is None else delay + first * media // 24, 1 << 16) for first, count in edits
    ]
    box = struct.pack(">I4sII", 16 + 12 * len(edits), b"elst", 0, len(edits))
    box += b"".join(struct.pack(">IiI", *entry) for entry in entries)
    head = bytearray(data[:at] + box)
    for name in (b"moov", b"trak", b"edts"):
        place = head.index(name) - 4
        struct.pack_into(">I", head, place, struct.unpack_from(">I", head, place)[0] + len(box) - size)
    path.write_bytes(head + data[at + size :])


@pytest.mark.parametrize("parts", [[(0, 20), (50, 30)], [(35, 25), (5, 20)], [(10, 15), (10, 15)]])
def test_an_mp4_with_several_edits_has_one_clock(tmp_path, parts):
    """As QuickTime cuts: parts of one file follow each other, and pictures that a part needs come hidden before it."""
    path = record(tmp_path / "a.mp4", 90, 24)
    edit(path, parts)
    wanted = [first + index for first, count in parts for index in range(count)]
    assert probe(path).frames == len(wanted)
    assert [number_of(frame.picture) for frame in read_frames(path)] == wanted


@pytest.mark.parametrize("sound", [0.0, 5.0])
@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("late", [0, 1, 36])
@pytest.mark.parametrize("count", [33, 80])
def test_an_mp4_that_begins_late_or_hides_its_end(tmp_path, late, first, count, sound):
    """Phones start the sound first, and cut by edit lists: both move the end that the header states."""
    (tmp_path / "in").mkdir()
    path = record(tmp_path / "in" / "a.mp4", 90, 24, sound=sound)
    edit(path, [(None, late)] * bool(late) + [(first, count)])
    assert [number_of(frame.picture) for frame in read_frames(path)] == list(range(first, first + count))
    assert is_whole(path, count, 24, tmp_path / "out")


def test_pictures_that_come_unevenly_and_of_which_an_edit_shows_some(tmp_path):
    """The last one decoded, before those that are hidden, need not be the last one shown."""
    steps = np.random.default_rng(2).choice([1, 1, 2, 4], 60)
    path = record_at(tmp_path / "a.mp4", [float(k) / 24 for k in np.cumsum([0, *steps])], b_frames=2)
    whole = path.read_bytes()
    for first, count in [(0, 50), (0, 95), (9, 60), (9, 85)]:
        path.write_bytes(whole)
        edit(path, [(first, count)])
        shown = [number_of(frame.picture) for frame in read_frames(path)]
        assert probe(path).frames == len(shown) < 61
        assert number_of(list(read_resampled(path, 30, (32, 48)))[-1]) == shown[-1]


def test_slides_in_a_transport_stream_have_one_clock(tmp_path):
    path = record(tmp_path / "a.ts", 4, Fraction(1, 15))
    assert [number_of(frame.picture) for frame in read_frames(path)] == [0, 1, 2, 3]


def test_a_cut_that_lost_pictures_keeps_its_rate(tmp_path):
    """`ffmpeg -t -c copy` ends between pictures that depend on later ones: a few before the last are missing."""
    source = record(tmp_path / "a.mp4", 50, 24)
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w", options=CUT) as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
        times = [packet.pts for packet in packets]
        end = max(index for index, time in enumerate(times[:-1]) if times[index + 1] < time == max(times[: index + 1]))
        for packet in packets[: end + 1]:
            shift = round(0.5 / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            output.mux(packet)
    info = probe(path)
    assert info.fps == pytest.approx(24, rel=1e-3)
    sample = Sample(0, "a", "a", info.duration, info.fps, 48, 32, "")
    assert unsuitable(sample, small(tmp_path, num_frames=33, fps=24)) is None


@pytest.mark.parametrize("name", ["a.mpg", "a.ts", "a.avi", "a.mkv", "a.mp4"])
def test_pictures_that_need_some_from_before_a_cut_are_not_there(tmp_path, name):
    """As recordings begin, and what is cut without encoding it again: B-frames that are shown before the key frame."""
    source = tmp_path / "long.ts"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("mpeg2video", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 12, 2
        stream.codec_context.bit_rate = 2_000_000
        for picture in numbered(60):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode(None))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    with av.open(str(source)) as given, av.open(str(path), "w", options=CUT if name == "a.mp4" else {}) as output:
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
        second = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        begin = min(packet.pts for packet in packets[second:])
        assert packets[second].pts - begin == 2 * 3750
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in packets[second:]:
            packet.pts, packet.dts, packet.stream = packet.pts - begin + 7500, packet.dts - begin + 7500, stream
            output.mux(packet)
    shown = [frame.picture for frame in read_frames(path)]
    assert is_whole(path, len(shown), 24, tmp_path / "out")
    assert number_of(shown[-1]) == 59


def test_a_program_stream_of_small_pictures(tmp_path):
    """Several pictures share a packet and its stamp, so that FFmpeg guesses their times."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.mpg"
    assert is_whole(record(path, 34, 25, "mpeg2video"), 34, 25, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.h264", "a.264", "a.ivf", "a.mxf", "a.apng"])
def test_less_usual_containers(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    codec = {".ivf": "libvpx", ".mxf": "mpeg2video", ".apng": "apng"}.get(path.suffix, "libx264")
    with av.open(str(path), "w", format="h264" if codec == "libx264" else None) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb24" if codec == "apng" else "yuv420p"
        stream.codec_context.bit_rate = 2_000_000
        for picture in numbered(21):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert is_whole(path, 21, 25, tmp_path / "out")


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "dash+frag_keyframe+empty_moov+global_sidx"])
@pytest.mark.parametrize("sound", [0.0, 5.0])
def test_fragments_that_begin_late(tmp_path, flags, sound):
    """B-frames of a fragmented file begin after zero, which its index takes for a part of the video's length."""
    (tmp_path / "in").mkdir()
    source, path = record(tmp_path / "a.mp4", 49, 24, sound=sound), tmp_path / "in" / "b.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w", options={"movflags": flags}) as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    assert is_whole(path, 49, 24, tmp_path / "out")


def test_subtitles_that_outlast_the_pictures(tmp_path):
    (tmp_path / "in").mkdir()
    source, path = record(tmp_path / "a.mkv", 49, 24), tmp_path / "in" / "b.mkv"
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:09,000\nhello\n")
    with av.open(str(source)) as given, av.open(str(tmp_path / "a.srt")) as text, av.open(str(path), "w") as output:
        streams = [output.add_stream_from_template(stream) for stream in (given.streams[0], text.streams[0])]
        for packets, stream in ((text.demux(), streams[1]), (given.demux(), streams[0])):
            for packet in packets:
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    assert is_whole(path, 49, 24, tmp_path / "out")


def test_an_avi_whose_writer_could_not_go_back_to_the_header(tmp_path):
    """As ffmpeg writes it into a pipe."""
    (tmp_path / "in").mkdir()
    path = record(tmp_path / "in" / "a.avi", 49, 24, "mpeg4")
    data = bytearray(path.read_bytes())
    header, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    data[header + 16 : header + 20] = data[stream + 32 : stream + 36] = struct.pack("<I", 1 << 30)
    path.write_bytes(data[: data.index(b"idx1")])
    assert is_whole(path, 49, 24, tmp_path / "out")


def test_a_cover_picture_without_a_mark(tmp_path):
    """Matroska has no mark for a cover picture that is a track."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as output:
        cover, video = output.add_stream("mjpeg", rate=1), output.add_stream("libx264", rate=8)
        cover.height = cover.width = 128
        video.height = video.width = 64
        cover.pix_fmt, video.pix_fmt = "yuvj420p", "yuv420p"
        for stream, count in ((cover, 1), (video, 9)):
            for _ in range(count):
                picture = np.full((stream.height, stream.width, 3), 128, np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            output.mux(stream.encode(None))
    info = probe(path)
    assert (info.height, info.width, info.frames) == (64, 64, 9)


@pytest.fixture(scope="module")
def leading_pictures(tmp_path_factory):
    """H.265 with leading pictures, twice as large as the others: x265 writes past its buffers below 64 x 64."""
    source = tmp_path_factory.mktemp("leading") / "long.mkv"
    options = "keyint=20:min-keyint=20:scenecut=0:open-gop=0:radl=2:bframes=3:b-adapt=0:log-level=0"
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx265", rate=24, options={"x265-params": options})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for picture in numbered(70):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture.repeat(2, 0).repeat(2, 1), "rgb24")))
        output.mux(stream.encode(None))
    return source


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_pictures_before_the_first_key_frame_that_decode_are_the_beginning(leading_pictures, tmp_path, name):
    """Leading pictures of H.265 and VVC that need none from before a cut: Matroska's start is not the first one's."""
    path = tmp_path / "in" / name
    path.parent.mkdir()
    with av.open(str(leading_pictures)) as given, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(given.streams.video[0]) if packet.size]
        first = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        leading = [packet for packet in packets[first + 1 :] if packet.pts < packets[first].pts]
        for packet in packets[first:]:
            packet.stream = stream
            output.mux(packet)
    assert leading
    assert is_whole(path, 70 - first, 24, tmp_path / "out")


@pytest.mark.parametrize("second", ["a", "long", "late"])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".ts", "libx264"), (".m2ts", "libx264"), (".mkv", "libx264"), (".webm", "libvpx")]
)
def test_joined_files_say_so(tmp_path, second, suffix, codec):
    """`cat a.ts b.ts > joined.ts`: times begin anew in the middle, or go on much later."""
    first = record(tmp_path / f"first{suffix}", 30, 24, codec)
    count, start = {"a": (30, 0), "long": (50, 0), "late": (30, 500)}[second]
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(
        first.read_bytes() + record(tmp_path / f"second{suffix}", count, 24, codec, start=start).read_bytes()
    )
    readers = [lambda: probe(joined)]
    if second != "late" or suffix not in (".mkv", ".webm"):  # in which one may pause as long as one likes
        readers.append(lambda: list(read_frames(joined)))
    for read in readers:
        with pytest.raises(VideoError, match=r"joined\S+: joined of parts with times of their own") as raised:
            read()
        assert raised.value.cause == "several clocks"


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video"), (".mkv", "libx264")])
def test_a_single_picture_has_the_rate_of_pictures(tmp_path, suffix, codec):
    """FFmpeg guesses 50 per second, those of fields."""
    info = probe(record(tmp_path / f"one{suffix}", 1, 25, codec))
    assert (info.frames, info.fps, info.duration) == (1, 25, 1 / 25)


@pytest.mark.parametrize(("suffix", "fps"), [(".mp4", 30), (".mkv", 24), (".webm", 30)])
def test_a_cut_between_two_pictures_repeats_and_loses_none(tmp_path, suffix, fps):
    """Two halves of an odd number of pictures: every one is half a step from its even times."""
    path = record(tmp_path / f"a{suffix}", 41, fps, CODECS.get(suffix, "libx264"))
    pack(path, tmp_path / "out", PackConfig(workers=1, captions="none", segment_seconds=0.7))
    parts = [read_frames(sample["mp4"]) for sample in samples_in(tmp_path / "out")]
    assert len(parts) == 2
    assert [number_of(frame.picture) for part in parts for frame in part] == list(range(41))
