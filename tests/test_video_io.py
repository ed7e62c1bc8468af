import pickle
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sat_ssvae.data import video_io
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.video_io import probe, read_clip, to_uint8, to_unit_range, write_video
from sat_ssvae.errors import UserError

COUNTED_FRAMES, COUNTED_FPS = 60, 20


def encode(path, pictures, fps, codec="libx264", **stream_options):
    """Write with PyAV itself, independent of the code under test."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for name, value in stream_options.items():
            setattr(stream.codec_context, name, value)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


def counted_pictures():
    """Frame i is gray with value 16 + 3 i, so that a decoded frame tells its number."""
    return [np.full((32, 48, 3), 16 + 3 * index, np.uint8) for index in range(COUNTED_FRAMES)]


def frame_numbers(clip):
    return ((clip[:, :, 8:24, 8:24].float().mean(dim=(0, 2, 3)) - 16) / 3).round().int().tolist()


@pytest.fixture(scope="module", params=["mp4", "mkv", "mpg"])
def counted(request, tmp_path_factory):
    """Three seconds at 20 fps with B-frames; mpg has no index, so seeking in it is inexact."""
    path = tmp_path_factory.mktemp("counted") / f"counted.{request.param}"
    options = {"bit_rate": 4_000_000} if request.param == "mpg" else {}
    codec = "mpeg2video" if request.param == "mpg" else "libx264"
    fps = 25 if request.param == "mpg" else COUNTED_FPS  # MPEG-2 knows 25 but not 20
    return encode(path, counted_pictures(), fps, codec, gop_size=7, max_b_frames=2, **options), fps


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.floats(0, 2.0), fps=st.floats(3, 60), num_frames=st.integers(1, 17))
def test_frames_are_the_nearest_in_time(counted, start, fps, num_frames):
    path, rate = counted
    times = [start + step / fps for step in range(num_frames)]
    last = (COUNTED_FRAMES - 1) / rate
    assume(times[-1] <= last and all(abs(time * rate % 1 - 0.5) > 0.05 for time in times))
    clip = read_clip(path, start=start, num_frames=num_frames, fps=fps, size=(32, 32))
    assert frame_numbers(clip) == [round(time * rate) for time in times]


def test_a_clip_is_sought_and_nothing_after_it_decoded(tmp_path, monkeypatch):
    """Ten seconds with a key frame in each: what lies between two key frames at most, and the clip."""
    write_video(tmp_path / "long.mp4", torch.zeros(3, 240, 32, 32), fps=24)
    decoded = []
    original = video_io.decoded
    monkeypatch.setattr(
        video_io, "decoded", lambda *place: (decoded.append(frame.pts) or frame for frame in original(*place))
    )
    read_clip(tmp_path / "long.mp4", start=8.5, num_frames=5, fps=24, size=(32, 32))
    assert 5 <= len(decoded) <= 24 + 5 + 1
    decoded.clear()
    read_clip(tmp_path / "long.mp4", start=0, num_frames=5, fps=24, size=(32, 32))
    assert 5 <= len(decoded) <= 5 + 1


def test_a_start_on_a_key_frame_decodes_nothing_before_it(tmp_path, monkeypatch):
    """At 24000 / 1001 frames a second number / rate comes out a hair before the time of some key frames."""
    path, fps = tmp_path / "long.mp4", 24000 / 1001
    write_video(path, torch.zeros(3, 240, 32, 32), fps=fps)
    decoded = []
    original = video_io.decoded
    monkeypatch.setattr(
        video_io, "decoded", lambda *place: (decoded.append(frame.key_frame) or frame for frame in original(*place))
    )
    for number in range(0, 240, 24):
        decoded.clear()
        read_clip(path, start=number / fps, num_frames=1, fps=fps, size=(32, 32))
        assert decoded[0] and len(decoded) <= 2


def test_a_source_may_be_bytes(counted):
    path, _ = counted
    from_path = read_clip(path, start=1.0, num_frames=5, fps=8, size=(24, 24))
    assert torch.equal(read_clip(path.read_bytes(), start=1.0, num_frames=5, fps=8, size=(24, 24)), from_path)
    assert probe(path.read_bytes()) == probe(path)


def test_probe(counted):
    path, rate = counted
    info = probe(path)
    assert (info.height, info.width) == (32, 48)
    assert info.fps == pytest.approx(rate)
    assert info.duration == pytest.approx(COUNTED_FRAMES / rate, abs=1.1 / rate)
    assert abs(info.frames - COUNTED_FRAMES) <= 1


@settings(max_examples=25)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=4, max_size=4), st.sampled_from([32, 720]))
def test_colours_survive_writing_and_reading(tmp_path_factory, colours, height):
    # 720 rows and more are stored with another colour matrix than smaller pictures
    video = torch.tensor(colours, dtype=torch.uint8).T.reshape(3, 1, 2, 2)
    video = video.repeat_interleave(height // 2, 2).repeat_interleave(height // 2, 3).expand(3, 2, -1, -1)
    path = tmp_path_factory.mktemp("colours") / "c.mp4"
    write_video(path, to_unit_range(video), fps=8)
    back = read_clip(path, start=0, num_frames=2, fps=8, size=(height, height))
    centres = torch.arange(2) * (height // 2) + height // 4
    difference = back[:, 0][:, centres][:, :, centres].int() - video[:, 0][:, centres][:, :, centres].int()
    assert difference.abs().max() <= 6


def test_write_and_read_keep_the_picture(tmp_path):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 96), indexing="ij")
    video = torch.stack([x, y, -x]).unsqueeze(1).repeat(1, 9, 1, 1) * torch.linspace(0.2, 0.9, 9).view(1, 9, 1, 1)
    write_video(tmp_path / "v.mp4", video, fps=12)
    back = to_unit_range(read_clip(tmp_path / "v.mp4", start=0, num_frames=9, fps=12, size=(64, 96)))
    assert back.shape == video.shape
    assert (back - video).abs().mean() < 0.015


def test_odd_sizes_are_padded(tmp_path):
    write_video(tmp_path / "v.mp4", torch.zeros(3, 2, 33, 47), fps=4)
    info = probe(tmp_path / "v.mp4")
    assert (info.height, info.width, info.frames) == (34, 48, 2)


def test_uint8_and_unit_range_are_inverse():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit_range(every)), every)
    assert to_unit_range(every).min() == -1 and to_unit_range(every).max() == 1
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(picture):
    """Names of the colours in the four corners, clockwise from the top left; `picture` is C H W."""
    names = {RED: "red", GREEN: "green", BLUE: "blue", WHITE: "white"}
    height, width = picture.shape[1:]
    places = [
        (height // 8, width // 8),
        (height // 8, -width // 8),
        (-height // 8, -width // 8),
        (-height // 8, width // 8),
    ]
    return [names[tuple(255 * int(value > 128) for value in picture[:, row, column])] for row, column in places]


def corner_pictures(height, width, frames=3):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, width // 2 :] = BLUE
    picture[height // 2 :, : width // 2] = WHITE
    return [picture] * frames


def with_rotation(data, turns):
    """Set the display matrix of an mp4's only track to `turns` clockwise quarter turns, as phones do."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    box = data.index(b"tkhd")
    matrix = box + 4 + 40
    rotated = struct.pack(">9i", *(v * 65536 for v in (cos, sin, 0, -sin, cos, 0, 0, 0)), 1 << 30)
    return data[:matrix] + rotated + data[matrix + 36 :]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_is_applied(tmp_path, turns):
    path = encode(tmp_path / "v.mp4", corner_pictures(64, 96), 8)
    data = with_rotation(path.read_bytes(), turns)
    info = probe(data)
    assert (info.height, info.width) == ((96, 64) if turns % 2 else (64, 96))
    size = (info.height, info.width)
    clip = read_clip(data, start=0, num_frames=1, fps=8, size=size)
    upright = ["red", "green", "blue", "white"]
    assert corners(clip[:, 0]) == upright[-turns:] + upright[:-turns]


def test_pixels_that_are_not_square(tmp_path):
    path = encode(tmp_path / "v.mp4", corner_pictures(64, 64), 8, sample_aspect_ratio=Fraction(2, 1))
    info = probe(path)
    assert (info.height, info.width) == (64, 128)
    clip = read_clip(path, start=0, num_frames=1, fps=8, size=(64, 128))
    assert corners(clip[:, 0]) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize(("height", "width"), [(96, 48), (48, 96), (64, 64)])
def test_crop_is_central_and_keeps_the_aspect(tmp_path, height, width):
    picture = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    picture[(y - height / 2 + 0.5) ** 2 + (x - width / 2 + 0.5) ** 2 < 16**2] = 255  # a disc of radius 16
    path = encode(tmp_path / "v.mp4", [picture] * 2, 8)
    white = read_clip(path, start=0, num_frames=1, fps=8, size=(48, 48))[0, 0] > 128
    rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
    diameter = 32 * 48 / min(height, width)
    assert abs(len(rows) - diameter) <= 2 and abs(len(columns) - diameter) <= 2
    assert abs(rows.float().mean() - 23.5) <= 1 and abs(columns.float().mean() - 23.5) <= 1


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_bad(kind, folder, good):
    path = folder / f"{kind}.mp4"
    if kind == "audio":
        return audio_only(path)
    content = {
        "empty": b"",
        "text": b"not a video\n" * 50,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n",
        "half": good[: len(good) // 2],
        "header": good[:40],
    }
    if kind in content:
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("missing", "missing file"),
        ("empty", "empty file"),
        ("text", "not a video"),
        ("playlist", "not a video"),
        ("half", "not a video"),
        ("header", "not a video"),
        ("audio", "no video stream"),
    ],
)
def test_bad_files(tmp_path, tiny_video, kind, cause):
    path = make_bad(kind, tmp_path, tiny_video)
    for action in (probe, lambda bad: read_clip(bad, start=0, num_frames=1, fps=8, size=(16, 16))):
        with pytest.raises(VideoError) as caught:
            action(path)
        assert caught.value.cause == cause
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_not_a_video(tmp_path):
    with pytest.raises(VideoError, match="missing file"):
        probe(tmp_path)


def test_a_cut_off_file_is_noticed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / "v.mkv", list(noise), 20)
    data = path.read_bytes()
    assert read_clip(data, start=2.5, num_frames=1, fps=8, size=(16, 16)).shape == (3, 1, 16, 16)
    with pytest.raises(VideoError) as caught:
        read_clip(data[: len(data) // 2], start=2.5, num_frames=1, fps=8, size=(16, 16))
    assert caught.value.cause == "truncated"


def test_too_short(tiny_videos, tmp_path):
    with pytest.raises(VideoError) as caught:
        read_clip(tiny_videos / "bars0.mp4", start=0.5, num_frames=17, fps=8, size=(16, 16))
    assert caught.value.cause == "too short"
    single = encode(tmp_path / "one.mp4", corner_pictures(32, 32, frames=1), 8)
    assert probe(single).frames == 1
    assert read_clip(single, start=0, num_frames=1, fps=8, size=(32, 32)).shape == (3, 1, 32, 32)
    with pytest.raises(VideoError, match="too short"):
        read_clip(single, start=0, num_frames=5, fps=8, size=(32, 32))


def test_a_huge_size_in_the_header_is_refused(tiny_video):
    data = bytearray(tiny_video)
    entry = data.index(b"avc1", data.index(b"stsd")) + 4
    data[entry + 24 : entry + 28] = struct.pack(">HH", 65535, 65535)
    info = probe(bytes(data))  # the decoder believes the bitstream, not the container
    assert info.height == 64 and info.width < 1000


def test_an_endless_duration_in_the_header_is_refused(tiny_video):
    data = bytearray(tiny_video)
    for box in (b"mvhd", b"mdhd"):
        duration = data.index(box) + 4 + 16
        data[duration : duration + 4] = struct.pack(">I", 0xFFFFFFF0)
    edit = data.index(b"elst") + 4 + 4 + 4
    data[edit : edit + 4] = struct.pack(">I", 0xFFFFFFF0)
    table = data.index(b"stts") + 4 + 4 + 4  # one entry: every frame lasts very long
    data[table + 4 : table + 8] = struct.pack(">I", 0x07FFFFFF)
    with pytest.raises(VideoError, match="impossible header"):
        probe(bytes(data))


def clip_or_error(data, start):
    try:
        return read_clip(data, start=start, num_frames=5, fps=16, size=(32, 32))
    except VideoError as error:
        return error


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), min_size=1, max_size=8),
    start=st.floats(0, 1.2),
)
def test_damaged_bytes_give_a_clip_or_one_line(tiny_video, damage, start):
    data = bytearray(tiny_video)
    for place, junk in damage:
        offset = int(place * (len(data) - 1))
        data[offset : offset + len(junk)] = junk
    outcome = clip_or_error(bytes(data), start)
    if isinstance(outcome, VideoError):
        assert outcome.cause and "\n" not in str(outcome)
    else:
        assert outcome.shape == (3, 5, 32, 32) and outcome.dtype == torch.uint8


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(VideoError("too short", "a.mp4: 1 s")))  # noqa: S301
    assert error.cause == "too short" and str(error) == "too short: a.mp4: 1 s"


def test_write_video_says_what_is_wrong(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "folder.mp4", torch.zeros(3, 1, 16, 16), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*exists"):
        write_video(tmp_path / "file" / "v.mp4", torch.zeros(3, 1, 16, 16), fps=8)
    with pytest.raises(VideoError, match="no frame"):
        write_video(tmp_path / "v.mp4", torch.zeros(3, 0, 16, 16), fps=8)
