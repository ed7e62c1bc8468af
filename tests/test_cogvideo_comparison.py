"""The comparison on CogVideoX's training, driven through a stand-in of the few calls that it makes of CogVideoX.

tests/stand_in has CogVideoX's script and module names, axes, log lines and checkpoint folders, and trains a real little
transformer; SAT is the real one. With the real CogVideoX: test_cogvideo.py.
"""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.vae.statistics import LatentStats

from .test_project import ROOT

pytestmark = pytest.mark.slow
STEPS = 8
NETWORK = {
    "hidden_size": 8,
    "time_compressed_rate": 4,
    "num_frames": 5,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "latent_height": 6,
    "latent_width": 6,
}
STOCK = {
    "args": {"train_data": ["train"], "valid_data": ["heldout"], "train_iters": STEPS},
    "data": {
        "target": "data_video.SFTDataset",
        "params": {"video_size": [48, 48], "fps": 8, "max_num_frames": 5},
    },
    "model": {
        "scale_factor": 2.0,
        "network_config": {"target": "diffusion_video.Transformer", "params": NETWORK},
        "first_stage_config": {"target": "diffusion_video.PooledPixels"},
    },
}
SETTINGS = {
    "evaluations": 4,
    "scoring.samples": 8,
    "scoring.denoising_clips": 4,
    "scoring.loss_levels": 2,
    "scoring.batch_size": 4,
    "scoring.noise_levels": "[0.5,0.9]",
    "scoring.shown_clips": 2,
}


@pytest.fixture(scope="module")
def cogvideo(tmp_path_factory):
    """The stand-in's folder, with an autoencoder, videos and configurations."""
    folder = tmp_path_factory.mktemp("cogvideo")
    sat = folder / "sat"
    shutil.copytree(ROOT / "tests" / "stand_in", sat)
    for split, start in (("train", 0.0), ("heldout", 0.5)):
        (sat / split).mkdir()
        for number in range(9):
            (sat / split / f"{number}.mp4").write_text(str(start + number))
    torch.manual_seed(0)
    sizes = {"base_channels": 2, "channel_multipliers": (1, 1, 1, 1, 2), "num_res_blocks": 1, "num_mid_blocks": 1}
    vae = SSVAE(SSVAEConfig(**sizes))
    vae.latent_stats = LatentStats(torch.zeros(48), torch.full((48,), 0.1))
    vae.save_pretrained(sat / "ssvae")
    (sat / "stock.yaml").write_text(yaml.safe_dump(STOCK))
    network = {"in_channels": 48, "out_channels": 48, "patch_size": 1, "latent_height": 3, "latent_width": 3}
    stage = {"target": "sat_ssvae.cogvideo.SSVAEFirstStage", "params": {"ckpt_path": "ssvae"}}
    model = {"scale_factor": 1.0, "network_config": {"params": network}, "first_stage_config": stage}
    (sat / "overlay.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder


def compare(cogvideo, output, *more, **environment):
    command = [sys.executable, "-m", "sat_ssvae.cli", "cogvideo", "compare", "--cogvideo", cogvideo, "--output", output]
    command += ["--stock", "stock.yaml", "--ssvae", "overlay.yaml", *more]
    command += [f"{key}={value}" for key, value in SETTINGS.items()]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", **environment}
    return subprocess.run(
        list(map(str, command)), cwd=output.parent, env=variables, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def finished(cogvideo, tmp_path_factory):
    """A run whose second arm's training failed, and what went on from there."""
    output = tmp_path_factory.mktemp("compared") / "out"
    failed = compare(cogvideo, output, STOP_AT="3")
    assert failed.returncode == 2
    stock = work(output, "training/stock*")
    done = compare(cogvideo, output)
    assert done.returncode == 0, done.stderr
    return output, failed.stderr, stock, done.stdout


def work(output, *stages):
    """Every file of these stages, and when it was written."""
    paths = [path for stage in stages for folder in output.glob(stage) for path in folder.rglob("*")]
    return {path: path.stat().st_mtime_ns for path in paths}


def checkpoint(output, arm, step):
    (path,) = output.glob(f"training/{arm}-*/run/*/{step}/mp_rank_00_model_states.pt")
    tensors = torch.load(path, weights_only=True)["module"]
    return {name: value for name, value in tensors.items() if name.startswith("model.")}


def test_a_failed_training_is_one_line_with_its_log_and_starts_again_alone(finished):
    output, error, stock, _ = finished
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: train failed, see ") and "train.log" in last
    assert last.endswith(": MemoryError: as if the machine were too small")
    assert stock and work(output, "training/stock*") == stock
    assert len(list(output.glob("training/ssvae*/run/*"))) == 1


def test_the_report_has_every_measure_of_both_arms(finished):
    output, _, _, printed = finished
    report = output / "report"
    assert f"report: {report / 'report.html'}" in printed
    results = json.loads((report / "results.json").read_text())
    decoded = [f"kernel_distance_{to}/{of}" for to in ("real", "reconstruction") for of in ("frame", "clip")]
    decoded += [f"denoising_error_{to}/{level}" for to in ("real", "reconstruction") for level in (0.5, 0.9)]
    curves = {}
    for point in results["curves"]:
        assert math.isfinite(point["value"])
        curves.setdefault((point["arm"], point["metric"]), []).append(point["step"])
    for arm in ("stock", "ssvae"):
        assert curves.pop((arm, "training_loss")) == list(range(1, STEPS + 1))
        for metric in ("loss", "loss_above_floor", *decoded):
            assert curves.pop((arm, metric)) == [2, 4, 6, 8]
    assert not curves
    stock, ssvae = results["arms"]
    assert (stock["vae"]["latents (c t h w)"], ssvae["vae"]["latents (c t h w)"]) == ("16x2x6x6", "48x2x3x3")
    assert set(ssvae["reconstruction_difference"]) == {"psnr", "ssim", "stlpips"}
    assert results["measurement"]["held-out clips"] == 9
    assert "equal in both arms for every tensor of equal shape" in results["measurement"]["initial weights"]
    assert {path.name for path in (report / "figures").glob("*.png")} >= {"speed-ups.png", "spectrum-dct.png"}
    assert list((report / "samples").rglob("*.mp4"))


def test_both_arms_start_from_equal_weights_where_shapes_are_equal(finished):
    output = finished[0]
    stock, ssvae = (checkpoint(output, arm, 0) for arm in ("stock", "ssvae"))
    alike = {name for name in stock if stock[name].shape == ssvae[name].shape}
    other = {name.split("mixins.")[-1] for name in stock.keys() - alike}
    assert other == {"patch_embed.proj.weight", "final_layer.linear.weight", "final_layer.linear.bias"}
    assert alike and all(torch.equal(stock[name], ssvae[name]) for name in alike)
    trained = checkpoint(output, "stock", STEPS)
    assert not any(torch.equal(stock[name], trained[name]) for name in stock)


def test_a_finished_comparison_is_only_reported_again(cogvideo, finished):
    output = finished[0]
    before = work(output, "initial", "training", "scores")
    assert compare(cogvideo, output).returncode == 0
    assert work(output, "initial", "training", "scores") == before


def test_the_loss_is_that_of_the_training(finished):
    """Noise levels, denoiser and scale are the engine's: held-out and training loss agree as far as clips do."""
    results = json.loads((finished[0] / "report" / "results.json").read_text())
    for arm in ("stock", "ssvae"):
        points = [point for point in results["curves"] if point["arm"] == arm]
        trained = [point["value"] for point in points if point["metric"] == "training_loss"][-4:]
        heldout = [point["value"] for point in points if point["metric"] == "loss"][-2:]
        assert 0.3 < (sum(heldout) / 2) / (sum(trained) / 4) < 3


def test_too_few_heldout_videos_are_one_line_and_cost_no_training(cogvideo, finished):
    output = finished[0]
    few = output.parent / "few"
    few.mkdir()
    (few / "a.mp4").write_text("1")
    before = work(output, "training")
    done = compare(cogvideo, output, "--heldout", few)
    assert done.returncode == 2
    assert "1 held-out clips, a comparison needs 8" in done.stderr.strip().splitlines()[-1]
    assert work(output, "training") == before
