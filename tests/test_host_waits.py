"""A training step waits for the device once, for the vote of the ranks."""

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator

from sat_ssvae.diffusion.text import CaptionStates
from sat_ssvae.diffusion.training import train_dit
from sat_ssvae.engine.run import Run
from sat_ssvae.training.trainer import train

from .elsewhere import DEVICE, elsewhere, waits
from .test_diffusion_training import OPTIMIZER, config, latent_set
from .test_stages import ADVERSARIAL
from .test_trainer import configured

EVERYTHING = {
    "adversarial": {**ADVERSARIAL, "start_step": 1},
    "ema_decay": 0.9,
    "lmr": {"kind": "block", "block": [1, 2, 2]},
    "reconstruction": {"perceptual_weight": 1.0},
    "batch_size": 1,
    "max_steps": 3,
    "log_every": 3,
}


@pytest.fixture
def steps(monkeypatch):
    """A list with an entry for each step of a training on `DEVICE`: the places where it waited."""
    for name in ("device_name", "current_device_name"):  # where DeepSpeed puts what it makes
        monkeypatch.setattr(get_accelerator(), name, lambda *_index: str(DEVICE))
    initialize = deepspeed.initialize

    def in_place(**options):
        """Of a module that lies on the device already, DeepSpeed's own conversion is to leave the parameters."""
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        made = initialize(**options)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return made

    monkeypatch.setattr(deepspeed, "initialize", in_place)
    places = []
    loop = Run.loop

    def counting(self, description, take_step, **options):
        def counted():
            with waits() as found:
                shown = take_step()
            places.append(found)
            return shown

        loop(self, description, counted, **options)

    monkeypatch.setattr(Run, "loop", counting)
    return places


def assert_one_wait(steps, count):
    assert len(steps) == count
    for places in steps[1:]:  # the first one builds the discriminators
        assert len(places) == 1 and "engine/stability.py" in places[0], "\n".join(places)


@pytest.mark.parametrize(("zero_stage", "weighting"), [(0, "fixed"), (1, "gradient"), (2, "gradient")])
def test_of_the_autoencoder(tiny_shards, tmp_path, steps, zero_stage, weighting):
    optimizer = {"accumulation_steps": 2, "clip_norm": 1.0, "zero_stage": zero_stage}
    changes = {"lcr": {"weighting": weighting}, "optimizer": optimizer}
    with elsewhere() as device:
        train(configured(tiny_shards, **EVERYTHING, **changes), tmp_path, device)
    assert_one_wait(steps, 3)


def test_of_networks_that_take_turns(tiny_shards, tmp_path, steps):
    """Two optimiser steps, a vote before each."""
    adversarial = {"alternate": True, "architecture": "published", "base_channels": 8, "num_layers": 2}
    changes = {"adversarial": {**EVERYTHING["adversarial"], **adversarial}}
    with elsewhere() as device:
        train(configured(tiny_shards, **{**EVERYTHING, **changes}), tmp_path, device)
    for places in steps[1:]:
        assert len(places) == 2 and all("engine/stability.py" in place for place in places), "\n".join(places)


def test_of_the_transformer(tmp_path, steps):
    states = torch.randn(2, 3, 8)
    text = CaptionStates(states, torch.arange(40) % 2, torch.zeros(3, 8))
    optimizer = OPTIMIZER.model_copy(update={"accumulation_steps": 2})
    with elsewhere() as device:
        cfg = config(max_steps=3, optimizer=optimizer, precision="float32")
        train_dit(cfg, latent_set(), tmp_path, seed=0, device=device, text=text)
    assert_one_wait(steps, 3)
