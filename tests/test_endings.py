"""Files without their end, which FFmpeg reads as if they were shorter, and files that were put behind one another."""

import io

import av
import numpy as np
import pytest

from sat_ssvae.data.endings import is_cut_off
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.video_io import probe, read_clip, read_frames

from .numbered_videos import number_of, numbered

FORMATS = [
    ("avi", "mpeg4", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("ogg", "libvpx", "yuv420p"),
    ("asf", "wmv2", "yuv420p"),
]


def encoded(container, codec, pixels, pictures, target=None, options=None):
    file = io.BytesIO() if target is None else target
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=20)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        stream.codec_context.bit_rate = 1_000_000
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec", "pixels"), FORMATS)
def test_the_last_bytes_of_the_pictures_are_missing(container, codec, pixels):
    """Less than the half second by which a header's duration may be off."""
    whole = encoded(container, codec, pixels, np.random.default_rng(0).integers(0, 255, (40, 32, 48, 3), np.uint8))
    assert not is_cut_off(container, whole)
    assert probe(whole).frames == len(list(read_frames(whole))) == 40
    cut = whole[: round(0.97 * len(whole))]
    for read in (probe, lambda source: list(read_frames(source))):
        with pytest.raises(VideoError) as caught:
            read(cut)
        assert caught.value.cause == "truncated"


def test_an_mp4_that_ends_inside_a_fragment():
    """A download of a stream: its header knows of no pictures."""
    whole = encoded("mp4", "libx264", "yuv420p", numbered(40), options={"movflags": "frag_every_frame+empty_moov"})
    assert probe(whole).frames == probe(whole + b"other data").frames == len(list(read_frames(whole))) == 40
    for read in (probe, lambda source: list(read_frames(source))):
        with pytest.raises(VideoError, match="truncated"):
            read(whole[: whole.rindex(b"mdat") + 10])


def test_an_avi_without_its_index_has_all_its_pictures():
    whole = encoded("avi", "mpeg4", "yuv420p", numbered(12))
    cut = whole[: whole.rindex(b"idx1")]
    assert not is_cut_off("avi", cut) and len(list(read_frames(cut))) == 12


@pytest.mark.parametrize("container", ["avi", "asf"])
def test_the_header_of_a_stream_does_not_know_the_length(container):
    class Pipe:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += data
            return len(data)

        def getvalue(self):
            return self.data

    codec = {name: codec for name, codec, _ in FORMATS}[container]
    piped = encoded(container, codec, "yuv420p", numbered(12), Pipe())
    assert not is_cut_off(container, piped) and len(list(read_frames(piped))) == 12


@pytest.mark.parametrize(("container", "codec", "pixels"), FORMATS[:2])
def test_files_put_behind_one_another_are_one_video(tmp_path, container, codec, pixels):
    parts = numbered(24)[:12], numbered(24)[12:]
    path = tmp_path / f"joined.{container}"
    path.write_bytes(b"".join(encoded(container, codec, pixels, part) for part in parts))
    info = probe(path)
    assert (info.frames, info.fps) == (24, 20) and info.duration == pytest.approx(1.2)
    frames = list(read_frames(path))
    assert [round(frame.time * 20) for frame in frames] == list(range(24))
    if container == "avi":  # GIF's 256 colours are not these
        assert [number_of(frame.picture) for frame in frames] == list(range(24))
        clip = read_clip(path, start=20 / 20, num_frames=1, fps=20, size=(32, 48))
        assert number_of(clip[:, 0].permute(1, 2, 0).numpy()) == 20
