"""Restoration with a comparison's folder of known content: a transformer that predicts zero leaves the noise in."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sat_ssvae.cli import main
from sat_ssvae.commands.restore import _meaning
from sat_ssvae.comparison.run_index import RunIndex, TrainedTransformer
from sat_ssvae.comparison.settings import ClipsConfig
from sat_ssvae.config import parse_config
from sat_ssvae.data.video_io import probe, read_frames
from sat_ssvae.diffusion.process import FlowMatching, VPrediction
from sat_ssvae.diffusion.training import save_dit
from sat_ssvae.diffusion.transformer import DiTConfig, build_dit
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.degradations import Degradation
from sat_ssvae.evaluation.restore import INPUT, ROUND_TRIP, RestoreConfig, RestoredVideo, Restorer, restore
from sat_ssvae.evaluation.side_by_side import GAP, STRIP, apart
from sat_ssvae.metrics.fidelity import psnr
from sat_ssvae.vae.checkpoint import weights_digest

from .parsed_page import Parsed
from .small_models import tiny_vae
from .test_reconstruct import waves

CPU = torch.device("cpu")
NOISE = Degradation.parse("noise:40")


def config(**values):
    return parse_config(RestoreConfig, {"perceptual": "none", "steps": 2} | values)


def gentle_vae():
    """Its reconstructions are smooth, so that compression changes them little."""
    vae = tiny_vae()
    vae.decoder.last_layer.data.mul_(0.05)
    return vae


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two arms, of one autoencoder and of another with more channels; their transformers are fresh."""
    folder = tmp_path_factory.mktemp("run")
    finished = []
    for arm, channels in (("stock", 4), ("ssvae", 6)):
        vae = gentle_vae() if channels == 4 else tiny_vae(latent_channels=channels)
        vae.save_pretrained(folder / "vae" / arm)
        sizes = DiTConfig(latent_channels=channels, latent_size=(3, 4, 4), width=32, depth=1, heads=1)
        (folder / "transformer" / arm).mkdir(parents=True)
        save_dit(build_dit(sizes, seed=0), folder / "transformer" / arm)
        finished.append(
            TrainedTransformer(
                arm=arm,
                seed=0,
                folder=f"transformer/{arm}",
                autoencoder=f"vae/{arm}",
                weights=weights_digest(vae.state_dict()),
                diffusion=FlowMatching(),
                latent_mean=(0.1,) * channels,
                latent_std=(0.5,) * channels,
            )
        )
    clips = ClipsConfig(num_frames=5, fps=8, resolution=16)
    RunIndex(clips=clips, text_length=8, transformers=tuple(finished)).write(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """One of 13 frames at 8 frames per second, one of a single window and one that is shorter, in a folder below."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deeper").mkdir()
    waves(folder / "long.mp4", 39, 24, 20)
    waves(folder / "window.mp4", 15, 16, 16)
    waves(folder / "deeper" / "short.mp4", 6, 16, 16)
    return folder


def restored(run, source, output, arm="stock", degradation=NOISE, originals=None, **values):
    return restore(Restorer.open(run, arm, None, CPU), source, output, config(**values), degradation, originals)


def test_every_video_is_restored_scored_and_written(run, videos, tmp_path):
    report = restored(run, videos, tmp_path, strengths=[0.1, 0.6], side_by_side=True)
    assert {video.name: video.frames for video in report.videos} == {"deeper/short": 2, "long": 13, "window": 5}
    for video in report.videos:
        assert list(video.scores) == [INPUT, ROUND_TRIP, "strength 0.1", "strength 0.6"]
        assert all(set(scores) == {"psnr", "ssim"} for scores in video.scores.values())
        for strength in ("0.1", "0.6"):
            info = probe(tmp_path / f"{video.name}.strength{strength}.mp4")
            assert (info.frames, info.fps, info.height, info.width) == (video.frames, 8, 16, 16)
        beside = [frame.picture for frame in read_frames(tmp_path / f"{video.name}.side_by_side.mp4")]
        assert len(beside) == video.frames and beside[0].shape == (16 + STRIP, 5 * (16 + GAP) - GAP, 3)


@torch.no_grad()
def test_a_window_goes_through_the_latents_as_sdedit_says(run, videos, tmp_path):
    """The fresh transformer predicts zero, so that (1 - s) z + s noise is decoded."""
    restorer = Restorer.open(run, "stock", None, CPU)
    video = torch.rand(3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    alone, edited = restorer.views(video, config(strengths=[0.4]), None, generators[0])
    vae = gentle_vae()
    z = (vae.encode(video[None]).mode() - 0.1) / 0.5
    noise = torch.randn(z.shape, generator=generators[1])
    expected = vae.decode((0.6 * z + 0.4 * noise) * 0.5 + 0.1).clamp(-1, 1)[0]
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone, vae.decode(vae.encode(video[None]).mode()).clamp(-1, 1)[0], atol=1e-4, rtol=1e-4)


def test_the_degraded_video_and_its_score_do_not_depend_on_the_arm(run, videos, tmp_path):
    reports = [restored(run, videos, tmp_path / arm, arm) for arm in ("stock", "ssvae")]
    first, second = ({video.name: video.scores for video in report.videos} for report in reports)
    for name, scores in first.items():
        assert scores[INPUT] == second[name][INPUT] and scores[ROUND_TRIP] != second[name][ROUND_TRIP]
        assert 12 < scores[INPUT]["psnr"] < 22  # 40 of 255 levels are 16 dB
    again = restored(run, videos, tmp_path / "again")
    assert again == reports[0]
    other = restored(run, videos, tmp_path / "other", seed=1)
    assert other.videos[0].scores[INPUT] != reports[0].videos[0].scores[INPUT]


def test_a_strength_near_zero_is_the_autoencoder_alone(run, videos, tmp_path):
    report = restored(run, videos / "window.mp4", tmp_path, strengths=[1e-4])
    (video,) = report.videos
    assert video.scores["strength 0.0001"]["psnr"] == pytest.approx(video.scores[ROUND_TRIP]["psnr"], abs=0.02)
    assert (tmp_path / "window.mp4").is_file()


def test_videos_that_are_degraded_already(run, videos, tmp_path):
    """Without originals there are no scores; with them they are those of the pixels."""
    (tmp_path / "bad").mkdir()
    waves(tmp_path / "bad" / "window.mp4", 15, 16, 16, fps=24)
    waves(tmp_path / "bad" / "unknown.mp4", 15, 16, 16)
    report = restored(run, tmp_path / "bad", tmp_path / "a", degradation=None, side_by_side=True)
    assert all(video.scores == {} for video in report.videos)
    assert probe(tmp_path / "a" / "window.side_by_side.mp4").width == 3 * 16 + 2 * GAP
    (tmp_path / "clean").mkdir()
    waves(tmp_path / "clean" / "window.mp4", 15, 24, 24)
    report = restored(run, tmp_path / "bad", tmp_path / "b", degradation=None, originals=tmp_path / "clean")
    scores = {video.name: video.scores for video in report.videos}
    assert scores["unknown"] == {} and 5 < scores["window"][INPUT]["psnr"] < 40


def test_the_bar_knows_the_frames_of_all_videos(run, videos, tmp_path, capsys):
    """20 frames at 8 per second, of 60 at 24."""
    restored(run, videos, tmp_path)
    assert capsys.readouterr().err.splitlines()[-1].startswith("restoring: 20/20 [")


def test_what_is_done_is_not_done_again(run, videos, tmp_path):
    first = restored(run, videos, tmp_path)
    written = (tmp_path / "long.mp4").stat().st_mtime_ns
    assert restored(run, videos, tmp_path) == first
    assert (tmp_path / "long.mp4").stat().st_mtime_ns == written
    restored(run, videos, tmp_path, degradation=Degradation.parse("blur:2"))
    assert (tmp_path / "long.mp4").stat().st_mtime_ns > written


def test_windows_are_joined_without_loss(run, videos, tmp_path):
    """Where nothing depends on the window, neither does the result: the input's score is that of any overlap."""
    reports = [restored(run, videos / "long.mp4", tmp_path / str(n), overlap=n) for n in (0, 1, 4)]
    first, *others = (report.videos[0].scores[INPUT] for report in reports)
    for scores in others:
        assert scores == pytest.approx(first, rel=1e-5)


def test_mistakes(run, videos, tmp_path):
    with pytest.raises(UserError, match="must be less than a clip's 5 frames"):
        restored(run, videos, tmp_path / "out", overlap=5)
    with pytest.raises(UserError, match="either a degradation or the originals"):
        restored(run, videos, tmp_path / "out", originals=videos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither \.tar shards nor videos"):
        restored(run, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "broken.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="no video could be used; broken: not a video"):
        restored(run, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="holds no video of the name of one in"):
        restored(run, videos / "long.mp4", tmp_path / "out", degradation=None, originals=videos / "window.mp4")
    with pytest.raises(UserError, match="no arm `wan`"):
        Restorer.open(run, "wan", None, CPU)
    index = RunIndex.read(run)
    swapped = index.transformers[0].model_copy(update={"autoencoder": "vae/ssvae"})
    index.model_copy(update={"transformers": (swapped,)}).write(tmp_path)
    (tmp_path / "vae").symlink_to(run / "vae")
    with pytest.raises(UserError, match="not the weights that the transformer of arm stock was trained with"):
        Restorer.open(tmp_path, "stock", None, CPU)


def test_nothing_of_the_users_is_written_over(run, videos, tmp_path):
    for folder in ("bad", "clean"):
        (tmp_path / folder).mkdir()
        shutil.copyfile(videos / "long.mp4", tmp_path / folder / "x.mp4")
    bad, clean = tmp_path / "bad" / "x.mp4", tmp_path / "clean"
    with pytest.raises(UserError, match=r"x\.mp4 would be written over by its own result"):
        restored(run, bad, bad.parent)
    with pytest.raises(UserError, match=r"clean is inside .*choose another --output"):
        restored(run, bad, clean, degradation=None, originals=clean)
    assert bad.read_bytes() == (clean / "x.mp4").read_bytes() == (videos / "long.mp4").read_bytes()


def test_originals_of_another_length_are_refused(run, videos, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "clean").mkdir()
    shutil.copyfile(videos / "long.mp4", tmp_path / "bad" / "x.mp4")
    shutil.copyfile(videos / "window.mp4", tmp_path / "clean" / "x.mp4")
    with pytest.raises(UserError, match=r"clean/x\.mp4: shorter or longer than what is to be restored"):
        restored(run, tmp_path / "bad", tmp_path / "out", degradation=None, originals=tmp_path / "clean")
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_settings_of_the_process_are_checked_first(run, videos, tmp_path):
    restorer = Restorer.open(run, "stock", None, CPU)
    trained = restorer.trained.model_copy(update={"diffusion": VPrediction(num_steps=5)})
    restorer = dataclasses.replace(restorer, trained=trained)
    with pytest.raises(UserError, match="steps=6: the transformer knows 5 noise levels"):
        restore(restorer, videos, tmp_path / "out", config(steps=6), NOISE)


def test_the_result_has_its_unit_and_interval_and_counts_one_video_as_one():
    def restored(*psnrs):
        views = [(INPUT, 20.0), (ROUND_TRIP, 21.0)]
        scores = [{view: {"psnr": value} for view, value in [*views, ("strength 0.3", one)]} for one in psnrs]
        return [RestoredVideo(f"v{number}", 5, "key", one) for number, one in enumerate(scores)]

    text = _meaning(restored(22.0), config(), "stock")
    assert "from 20.00 dB to 22.00 dB (strength 0.3, 1 video), +2.00 dB; its autoencoder" in text
    text = _meaning(restored(18.0, 18.2), config(), "stock")
    assert "lowers" in text and "2 videos), −1.90 (−3.17 to −0.63) dB; its" in text
    assert _meaning([RestoredVideo("v", 5, "key", {})], config(), "stock").startswith("1 video restored by stock;")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_command(run, videos, tmp_path, capsys, suffix):
    output, picture = tmp_path / "out", tmp_path / f"restore.{suffix}"
    arguments = ["restore", str(run), "--arm", "stock", "--input", str(videos), "--output", str(output)]
    settings = ["degrade=noise:40", "--picture", str(picture), "perceptual=none", "strengths=[0.1,0.5]"]
    assert main([*arguments, *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["PSNR", "in", "dB", "frames", "degraded"]
    assert [line.split()[0] for line in lines[1:4]] == ["deeper/short", "long", "window"]
    rows = list(csv.DictReader((output / "scores.csv").read_text().splitlines()))
    document = json.loads((output / "scores.json").read_text())
    assert len(rows) == 3 * 4 and rows[0]["view"] == INPUT and document["configuration"]["strengths"] == [0.1, 0.5]
    assert float(rows[4]["psnr"]) == pytest.approx(document["videos"][1]["scores"][INPUT]["psnr"], abs=1e-3)
    assert "16x16 at 8 frames per second, in windows of 5 frames that share 2; degraded by noise:40" in lines[-3]
    page = Parsed((output / "gallery.html").read_text())
    best = {one["name"]: max(one["scores"][f"strength {s}"]["psnr"] for s in (0.1, 0.5)) for one in document["videos"]}
    titles = [words for words in page.words if words in best]
    assert titles[:3] == sorted(best, key=best.get) and lines[-2] == f"page: {output / 'gallery.html'}"
    assert sum(tag == "img" for tag, _ in page.tags) == 3 * (2 * 3 + 2)  # two wipes with error maps, and two alone
    assert "stock lowers the mean PSNR from" in page.text or "stock raises the mean PSNR from" in page.text
    alone = sum(one["scores"][ROUND_TRIP]["psnr"] for one in document["videos"]) / 3
    assert f"; its autoencoder alone makes it {alone:.2f} dB." in page.text
    assert sum(words == "error of strength 0.5" for words in page.words) == 3
    with Image.open(picture) as image:
        assert image.width > 5 * 160 and image.height > 3 * 160
    unscored = [*arguments[:-1], str(tmp_path / "plain")]
    assert main(unscored) == 0 and "no originals, so no scores" in capsys.readouterr().out
    plain = Parsed((tmp_path / "plain" / "gallery.html").read_text())
    assert "without originals there is nothing to score" in plain.text and "in no order, all 3." in plain.text
    assert "error of" not in plain.text and sum(tag == "img" for tag, _ in plain.tags) == 3 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "wan"], "no arm `wan` with a finished transformer; there are: stock, ssvae"),
        (["--arm", "stock", "degrade=fog:2"], "degradation `fog:2`: expected KIND:AMOUNT"),
        (["--arm", "stock", "--picture", "a.gif"], "--picture a.gif: give a name that ends in .png or .webp"),
        (["--arm", "stock", "strengths=[0]"], "`strengths.0` = 0"),
        (["--arm", "stock", "transformer_seed=5"], "no finished transformer of seed 5"),
        (["--arm", "stock", "--original", "gone"], "gone does not exist"),
    ],
)
def test_mistakes_are_one_line(run, videos, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["restore", str(run), "--input", str(videos), "--output", str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("error:") == 1


def test_psnr_of_a_view_is_that_of_its_pixels(run, videos, tmp_path):
    """The journal's means over pieces of a video equal the score of its frames at once."""
    report = restored(run, videos / "long.mp4", tmp_path, degradation=Degradation.parse("blur:4"), side_by_side=True)
    pages = [apart(frame.picture, 4) for frame in read_frames(tmp_path / "long.side_by_side.mp4")]
    stacked = [torch.from_numpy(np.stack(view)) for view in zip(*pages, strict=True)]
    views = [video.float().div(127.5).sub(1).permute(3, 0, 1, 2) for video in stacked]
    scores = report.videos[0].scores
    for number, name in enumerate((INPUT, ROUND_TRIP), start=1):  # written with little loss
        assert psnr(views[number][None], views[0][None]).item() == pytest.approx(scores[name]["psnr"], abs=1.5)
