"""What is evaluated while training, and that evaluations change nothing."""

import json
import sys

import pytest
import torch
from PIL import Image

from sat_ssvae.config import parse_config
from sat_ssvae.data.video_io import probe
from sat_ssvae.errors import UserError
from sat_ssvae.training.monitor import Monitor, MonitorConfig
from sat_ssvae.training.trainer import TrainConfig, train
from sat_ssvae.vae.autoencoder import SSVAE

from .test_stages import differing, weights_of
from .test_trainer import CPU, configured, rows, settings


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_is_monitored_takes_the_same_steps(tiny_shards, tmp_path):
    monitor = {"every": 2, "path": str(tiny_shards), "clips": 2, "tensorboard": True}
    train(configured(tiny_shards, max_steps=4), tmp_path / "alone", CPU)
    train(configured(tiny_shards, max_steps=4, monitor=monitor), tmp_path / "monitored", CPU)
    assert rows(tmp_path / "monitored") == rows(tmp_path / "alone")
    assert differing(weights_of(tmp_path / "monitored"), weights_of(tmp_path / "alone")) == set()
    evaluations = lines(tmp_path / "monitored" / "evaluations.jsonl")
    assert [one["step"] for one in evaluations] == [2, 4]
    for one in evaluations:
        assert 3 < one["psnr"] < 40 and -1 <= one["ssim"] <= 1 and -1 <= one["local_correlation"] <= 1
        assert one["dct_amplitude"][0] == 1 and one["explained_variance"][-1] == pytest.approx(1)
        assert len(one["explained_variance"]) == 4
    with Image.open(tmp_path / "monitored" / "evaluations" / "step_4.png") as grid:
        assert grid.size == (2 * 32, 4 * 2 * 32)
    info = probe(tmp_path / "monitored" / "evaluations" / "step_4.mp4")
    assert (info.height, info.width, info.frames) == (64, 64, 5)
    assert list((tmp_path / "monitored" / "tensorboard").glob("events*"))


def test_no_random_number_is_drawn_and_the_mode_is_kept(tiny_shards, tmp_path):
    config = configured(tiny_shards)
    monitor = Monitor(MonitorConfig(every=1, path=str(tiny_shards)), config.data, tmp_path, "float32", CPU, 0)
    vae = SSVAE(config.model).train()
    state = torch.get_rng_state()
    monitor.evaluate(1, vae)
    first = lines(tmp_path / "evaluations.jsonl")[0]
    monitor.evaluate(2, vae)
    monitor.close()
    assert torch.equal(state, torch.get_rng_state()) and vae.training
    assert {**lines(tmp_path / "evaluations.jsonl")[1], "step": 1} == first


def test_what_is_missing_is_named(tiny_shards, tmp_path):
    with pytest.raises(UserError, match=r"monitor.path must name held-out clips, or data.part=train"):
        parse_config(TrainConfig, settings(tiny_shards, monitor={"every": 5}))
    data = {**settings(tiny_shards)["data"], "part": "train"}
    config = configured(tiny_shards, data=data, monitor={"every": 1}, max_steps=1)
    train(config, tmp_path, CPU)
    assert len(lines(tmp_path / "evaluations.jsonl")) == 1


def test_a_package_that_is_missing_is_named_before_the_first_step(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "sat_ssvae.metrics.fidelity", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    monitor = {"every": 4, "path": str(tiny_shards)}
    with pytest.raises(UserError, match=r"monitor.every needs `pip install sat-ssvae\[compare\]`"):
        train(configured(tiny_shards, monitor=monitor), tmp_path, CPU)
    assert rows(tmp_path) == []
