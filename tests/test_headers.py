"""What the header says of an ordinary mp4 is what `probe` finds; anything else is left to `probe`."""

import io
import shutil
from fractions import Fraction

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.data import headers, video_io
from sat_ssvae.data.containers import open_video
from sat_ssvae.data.convert import PackConfig
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.headers import info_by_header
from sat_ssvae.data.lengths import check_end
from sat_ssvae.data.pack import pack
from sat_ssvae.data.video_io import probe


def film(path, times=range(24), size=(48, 64), options=None, container=None, noise=1, **attributes):
    """An mp4 of these times (in twelfths of a second), with three B-frames between others and random values < noise."""
    generator = torch.Generator().manual_seed(0)
    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream("libx264", rate=12, options={"bf": "3", "g": "12", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        for number, time in enumerate(times):
            picture = torch.full((*size, 3), 10 * number % 256, dtype=torch.uint8)
            picture[: number % size[0]] += 50
            picture += torch.randint(noise, picture.shape, generator=generator, dtype=torch.uint8)
            frame = av.VideoFrame.from_ndarray(picture.numpy(), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 12)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def info_without_header(source, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(video_io, "info_by_header", lambda _: None)
        return probe(source)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"times": range(1)},
        {"options": {"bf": "0"}},
        {"container": {"movflags": "faststart"}},
        {"times": [0, 1, 2, 7, 8, 9, 10, 30]},
        {"times": range(5, 20)},
    ],
)
def test_the_header_says_what_the_packets_do(tmp_path, monkeypatch, how):
    path = film(tmp_path / "a.mp4", **how)
    expected = info_without_header(path, monkeypatch)
    assert info_by_header(path) == info_by_header(path.read_bytes()) == expected == probe(path)
    check_end(path)


@pytest.mark.parametrize(
    "how",
    [
        {"container": {"movflags": "frag_keyframe+empty_moov"}},  # no index of the whole
        {"sample_aspect_ratio": Fraction(2)},  # pixels that are not square, in the stream alone
        {"options": {"x264-params": "transfer=smpte2084:colorprim=bt2020:colormatrix=bt2020nc"}},
    ],
)
def test_unusual_files_are_what_they_were(tmp_path, monkeypatch, how):
    path, found = film(tmp_path / "a.mp4", **how), []
    for look in (probe, lambda source: info_without_header(source, monkeypatch)):
        try:
            found.append(look(path))
        except VideoError as error:
            found.append(str(error))
    assert found[0] == found[1]
    assert ("HDR" in str(found[0])) == ("options" in how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return film(tmp_path_factory.mktemp("whole") / "a.mp4", container={"movflags": "faststart"}).read_bytes()


@settings(max_examples=60)
@given(keep=st.floats(0, 0.99))
def test_a_cut_file_is_never_taken_for_whole(whole, keep):
    assert info_by_header(whole[: int(keep * len(whole))]) is None


@settings(max_examples=150)
@given(place=st.floats(0, 1), junk=st.binary(min_size=1, max_size=200))
def test_damage_that_probe_finds_is_found(whole, place, junk):
    """The header is never content with what `probe` and `check_end` refuse, nor says anything else than they do."""
    start = int(place * (len(whole) - 1))
    damaged = (whole[:start] + junk + whole[start + len(junk) :])[: len(whole)]
    info = info_by_header(damaged)
    if info is not None:
        with pytest.MonkeyPatch.context() as patch:
            assert info_without_header(damaged, patch) == info
        check_end(damaged)


def test_what_is_broken_is_not_copied(whole, tmp_path):
    """A file of zeros that has its full length, as an unfinished download, and one that is cut."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(whole)
    start = whole.index(b"mdat") + 4
    (folder / "zeros.mp4").write_bytes(whole[:start] + bytes(len(whole) - start))
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    hdr = {"x264-params": "transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc"}
    shutil.move(film(tmp_path / "hdr.mp4", options=hdr), folder)
    report = pack(folder, tmp_path / "out", PackConfig(workers=1, captions="none"))
    assert report.samples == 1 and report.skipped["HDR"] == 1 and sum(report.skipped.values()) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "slices=4"},
        {"x264-params": "tff=1"},  # interlaced
        {"coder": "0"},
        {"bf": "0", "g": "1"},
        {"intra-refresh": "1"},  # no key frames behind the first one
    ],
)
def test_the_beginning_of_a_picture_tells_all(tmp_path, monkeypatch, options):
    path = film(tmp_path / "a.mp4", size=(96, 128), options={"crf": "1", **options}, noise=100)
    expected = info_without_header(path, monkeypatch)
    assert info_by_header(path) == expected
    with open_video(path, header_only=True) as (container, stream):
        first = next(container.demux(stream))
        shortened = headers._shortened(first, 4)
    assert shortened.size < first.size / 4


def test_a_picture_that_does_not_begin_is_refused(tmp_path):
    """A first unit that is longer than the packet, and a slice of zeros."""
    whole = film(tmp_path / "a.mp4").read_bytes()
    with av.open(io.BytesIO(whole)) as container:
        place, size = (packet := next(container.demux(video=0))).pos, packet.size
    for junk in (b"\\xff" * 4, bytes(size)):
        assert info_by_header(whole[:place] + junk + whole[place + len(junk) :]) is None
