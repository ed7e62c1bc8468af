"""Colours against an exact conversion in floats, through every reader of videos and images."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from sat_ssvae.data.colours import default_matrix, to_rgb
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.images import read_image
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.resample import read_resampled
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.video_io import encode_h264, probe, read_clip, read_frames

from .shard_files import small

WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
SIDE, BLOCK = 128, 16


def exact(y, cb, cr, bits, full, matrix):
    """RGB 0..255 in floats, shape `H W C`, by ITU-T H.273."""
    scale, top = 2 ** (bits - 8), 2**bits - 1
    luma = y / top if full else (y - 16 * scale) / (219 * scale)
    blue, red = (((c - 128 * scale) / (top if full else 224 * scale)) for c in (cb, cr))
    of_red, of_blue = WEIGHTS[matrix]
    r, b = luma + 2 * (1 - of_red) * red, luma + 2 * (1 - of_blue) * blue
    g = (luma - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return np.stack([r, g, b], axis=-1) * 255


def patches(bits, full, side=SIDE, seed=0):
    """Y, Cb and Cr in patches of one luma each, chroma the same all over, so that scaling changes nothing inside."""
    generator, scale = np.random.default_rng(seed), 2 ** (bits - 8)
    low, high = (0, 2**bits) if full else (16 * scale, 235 * scale + 1)
    luma = generator.integers(low, high, (SIDE // BLOCK, SIDE // BLOCK))
    y = np.kron(luma, np.ones((side * BLOCK // SIDE,) * 2, int))
    cb, cr = (np.full_like(y, value) for value in generator.integers(118 * scale, 138 * scale, 2))
    return y, cb, cr


def frame_of(pixels, planes, full, matrix):
    kind = np.uint16 if pixels[-2:] == "le" else np.uint8
    frame = VideoFrame(planes[0].shape[1], planes[0].shape[0], pixels)
    for plane, values in zip(frame.planes, planes, strict=False):
        step = values.shape[0] // plane.height, values.shape[1] // plane.width
        rows = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, : plane.width] = values[:: step[0], :: step[1]]
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    return frame


def error(rgb, expected):
    """Of the middles of patches, where the expected colour can be shown: mean error, and largest."""
    step, given = rgb.shape[0] // (SIDE // BLOCK), expected.shape[0] // (SIDE // BLOCK)
    middle, wanted = rgb[step // 2 :: step, step // 2 :: step], expected[given // 2 :: given, given // 2 :: given]
    fits = (wanted > 1) & (wanted < 254)
    difference = (middle.astype(float) - wanted)[fits]
    return difference.mean(), abs(difference).max()


FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv444p12le"]


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", FORMATS)
def test_colours_are_exact(pixels, full, matrix):
    bits = int(pixels[-4:-2]) if pixels.endswith("le") else 8
    biases = []
    for seed in range(12):
        planes = patches(bits, full, seed=seed)
        expected = exact(*planes, bits, full, matrix)
        for side in (SIDE, 64, 200):
            bias, largest = error(
                to_rgb(frame_of(pixels, planes, full, matrix), side, side, VideoReformatter()), expected
            )
            biases.append(bias)
            assert largest <= 1.05
    assert abs(np.mean(biases)) < 0.1
    white = [np.full((16, 16), value << (bits - 8)) for value in (235, 128, 128)]
    white[0][:] = 2**bits - 1 if full else white[0]
    assert to_rgb(frame_of(pixels, white, full, matrix), 16, 16, VideoReformatter()).min() == 255


@pytest.mark.parametrize(
    "pixels",
    ["gray", "gray10le", "gray12le", "gray16le", "gbrp", "gbrp10le", "gbrp12le", "gbrp16le", "gbrap10le", "gbrap12le"],
)
def test_gray_and_rgb_are_exact(pixels):
    bits = int(pixels[-4:-2]) if pixels.endswith("le") else 8
    values = patches(bits, True)[0][:, : 3 * BLOCK]
    expected = np.stack([values / (2**bits - 1) * 255] * 3, axis=-1)
    for side in (SIDE, 64):
        rgb = to_rgb(frame_of(pixels, [values] * 4, True, 0), side * 3 // 8, side, VideoReformatter())
        bias, largest = error(rgb, expected)
        assert abs(bias) < 0.1 and largest <= 0.6
        assert side < SIDE or abs(rgb - expected).max() <= 0.6  # without scaling, at the edges, too


@pytest.mark.parametrize(
    ("height", "width", "matrix"),
    [
        *[(480, 854, 6), (576, 720, 6), (720, 576, 6), (576, 1024, 6), (720, 1280, 1), (1280, 720, 1)],
        *[(544, 1280, 1), (1280, 544, 1), (1080, 1920, 1), (800, 1920, 1), (256, 256, 6), (720, 960, 1)],
    ],
)
def test_what_untagged_colours_are_taken_for(height, width, matrix):
    assert default_matrix(height, width) == matrix


def write(path, pixels, planes, full, matrix, frames=5, trc=None):
    """A lossless video; `matrix` 2 leaves it untagged."""
    codec, options = ("ffv1", {}) if path.suffix == ".mkv" else ("libx264", {"qp": "0", "preset": "ultrafast"})
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *planes[0].shape, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        if trc:
            stream.codec_context.color_trc = trc
        for index in range(frames):
            frame = frame_of(pixels, planes, full, matrix)
            frame.pts, frame.time_base = index, Fraction(1, 8)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("pixels", "full", "matrix"),
    [
        ("yuv444p", False, 1),
        ("yuv420p", True, 6),
        ("yuv420p10le", False, 1),
        ("yuv444p10le", True, 9),
        ("yuv420p", False, 2),
    ],
)
def test_every_reader_gives_the_same_exact_colours(tmp_path, pixels, full, matrix):
    bits = 10 if pixels.endswith("le") else 8
    planes = patches(bits, full)
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.mkv", pixels, planes, full, matrix)
    expected = exact(*planes, bits, full, 6 if matrix == 2 else matrix)
    clip = read_clip(path, start=0, num_frames=1, fps=8, size=(SIDE, SIDE))
    (loaded,) = fixed_clips(small(tmp_path / "in", num_frames=1, resolution=SIDE), stride=100)
    pictures = {
        "read_clip": clip[:, 0].permute(1, 2, 0).numpy(),
        "training": loaded.video[:, 0].add(1).mul(127.5).permute(1, 2, 0).numpy(),
        "read_frames": next(read_frames(path)).picture,
        "resampled": next(iter(read_resampled(path, 8, (64, 64)))),
    }
    for name, picture in pictures.items():
        bias, largest = error(picture, expected.round())  # chroma is the same all over, and so is what rounding adds
        assert abs(bias) < 0.1 and largest <= 1, name
    pack(tmp_path / "in", tmp_path / "out", PackConfig(workers=1, captions="none", crf=1, max_fps=4))
    (packed,) = fixed_clips(small(tmp_path / "out", num_frames=1, resolution=SIDE), stride=100)
    bias, largest = error(packed.video[:, 0].add(1).mul(127.5).permute(1, 2, 0).numpy(), expected)
    assert abs(bias) < 0.3 and largest < 4  # encoded again, in 8 bits


def test_untagged_hd_by_its_larger_side(tmp_path):
    y, cb, cr = (np.full((544, 1280), value) for value in (120, 90, 170))
    path = write(tmp_path / "a.mp4", "yuv420p", (y, cb, cr), False, 2, frames=1)
    clip = read_clip(path, start=0, num_frames=1, fps=8, size=(32, 32))[:, 0, 16, 16].numpy()
    assert abs(clip - exact(120, 90, 170, 8, False, 1)).max() <= 1


@pytest.mark.parametrize(("trc", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_and_says_so(tmp_path, trc, name):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.mp4", "yuv420p10le", patches(10, False), False, 9, trc=trc)
    write(tmp_path / "in" / "b.mp4", "yuv420p10le", patches(10, False), False, 9, trc=14)
    for read in (lambda: probe(path), lambda: list(read_frames(path)), lambda: list(read_resampled(path, 8, (8, 8)))):
        with pytest.raises(VideoError, match=f"HDR: .*{name}.*make it SDR"):
            read()
    skips = SkipLog()
    assert [clip.key for clip in fixed_clips(small(tmp_path / "in"), stride=100, skips=skips)] == ["in/b.mp4"]
    assert skips.counts == {"HDR": 1}
    report = pack(tmp_path / "in", tmp_path / "out", PackConfig(workers=1, captions="none"))
    assert report.samples == 1 and report.skipped == {"HDR": 1}


def test_matrices_that_cannot_be_shown_are_refused(tmp_path):
    path = write(tmp_path / "a.mp4", "yuv444p", patches(8, False), False, 8)
    with pytest.raises(VideoError, match="unusual colours"):
        probe(path)


def image_of(array, kind, mode=None):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.linspace(0, 1, 4096).reshape(64, 64).astype(np.float32), "TIFF"),
        (np.linspace(-1, 1, 4096).reshape(64, 64).astype(np.float32), "TIFF"),
        ((np.linspace(0, 1, 4096).reshape(64, 64) * 255).astype(np.float32), "TIFF"),
        ((np.linspace(0, 1, 4096).reshape(64, 64) * 65535).astype(np.float32), "TIFF"),
        ((np.linspace(0, 1, 4096).reshape(64, 64) * 65535).astype(np.uint16), "TIFF"),
        ((np.linspace(0, 1, 4096).reshape(64, 64) * 65535).astype(np.uint16), "PNG"),
    ],
    ids=["float up to 1", "float from -1 to 1", "float up to 255", "float up to 65535", "16-bit tiff", "16-bit png"],
)
def test_images_are_exact(values, kind):
    levels = read_image(image_of(values, kind), size=(64, 64))[0, 0].numpy().astype(float)
    difference = levels - np.linspace(0, 255, 4096).reshape(64, 64)
    assert abs(difference.mean()) < 0.1 and abs(difference).max() <= 0.51


def test_a_damaged_float_image_is_no_crash():
    values = np.full((16, 16), np.nan, np.float32)
    values[0, 0], values[0, 1] = np.inf, -np.inf
    assert read_image(image_of(values, "TIFF"), size=(16, 16)).shape == (3, 1, 16, 16)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "mpeg4")])
@pytest.mark.parametrize("short_side", [None, 32])
def test_colour_stays_where_it_is(tmp_path, name, codec, short_side):
    """Written, read, packed and read again, a wave of colour has the phase that it had: no half pixels add up."""
    wave = 60 * np.sin(2 * np.pi * np.arange(128) / 32)
    picture = np.full((64, 128, 3), 120.0)
    picture[..., 0] += wave
    picture[..., 2] -= wave

    def shift(shown):
        """In pixels of 128 a row."""
        red_over_blue = shown.astype(float).mean(0) @ [1, 0, -1]
        first = np.fft.fft(red_over_blue)[4] / np.fft.fft(wave)[4]
        return abs(np.angle(first * np.exp(-1j * np.pi * 4 * (1 / len(red_over_blue) - 1 / 128))) * 32 / (2 * np.pi))

    written = tmp_path / "written.mp4"
    written.write_bytes(encode_h264([picture.astype(np.uint8)] * 4, 8, crf=5))
    assert shift(next(read_frames(written)).picture) < 0.06
    source = tmp_path / name
    with av.open(str(source), "w") as output:
        stream = output.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 64, "yuv420p", 4_000_000
        for frame in read_frames(written):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.picture), "rgb24")))
        output.mux(stream.encode(None))
    before = shift(next(read_frames(source)).picture)
    pack(source, tmp_path / "out", PackConfig(captions="none", workers=1, max_short_side=short_side, crf=5, max_fps=4))
    (clip,) = fixed_clips(
        small(tmp_path / "out", num_frames=1, fps=4, resolution=(short_side or 64, 2 * (short_side or 64))), stride=9
    )
    after = shift(clip.video[:, 0].permute(1, 2, 0).numpy())
    assert after == pytest.approx(before, abs=0.08)
