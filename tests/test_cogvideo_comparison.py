"""The comparison on CogVideoX's training, driven through a stand-in of the few calls that it makes of CogVideoX.

tests/stand_in has CogVideoX's script and module names, axes, log lines and checkpoint folders, and trains a real little
transformer; SAT is the real one. With the real CogVideoX: test_cogvideo.py.
"""

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

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


def command(cogvideo, output, *more, **settings):
    """The command, and how its process is started."""
    words = [sys.executable, "-m", "sat_ssvae.cli", "cogvideo", "compare", "--cogvideo", cogvideo, "--output", output]
    words += ["--stock", "stock.yaml", "--ssvae", "overlay.yaml", *more]
    words += [f"{key}={value}" for key, value in (SETTINGS | settings).items()]
    return list(map(str, words)), {"cwd": output.parent, "text": True, "stderr": subprocess.PIPE}


def variables(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", **more}


def compare(cogvideo, output, *more, settings=None, **environment):
    words, how = command(cogvideo, output, *more, **(settings or {}))
    return subprocess.run(words, env=variables(**environment), stdout=subprocess.PIPE, check=False, **how)


@contextlib.contextmanager
def in_training(cogvideo, output):
    """A comparison, and the number of its training's process, which hangs."""
    told = output.parent / "pid"
    words, how = command(cogvideo, output)
    # A shell starts jobs in its background with SIGINT ignored, which children inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(words, env=variables(HANG=str(told)), stdout=subprocess.DEVNULL, **how) as process:
        signal.signal(signal.SIGINT, before)
        training = None
        try:
            while not (told.exists() and told.read_text()):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            training = int(told.read_text())
            yield process, training
        finally:
            process.kill()
            if training is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(training, signal.SIGKILL)
    told.unlink()


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
    assert "Training: " in (report / "report.html").read_text() and "Held out: " in (report / "report.html").read_text()
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


def test_too_few_heldout_videos_are_one_line_and_cost_no_training(cogvideo, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.mp4").write_text("1")
    done = compare(cogvideo, tmp_path / "out", "--heldout", tmp_path / "few")
    assert done.returncode == 2
    assert "1 held-out clips, a comparison needs 8" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "out" / "scores").exists()
    assert not (tmp_path / "out" / "initial").exists() and not (tmp_path / "out" / "training").exists()


def test_a_folder_that_is_not_there_starts_nothing(cogvideo, tmp_path):
    done = compare(cogvideo, tmp_path / "out", "--heldout", "/nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: /nowhere: no such folder of videos")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_replaced_training_videos_are_noticed(cogvideo, finished, tmp_path):
    output, video = tmp_path / "out", cogvideo / "sat" / "train" / "3.mp4"
    shutil.copytree(finished[0], output)
    before, text = video.stat(), video.read_text()
    video.write_text("7.5")
    try:
        assert compare(cogvideo, output, STOP_AT="1").returncode == 2  # in the second arm's training
    finally:
        video.write_text(text)
        os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(list(output.glob("scores/stock-*/arm.json"))) == 2
    assert len(list(output.glob("training/stock-*/run/*/latest"))) == 2


@pytest.fixture
def unfinished(finished, tmp_path):
    """An output whose second arm is to be trained."""
    output = tmp_path / "out"
    shutil.copytree(finished[0], output)
    (training,) = output.glob("training/ssvae*")
    shutil.rmtree(training)
    return output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_comparison_stops_its_training(cogvideo, unfinished, number, status):
    with in_training(cogvideo, unfinished) as (process, training):
        process.send_signal(number)
        assert process.wait(60) == status
        with pytest.raises(ProcessLookupError):
            os.kill(training, 0)
        last = process.stderr.read().strip().splitlines()[-1]
    assert (
        number == signal.SIGTERM or last == "interrupted; finished work is kept, the same command continues from there"
    )


def test_an_output_belongs_to_one_comparison_and_what_it_leaves_behind(cogvideo, unfinished):
    def refused():
        done = compare(cogvideo, unfinished)
        return done.returncode == 2 and f"error: {unfinished}: in use by another comparison" in done.stderr

    with in_training(cogvideo, unfinished) as (process, training):
        assert refused()
        process.kill()
        process.wait(60)
        os.kill(training, 0)
        assert refused()
    assert len(list(unfinished.glob("training/ssvae*"))) == 1
    assert compare(cogvideo, unfinished).returncode == 0


@pytest.fixture(scope="module")
def loaded(cogvideo, finished, tmp_path_factory):
    """A run of 5 steps from a given transformer, with two seeds, by another interpreter than the command's."""
    folder = tmp_path_factory.mktemp("loaded")
    (transformer,) = finished[0].glob("initial/*/transformer")
    (folder / "last.yaml").write_text(yaml.safe_dump({"args": {"load": str(transformer), "train_iters": 5}}))
    described = folder / "packages" / "SwissArmyTransformer-9.9.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: SwissArmyTransformer\nVersion: 9.9\n")
    path = f"PYTHONPATH={described.parent}:{ROOT}"
    python = shlex.join(["env", path, os.path.relpath(sys.executable, folder)])
    more = ["--stock", "stock.yaml", folder / "last.yaml", "--python", python]
    settings = {"evaluations": 3, "seeds": "[1,2]"}
    done = compare(cogvideo, folder / "out", *more, settings=settings, READS=str(folder / "reads"))
    assert done.returncode == 0, done.stderr
    return folder


def test_there_are_no_more_checkpoints_than_evaluations_and_the_last_is_the_end(loaded):
    runs = list(loaded.glob("out/training/*/run/*"))
    assert len(runs) == 4
    for run in runs:
        assert {path.name for path in run.iterdir() if path.is_dir()} == {"0", "2", "4", "5"}
    results = json.loads((loaded / "out/report/results.json").read_text())
    assert {point["step"] for point in results["curves"] if point["metric"] == "loss"} == {2, 4, 5}


def test_all_seeds_start_from_one_copy_of_a_given_transformer(loaded):
    (initial,) = loaded.glob("out/initial/*")
    assert initial.name.startswith("loaded-")


def test_the_report_describes_the_environment_that_was_measured(loaded):
    results = json.loads((loaded / "out/report/results.json").read_text())
    assert results["packages"]["SwissArmyTransformer"] == "9.9"
    assert {"torch", "deepspeed", "numpy"} < results["packages"].keys()
    assert results["machine"]["cores"] == os.cpu_count()


def test_a_process_reads_each_held_out_video_once(loaded):
    reads = Counter(line for line in (loaded / "reads").read_text().splitlines() if Path(line).parent.name == "heldout")
    assert len(reads) == 9
    assert set(reads.values()) == {4}  # two arms, each measured and then scored
