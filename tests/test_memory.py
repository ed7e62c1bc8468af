"""The estimate of a step's memory: storages on fake tensors, plans, and the packaged settings on a card of 24 GiB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sat_ssvae.config import find_config, load_config
from sat_ssvae.engine.memory_tracker import MemoryTracker
from sat_ssvae.engine.precision import computes_bfloat16
from sat_ssvae.training.memory import GIB, PLANS, RESERVE, choose_plan, step_memory
from sat_ssvae.training.settings import TrainConfig

SMALL = {
    "batch_size": 4,
    "resolution": 64,
    "channels": 4,
    "model": {
        "base_channels": 8,
        "channel_multipliers": [1, 2, 2],
        "temporal_downsample": [False, True],
        "num_res_blocks": 1,
        "num_mid_blocks": 1,
    },
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_keep_the_layout_of_their_input_whatever_the_processor(dtype):
    with FakeTensorMode(), MemoryTracker():
        x = torch.empty(2, 8, 5, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        weight = torch.empty(8, 8, 3, 3, 3, dtype=dtype, requires_grad=True)
        y = F.conv3d(x, weight, padding=1)
        (gradient,) = torch.autograd.grad(y, x, torch.empty_like(y))
        plain = F.conv3d(x.detach().contiguous(), weight)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d) and gradient.shape == x.shape
    assert plain.is_contiguous()


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


IN_BFLOAT16 = pytest.mark.skipif(
    not computes_bfloat16(torch.device("cpu")), reason="this processor only imitates bfloat16, for 20 minutes"
)
RESIDENT = """
import json, sys, torch
from pathlib import Path
from sat_ssvae import distributed
from sat_ssvae.config import parse_config
from sat_ssvae.training.memory import PLANS, step_memory
from sat_ssvae.training.settings import TrainConfig
from sat_ssvae.training.trainer import train

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
given, folder, device = json.loads(sys.argv[1]), Path(sys.argv[2]), torch.device("cpu")
distributed.initialize(device)
config = parse_config(TrainConfig, given)
estimate = step_memory(config, PLANS[-1 if config.memory == "small" else 0]).peak
narrow = {"model": {**given["model"], "base_channels": 2}, "batch_size": 1, "max_steps": 1}
train(parse_config(TrainConfig, {**given, **narrow}), folder / "warm", device)  # loads libraries
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew, see proc(5)
train(config, folder / "run", device)
print(json.dumps([estimate, resident("VmHWM") - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read as Linux has it")
@pytest.mark.parametrize(
    ("channels", "changes"),
    [
        (16, {"batch_size": 4}),
        # PyTorch gives one clip of float32 to oneDNN, whose memory the estimate has, only where it is large.
        (32, {"batch_size": 2, "memory": "small", "resolution": 128}),
        pytest.param(32, {"batch_size": 2, "memory": "small", "precision": "bfloat16"}, marks=IN_BFLOAT16),
    ],
)
def test_the_estimate_is_the_resident_memory_of_the_trainer(channels, changes, tiny_shards, tmp_path):
    model = {"base_channels": channels, "channel_multipliers": [1, 2, 4], "temporal_downsample": [True, True]}
    given = {
        **SMALL,
        **changes,
        "max_steps": 2,
        "model": {**model, "num_res_blocks": 1, "num_mid_blocks": 1},
        "data": {"path": str(tiny_shards), "num_frames": 9, "fps": 8, "enlarge": True, "num_workers": 0},
    }
    # Without these thresholds glibc keeps some of what is freed.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, json.dumps(given), str(tmp_path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimate, measured = json.loads(done.stdout.splitlines()[-1])
    assert measured == pytest.approx(estimate, rel=0.1)
