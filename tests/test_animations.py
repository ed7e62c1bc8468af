"""Animated WebP, PNG and AVIF are videos wherever videos are read."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sat_ssvae.data.animations import is_animated
from sat_ssvae.data.convert import PackConfig
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.images import is_image
from sat_ssvae.data.pack import pack
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.shards import clips_by_size
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.video_io import probe, read_clip, read_frames
from sat_ssvae.evaluation.generated import list_videos
from sat_ssvae.evaluation.items import list_items

UNEVEN = [40, 80, 120] * 3
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
KINDS = ["a.webp", "a.png", pytest.param("a.avif", marks=needs_avif)]


def pictures(count: int = 9) -> list[Image.Image]:
    """Each differs from the one before; smooth colours, so that AVIF keeps them."""
    rows, columns = np.mgrid[0:48, 0:64]
    return [
        Image.fromarray(np.stack([rows * 5, columns * 4, np.full_like(rows, 20 * step)], -1).astype(np.uint8))
        for step in range(count)
    ]


def animation(path: Path, frames: list[Image.Image], duration: int | list[int]) -> Path:
    options = {"quality": 95, "subsampling": "4:4:4"} if path.suffix == ".avif" else {"lossless": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, **options)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_picture_at_its_time(name: str, tmp_path: Path) -> None:
    frames = pictures()
    path = animation(tmp_path / name, frames, UNEVEN)
    for source in (path, path.read_bytes()):
        assert is_animated(source) and not is_image(path.suffix, source)
        read = list(read_frames(source))
        assert [round(float(frame.time) * 1000) for frame in read] == [0, *np.cumsum(UNEVEN)[:-1].tolist()]
        for frame, picture in zip(read, frames, strict=True):
            assert np.abs(frame.picture.astype(int) - np.asarray(picture)).max() <= (8 if name == "a.avif" else 0)
        info = probe(source)
        assert (info.frames, info.height, info.width) == (9, 48, 64)
        assert info.duration == pytest.approx(0.72, abs=0.05)


@pytest.mark.parametrize("name", KINDS)
def test_training_packing_and_evaluation_take_them_for_videos(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    animation(folder / name, pictures(), 80)
    pictures()[0].save(folder / f"still{Path(name).suffix}")
    (folder / "a.txt").write_text("a ramp")
    report = pack(folder, tmp_path / "shards", PackConfig(workers=1))
    assert (report.samples, report.captions) == (2, 1)
    for place in (folder, tmp_path / "shards"):
        config = DataConfig(path=str(place), num_frames=9, fps=12.5, resolution=32)
        (clips,) = clips_by_size(config, stride=1.0, skips=SkipLog(max_share=1))
        (clip,) = clips
        blue = clip.video[2].float().mean((1, 2))
        assert blue.diff().min() > 0  # nine different pictures
    skipped: list = []
    assert [Path(str(item.source)).name for item in list_items(folder, skipped)] == [name]
    assert len(skipped) == 1
    assert [video.source.name for video in list_videos(folder, None)] == [name]


def test_transparent_parts_of_a_webp_are_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (32, 32), (200, 0, step, 0)) for step in (0, 100)]
    for step, frame in enumerate(frames):
        frame.paste((0, 0, 255 * step, 255), (0, 0, 16, 32))
    (first, second) = read_frames(animation(tmp_path / "a.webp", frames, 100))
    assert (first.picture[:, 16:] == 255).all() and (second.picture[:, 16:] == 255).all()
    assert (second.picture[:, :16] == [0, 0, 255]).all()


def test_pictures_without_a_duration_last_as_in_browsers(tmp_path: Path) -> None:
    assert probe(animation(tmp_path / "a.webp", pictures(), 0)).fps == pytest.approx(10)


@pytest.mark.parametrize("name", ["a.webp", pytest.param("a.avif", marks=needs_avif)])
def test_half_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    data = animation(tmp_path / name, pictures(), 80).read_bytes()
    with pytest.raises(VideoError) as caught:
        read_clip(data[: len(data) * 2 // 3], start=0.0, num_frames=9, fps=12.5, size=(48, 64))
    assert name == "a.avif" or caught.value.cause == "truncated"


def test_a_large_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sat_ssvae.data.containers.MAX_PIXELS", 1000)
    with pytest.raises(VideoError, match="too large"):
        probe(animation(tmp_path / "a.webp", pictures(), 80))


def test_a_damaged_picture_is_one_line(tmp_path: Path) -> None:
    data = bytearray(animation(tmp_path / "a.webp", pictures(), 80).read_bytes())
    middle = data.index(b"ANMF", len(data) // 2)
    data[middle + 24 : middle + 60] = bytes(36)
    with pytest.raises(VideoError, match=r"decoding error|not a video"):
        list(read_frames(bytes(data)))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", pictures(), 80)
    assert probe(path).frames == 9
    assert probe(animation(path, pictures(5), 80)).frames == 5


def test_still_pictures_stay_images(tmp_path: Path) -> None:
    for kind in ("WEBP", "PNG", *(["AVIF"] if features.check("avif") else [])):
        file = io.BytesIO()
        pictures()[0].convert("RGBA").save(file, kind)
        assert is_image(kind.lower(), file.getvalue())
