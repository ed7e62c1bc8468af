"""What is looked at while training, and that looking changes nothing."""

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


def test_a_run_that_is_watched_takes_the_same_steps(tiny_shards, tmp_path):
    monitor = {"every": 2, "path": str(tiny_shards), "clips": 2, "tensorboard": True}
    train(configured(tiny_shards, max_steps=4), tmp_path / "alone", CPU)
    train(configured(tiny_shards, max_steps=4, monitor=monitor), tmp_path / "watched", CPU)
    assert rows(tmp_path / "watched") == rows(tmp_path / "alone")
    assert differing(weights_of(tmp_path / "watched"), weights_of(tmp_path / "alone")) == set()
    looks = lines(tmp_path / "watched" / "looks.jsonl")
    assert [look["step"] for look in looks] == [2, 4]
    for look in looks:
        assert 3 < look["psnr"] < 40 and -1 <= look["ssim"] <= 1 and -1 <= look["local_correlation"] <= 1
        assert look["dct_amplitude"][0] == 1 and look["explained_variance"][-1] == pytest.approx(1)
        assert len(look["explained_variance"]) == 4
    with Image.open(tmp_path / "watched" / "looks" / "step_4.png") as grid:
        assert grid.size == (2 * 32, 4 * 2 * 32)
    info = probe(tmp_path / "watched" / "looks" / "step_4.mp4")
    assert (info.height, info.width, info.frames) == (64, 64, 5)
    assert list((tmp_path / "watched" / "tensorboard").glob("events*"))


def test_no_random_number_is_drawn_and_the_mode_is_kept(tiny_shards, tmp_path):
    config = configured(tiny_shards)
    monitor = Monitor(MonitorConfig(every=1, path=str(tiny_shards)), config.data, tmp_path, "float32", CPU, 0)
    vae = SSVAE(config.model).train()
    state = torch.get_rng_state()
    monitor.look(1, vae)
    first = lines(tmp_path / "looks.jsonl")[0]
    monitor.look(2, vae)
    monitor.close()
    assert torch.equal(state, torch.get_rng_state()) and vae.training
    assert {**lines(tmp_path / "looks.jsonl")[1], "step": 1} == first


def test_what_is_missing_is_named(tiny_shards, tmp_path):
    with pytest.raises(UserError, match=r"monitor.path must name held-out clips, or data.part=train"):
        parse_config(TrainConfig, settings(tiny_shards, monitor={"every": 5}))
    data = {**settings(tiny_shards)["data"], "part": "train"}
    config = configured(tiny_shards, data=data, monitor={"every": 1}, max_steps=1)
    train(config, tmp_path, CPU)
    assert len(lines(tmp_path / "looks.jsonl")) == 1


def test_a_package_that_is_missing_is_named_before_the_first_step(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "sat_ssvae.metrics.fidelity", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_msssim", None)
    monitor = {"every": 4, "path": str(tiny_shards)}
    with pytest.raises(UserError, match=r"monitor.every needs `pip install sat-ssvae\[compare\]`"):
        train(configured(tiny_shards, monitor=monitor), tmp_path, CPU)
    assert rows(tmp_path) == []
