"""The estimate of a step's memory: storages on fake tensors, plans, and the packaged settings on a card of 24 GiB."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sat_ssvae.config import find_config, load_config
from sat_ssvae.engine.memory_tracker import MemoryTracker
from sat_ssvae.training.memory import GIB, PLANS, RESERVE, choose_plan, step_memory
from sat_ssvae.training.settings import TrainConfig

SMALL = {
    "batch_size": 4,
    "resolution": 64,
    "channels": 4,
    "model": {"base_channels": 8, "channel_multipliers": [1, 2, 2], "temporal_downsample": [False, True]},
    "data": {"path": "x", "num_frames": 9},
    "reconstruction": {"perceptual_weight": 0.0},
}


def test_the_tracker_follows_storages_until_they_are_released():
    with FakeTensorMode(), MemoryTracker() as memory:
        x = torch.empty(1000)
        y = x + 1
        view = y[10:]
        assert memory.live == 8000
        del y
        assert memory.live == 8000 and view.shape == (990,)
        del view
        assert memory.live == 4000 and memory.peak == 8000
        x.relu_()
        assert memory.peak == 8000


@pytest.mark.slow
def test_each_plan_needs_less_than_the_one_before_it_and_auto_takes_the_first_that_fits():
    config = load_config(TrainConfig, None, replace=SMALL)
    whole, samples, _, smallest = (step_memory(config, plan).peak for plan in PLANS)
    assert whole > samples > smallest
    assert choose_plan(config, whole * 2).plan is PLANS[0]
    assert choose_plan(config, samples + 2**20).plan is PLANS[1]
    assert choose_plan(config, 1).plan is PLANS[-1] and choose_plan(config, 1).largest_batch == 0
    fast = config.model_copy(update={"memory": "fast"})
    assert choose_plan(fast, 1).plan is PLANS[0]
    choice = choose_plan(config, whole * 2)
    assert choice.memory.peak == pytest.approx(whole, rel=0.02)
    batch = step_memory(config, PLANS[0], choice.largest_batch).peak
    assert batch <= whole * 2 <= step_memory(config, PLANS[0], choice.largest_batch + 1).peak * 1.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["article_256p", "article_512p", "article_1080p"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_packaged_settings_fit_on_a_card_of_24_gib(name, weight):
    given = ["data.path=x", "resume_from=x", f"adversarial.weight={weight}"]
    config = load_config(TrainConfig, find_config(Path(f"{name}.yaml")), given)
    choice = choose_plan(config, 24 * GIB - RESERVE)
    assert step_memory(config, choice.plan).peak <= 22 * GIB
