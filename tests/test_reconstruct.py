import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sat_ssvae import progress
from sat_ssvae.cli import main
from sat_ssvae.config import parse_config
from sat_ssvae.data.video_io import probe, read_clip, read_frames, to_unit_range, write_video
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.items import list_items
from sat_ssvae.evaluation.reconstruct import ReconstructConfig, reconstruct
from sat_ssvae.evaluation.side_by_side import GAP, STRIP, apart
from sat_ssvae.metrics.fidelity import reconstruction_scores
from sat_ssvae.metrics.frechet import I3D, ClipCollector, frechet_distance

from . import foreign_models
from .parsed_page import Parsed
from .small_models import tiny_vae
from .test_roundtrip import whole
from .test_video_write import video_with_sound

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def config(**values):
    return parse_config(ReconstructConfig, {"perceptual": "none", "chunk_frames": 7} | values)


def waves(path, frames, height=32, width=40, fps=24):
    """A video of moving gray waves."""
    time, y, x = torch.arange(frames).view(-1, 1, 1) / fps, torch.arange(height).view(-1, 1), torch.arange(width)
    write_video(path, 0.3 * torch.sin(0.12 * (x + 2 * y) + 5 * time).expand(3, -1, -1, -1), fps)
    return path


@pytest.fixture
def two_videos(tmp_path):
    """A folder with a video of 10 frames and one of 13 a folder deeper."""
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    waves(tmp_path / "in" / "bars0.mp4", 10)
    waves(tmp_path / "in" / "deeper" / "bars1.mp4", 13)
    return tmp_path / "in"


def pictures_of(path):
    return np.stack([frame.picture for frame in read_frames(path)]).astype(int)


@torch.no_grad()
def test_tiles_come_close_to_the_whole_frame(tmp_path):
    source, vae = waves(tmp_path / "in.mp4", 9, height=64, width=80), tiny_vae()
    scores = {}
    for tile in (None, 48, 128):
        output = tmp_path / f"out{tile}"
        scores[tile] = reconstruct(vae, source, output, config(tile_size=tile), CPU).totals()["psnr"]
    assert scores[128] == scores[None]  # one tile is the whole frame
    assert scores[48] != scores[None] and scores[48] == pytest.approx(scores[None], abs=1.5)
    with pytest.raises(UserError, match="tile_size 47: must be a multiple of"):
        reconstruct(vae, source, tmp_path / "x", config(tile_size=47), CPU)


def test_a_half_downloaded_video_is_truncated(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    waves(folder / "whole.mp4", 30, height=64, width=64)
    with av.open(str(folder / "whole.mp4")) as source, av.open(str(folder / "half.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = (folder / "half.mkv").read_bytes()
    (folder / "half.mkv").write_bytes(data[: len(data) // 2])
    report = reconstruct(tiny_vae(), folder, tmp_path / "out", config(), CPU)
    assert [clip.name for clip in report.clips] == ["whole"]
    (skip,) = report.skipped
    assert skip.cause == "truncated" and "half.mkv" in skip.detail
    assert not list((tmp_path / "out").glob("half*"))


def test_a_video_is_not_written_over_by_its_reconstruction(tmp_path):
    source = waves(tmp_path / "in.mp4", 5)
    before = source.read_bytes()
    with pytest.raises(UserError, match="would be written over by its own result; choose another --output"):
        reconstruct(tiny_vae(), source, tmp_path, config(), CPU)
    assert source.read_bytes() == before


@torch.no_grad()
def test_scores_and_pictures_are_those_of_the_whole_video(tmp_path):
    source, vae, output = waves(tmp_path / "in.mp4", 15, 38, 44), tiny_vae(), tmp_path / "out"
    vae.decoder.last_layer.mul_(0.05)  # smooth pictures, which compression hardly changes
    report = reconstruct(vae, source, output, config(side_by_side=True, error_map=True), CPU)
    (clip,) = report.clips
    assert (clip.name, clip.frames, clip.height, clip.width, clip.fps) == ("in", 15, 38, 44, 24)
    video = to_unit_range(read_clip(source, start=0, num_frames=15, fps=24, size=(38, 44)))[None]
    expected = {name: float(value) for name, value in reconstruction_scores(whole(vae, video), video).items()}
    assert clip.scores == pytest.approx(expected, rel=1e-4) and report.totals() == clip.scores
    assert probe(output / "in.mp4") == probe(source)
    before, alone = pictures_of(source), pictures_of(output / "in.mp4")
    beside, error = pictures_of(output / "in.side_by_side.mp4"), pictures_of(output / "in.error_map.mp4")
    assert beside.shape == (15, 38 + STRIP, 2 * 44 + GAP, 3)
    left, right = (np.stack(view) for view in zip(*(apart(page, 2) for page in beside), strict=True))
    assert abs(left - before).mean() < 4 and abs(right - alone).mean() < 4
    assert abs(error - np.minimum(4 * abs(before - alone), 255)).mean() < 8


def bars(printed):
    """The lines of the progress bar; log records stand between them once any test has set up logging."""
    return [line for line in printed.splitlines() if line.startswith("reconstructing: ")]


def test_the_bar_counts_the_frames_of_all_videos_and_ends_full(two_videos, tmp_path, capsys, monkeypatch):
    """A broken video adds none; what an earlier run did counts, but not as speed."""
    monkeypatch.setattr(progress, "QUIET_INTERVAL", 1e-6)
    (two_videos / "aaa.mp4").write_bytes(b"broken")
    reconstruct(tiny_vae(), two_videos, tmp_path / "out", config(), CPU)
    lines = bars(capsys.readouterr().err)
    assert all("/23 [" in line for line in lines) and lines[-1].startswith("reconstructing: 23/23 [")
    assert any(re.match(r"reconstructing: 10/23 \[\d+:\d+<\d+:\d+", line) for line in lines)  # an ETA
    (tmp_path / "out" / "bars0.mp4").unlink()
    reconstruct(tiny_vae(), two_videos, tmp_path / "out", config(), CPU)
    assert bars(capsys.readouterr().err)[-1].startswith("reconstructing: 23/23 [")


def test_the_bar_ends_full_where_a_video_breaks_off(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    waves(tmp_path / "in" / "whole.mp4", 10)
    data = waves(tmp_path / "in" / "cut.mp4", 60, 96, 128).read_bytes()
    (tmp_path / "in" / "cut.mp4").write_bytes(data[: len(data) // 2])
    report = reconstruct(tiny_vae(), tmp_path / "in", tmp_path / "out", config(), CPU)
    last = bars(capsys.readouterr().err)[-1]
    done, total = re.match(r"reconstructing: (\d+)/(\d+) ", last).groups()
    assert done == total and len(report.skipped) == 1


def test_the_number_of_frames_at_once_does_not_matter(tmp_path):
    source = waves(tmp_path / "in.mp4", 12)
    scores = [reconstruct(tiny_vae(), source, tmp_path / str(n), config(chunk_frames=n), CPU).totals() for n in (5, 12)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_sound_and_odd_sizes(tmp_path):
    source = video_with_sound(tmp_path / "source.mp4", "aac")
    reconstruct(tiny_vae(), source, tmp_path / "out", config(), CPU)
    with av.open(str(tmp_path / "out" / "source.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.streams.video[0].average_rate == 25
        assert sum(frame.samples for frame in container.decode(audio=0)) > 45000


def test_folders_and_shards_and_what_is_none(two_videos, tiny_shards, tmp_path):
    assert [item.name for item in list_items(two_videos, [])] == ["bars0", "deeper/bars1"]
    skipped = []
    (two_videos / "picture.png").write_text("no matter what")
    (tmp_path / "in" / "broken.mp4").write_bytes(b"broken")
    report = reconstruct(tiny_vae(), tmp_path / "in", tmp_path / "out", config(), CPU)
    assert [clip.name for clip in report.clips] == ["bars0", "deeper/bars1"]
    assert {skip.source: skip.cause for skip in report.skipped} == {"broken": "not a video", "picture.png": "an image"}
    assert "an image, not a video" in [skip.detail for skip in report.skipped]
    assert (tmp_path / "out" / "deeper" / "bars1.mp4").is_file() and not (tmp_path / "out" / "broken.mp4").exists()
    items = list(list_items(tiny_shards, skipped))
    assert len(items) == 5 and all(isinstance(item.source, bytes) for item in items) and skipped == []


def test_what_is_done_is_not_done_again(two_videos, tmp_path):
    folder, output = two_videos, tmp_path / "out"
    first = reconstruct(tiny_vae(), folder, output, config(), CPU)
    written = (output / "bars0.mp4").stat().st_mtime_ns
    journal = output / "reconstruction.jsonl"
    assert reconstruct(tiny_vae(), folder, output, config(), CPU) == first
    assert (output / "bars0.mp4").stat().st_mtime_ns == written and len(journal.read_text().splitlines()) == 2
    (output / "deeper" / "bars1.mp4").unlink()
    journal.write_text(journal.read_text() + '{"name": "half')
    assert reconstruct(tiny_vae(), folder, output, config(), CPU) == first
    assert (output / "bars0.mp4").stat().st_mtime_ns == written
    other = tiny_vae()
    torch.nn.init.zeros_(other.decoder.last_layer)
    assert reconstruct(other, folder, output, config(), CPU) != first
    assert (output / "bars0.mp4").stat().st_mtime_ns > written
    written = (output / "bars0.mp4").stat().st_mtime_ns
    assert reconstruct(tiny_vae(), folder, output, config(), CPU) == first
    assert (output / "bars0.mp4").stat().st_mtime_ns > written  # the other's pictures were there
    journal.write_text("[1]\n")
    with pytest.raises(UserError, match="something other than this command"):
        reconstruct(tiny_vae(), folder, output, config(), CPU)


def test_mistakes(two_videos, tmp_path):
    with pytest.raises(UserError, match="choose another --output"):
        reconstruct(tiny_vae(), two_videos, two_videos / "out", config(), CPU)
    with pytest.raises(UserError, match="does not exist"):
        reconstruct(tiny_vae(), tmp_path / "nowhere", tmp_path / "out", config(), CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither \.tar shards nor videos"):
        reconstruct(tiny_vae(), tmp_path / "empty", tmp_path / "out", config(), CPU)
    (tmp_path / "empty" / "broken.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="no video could be used; broken: not a video"):
        reconstruct(tiny_vae(), tmp_path / "empty", tmp_path / "out", config(), CPU)


def test_the_command(two_videos, tmp_path, capsys):
    tiny_vae().save_pretrained(tmp_path / "vae")
    places = ["--input", str(two_videos), "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "vae")]
    assert main(["reconstruct", *places, "side_by_side=true", "perceptual=none"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["video", "frames", "height", "width", "fps", "psnr", "ssim"]
    assert "posterior mean, 17 frames at a time" in output
    rows = list(csv.reader((tmp_path / "out" / "scores.csv").read_text().splitlines()))
    document = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row[0] for row in rows] == ["video", "bars0", "deeper/bars1", "total"]
    assert float(rows[-1][5]) == pytest.approx(document["total"]["psnr"], abs=1e-3)
    page = Parsed((tmp_path / "out" / "gallery.html").read_text())
    worst, best = sorted(document["videos"], key=lambda one: one["scores"]["psnr"])
    titles = [words for words in page.words if words in ("bars0", "deeper/bars1")]
    assert titles[:2] == [worst["name"], best["name"]]
    assert f"PSNR {worst['scores']['psnr']:.2f} dB, SSIM" in page.text and "all 2." in page.text
    assert f"mean PSNR of {document['total']['psnr']:.2f} dB: 2 videos, from" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 3 and page.text.count("32 grey levels or more") == 2
    assert [source for source in page.sources if not source.startswith("data:")] == ["scores.csv"]
    assert f"page: {tmp_path / 'out' / 'gallery.html'}" in output
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text("channels: 8\n")
    with pytest.raises(SystemExit):
        main(["reconstruct", *places, "--config", str(sizes)])
    assert "describes another network" in capsys.readouterr().err


def test_rfvd_with_the_users_network(two_videos, tmp_path, capsys):
    waves(two_videos / "longer.mp4", 34)
    network = foreign_models.small_i3d(tmp_path / "i3d_torchscript.pt")
    tiny_vae().save_pretrained(tmp_path / "vae")
    places = ["--input", str(two_videos), "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "vae")]
    command = ["reconstruct", *places, "perceptual=none", f"i3d={network}", "fvd_frames=10"]
    assert main(command) == 0
    first = capsys.readouterr().out
    rfvd = json.loads((tmp_path / "out" / "scores.json").read_text())["rfvd"]
    features = [load_file(path) for path in sorted((tmp_path / "out").rglob("*.i3d.safetensors"))]
    assert [len(f["own"]) for f in features] == [1, 1, 3] and (rfvd["clips"], rfvd["dimension"]) == (5, 8)
    own, originals = (torch.cat([f[name] for f in features]) for name in ("own", "original"))
    assert rfvd["distance"] == pytest.approx(frechet_distance(own, originals)) and rfvd["distance"] > 1e-3
    assert rfvd["backbone"] == "i3d_torchscript.pt" and len(rfvd["sha256"]) == 64
    assert first.splitlines()[0].split()[-1] == "rfvd" and f"{rfvd['distance']:.4f}" in first.splitlines()[4]
    assert f"5 clips of 10 frames scaled to 224x224, i3d_torchscript.pt (sha256 {rfvd['sha256']})" in first
    assert "warning: rFVD of 5 clips, no more than the features' 8 dimensions: biased upwards" in first
    written = (tmp_path / "out" / "longer.mp4").stat().st_mtime_ns
    assert main(command) == 0 and capsys.readouterr().out == first
    assert (tmp_path / "out" / "longer.mp4").stat().st_mtime_ns == written
    assert main([*command, "fvd_frames=30"]) == 0
    assert "warning: rFVD needs 2 clips of 30 frames at least, these videos have 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "i3d=gone.pt"])
    assert "gone.pt: not a TorchScript file of I3D" in capsys.readouterr().err


@torch.no_grad()
def test_features_are_those_of_the_videos_pixels(tmp_path):
    source, vae = waves(tmp_path / "in.mp4", 24), tiny_vae()
    network = foreign_models.small_i3d(tmp_path / "i3d.pt")
    report = reconstruct(vae, source, tmp_path / "out", config(i3d=str(network), fvd_frames=11), CPU)
    assert report.rfvd.clips == 2
    video = to_unit_range(read_clip(source, start=0, num_frames=24, fps=24, size=(32, 40)))[None]
    collected = {}
    for name, pixels in (("original", video), ("own", whole(vae, video))):
        collector = ClipCollector(I3D(network, CPU), 11)
        collector.add(pixels)
        collected[name] = collector.features()
    kept = load_file(tmp_path / "out" / "in.i3d.safetensors")
    torch.testing.assert_close(kept, collected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    """Ten times the frames, 120 MiB of pixels more in float32, need hardly more memory."""
    tiny_vae().save_pretrained(tmp_path / "vae")
    peaks = []
    for frames in (64, 640):
        source = waves(tmp_path / f"{frames}.mp4", frames, 96, 192)
        output = tmp_path / f"out{frames}"
        places = ["--input", str(source), "--output", str(output), "--checkpoint", str(tmp_path / "vae")]
        # The process says itself: what its parent is told includes the parent's own peak, from before the exec.
        command = f"main({['reconstruct', *places, 'perceptual=none']}); print(open('/proc/self/status').read())"
        script = [sys.executable, "-c", f"from sat_ssvae.cli import main; {command}"]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        peaks.append(next(int(line.split()[1]) / 1024 for line in done.stdout.splitlines() if "VmHWM" in line))
    assert peaks[1] < peaks[0] + 60


@pytest.mark.slow
def test_the_articles_script_with_another_autoencoder(two_videos, tmp_path):
    foreign_models.wan21().save_pretrained(tmp_path / "wan")
    script = [sys.executable, str(ROOT / "scripts" / "reconstruction.py")]
    places = ["--input", str(two_videos / "bars0.mp4"), "--output", str(tmp_path / "out")]
    command = [*script, *places, "--checkpoint", f"wan2.1:{tmp_path / 'wan'}", "perceptual=none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (tmp_path / "out" / "bars0.mp4").is_file()
    done = subprocess.run([*command[:-2], "wan3:x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: wan3:x: expected the path")
