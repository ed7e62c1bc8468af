"""Still images: upright, over white, whatever is wrong with the file one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sat_ssvae.data import images
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.images import read_image

from .test_video_io import corner_pictures, corners


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_images(tmp_path):
    picture = Image.fromarray(corner_pictures(64, 96)[0])
    clip = read_image(saved(picture, "PNG"), size=(64, 96))
    assert clip.shape == (3, 1, 64, 96) and corners(clip[:, 0]) == ["red", "green", "blue", "white"]
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    turned = read_image(saved(picture, "JPEG", exif=exif, quality=95), size=(96, 64))
    assert corners(turned[:, 0]) == ["white", "red", "green", "blue"]
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert read_image(saved(clear, "PNG"), size=(16, 16)).min() == 255
    (tmp_path / "gray.png").write_bytes(saved(Image.new("L", (20, 20), 70), "PNG"))
    assert torch.equal(read_image(tmp_path / "gray.png", size=(8, 8)), torch.full((3, 1, 8, 8), 70, dtype=torch.uint8))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_bad_images(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(VideoError) as caught:
        read_image(tmp_path / "bad.png", size=(8, 8))
    assert caught.value.cause == ("not an image" if content else "empty file")
    with pytest.raises(VideoError, match="missing file"):
        read_image(tmp_path / "none.png", size=(8, 8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_of_16_bits_keeps_its_brightness(kind):
    ramp = np.repeat(np.linspace(0, 65535, 16).astype(np.uint16)[None], 16, 0)
    levels = read_image(saved(Image.fromarray(ramp), kind), size=(16, 16))[0, 0, 0].int()
    assert (levels - torch.linspace(0, 255, 16)).abs().max() <= 1


def png_of_16_bits(values, colour_type):
    """A PNG file of uint16 `H W C`, which Pillow does not write."""
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_rounded(colour_type, channels):
    """Pillow drops the lower bits: 254.9 becomes 254."""
    values = np.random.default_rng(0).integers(0, 65536, (24, 24, channels))
    values[..., -1] = values[..., -1] if channels == 3 else 65535  # opaque
    found = read_image(png_of_16_bits(values, colour_type), size=(24, 24))[:, 0].permute(1, 2, 0).numpy()
    assert (found == (values[..., : 3 if channels > 2 else 1] / 257).round()).all()
    with pytest.raises(VideoError, match="truncated"):
        read_image(png_of_16_bits(values, colour_type)[:-300], size=(24, 24))


def test_damaged_exif_data_is_no_crash():
    """The orientation says that the picture is to be turned, what is beside it cannot be written back."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    broken = saved(Image.new("RGB", (32, 32)), "JPEG", exif=exif).replace(b"\x01\x0f\0\2", b"\x01\x00\0\2")
    with pytest.raises(VideoError) as caught:
        read_image(broken, size=(8, 8))
    assert caught.value.cause == "not an image"


def test_another_format_in_disguise_is_no_crash():
    data = bytearray(saved(Image.new("RGB", (32, 32)), "DDS"))
    data[80:84] = bytes(4)  # flags of the pixel format
    with pytest.raises(VideoError, match="not an image"):
        read_image(bytes(data), size=(8, 8))


def test_a_huge_image_is_too_large(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(VideoError) as caught:
        read_image(saved(Image.new("RGB", (40, 40)), "PNG"), size=(8, 8))
    assert caught.value.cause == "too large"


def test_several_pages_of_a_tiff_are_not_one_picture():
    page = Image.new("RGB", (32, 32))
    with pytest.raises(VideoError, match="3 pictures") as caught:
        read_image(saved(page, "TIFF", save_all=True, append_images=[page, page]), size=(8, 8))
    assert caught.value.cause == "several pages"
    preview = page.resize((16, 16))
    assert read_image(saved(page, "TIFF", save_all=True, append_images=[preview]), size=(8, 8)).shape == (3, 1, 8, 8)
