"""An autoencoder prepared for training on a CPU has the outputs and gradients that torch's plain convolutions give."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat_ssvae.training.losses import Objective
from sat_ssvae.training.memory import PLANS
from sat_ssvae.training.objective_config import ObjectiveConfig, ReconstructionConfig
from sat_ssvae.vae import cpu_training, minimal_filtering
from sat_ssvae.vae.layers import CausalConv3d, repeat_first_frame

from .small_models import random_video, tiny_vae

WIDE = {"base_channels": 32, "channel_multipliers": (1, 2), "temporal_downsample": (True,)}


@pytest.fixture(autouse=True)
def small_sizes_take_the_paths(monkeypatch):
    monkeypatch.setattr(cpu_training, "_NUMBERS", 0)
    monkeypatch.setattr(minimal_filtering, "_POSITIONS", 0)


def twins(channels, out_channels, stride=1, bias=True):
    """A plain convolution, and the same prepared for training."""
    torch.manual_seed(0)
    conv = CausalConv3d(channels, out_channels, stride)
    conv.conv.bias = conv.conv.bias if bias else None
    prepared = nn.ModuleList([copy.deepcopy(conv)])
    cpu_training.install(prepared)
    return conv, prepared[0]


def gradients(conv, x, run):
    """Output and gradients at input, weight and bias, by name."""
    conv.zero_grad()
    x = x.clone().requires_grad_()
    out = run(conv, x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    at_parameters = {name: parameter.grad.clone() for name, parameter in conv.named_parameters()}
    return {"output": out.detach(), "input": x.grad, **at_parameters}


def check_equal(plain, prepared, x, run):
    """Both are as exact as float32 can be, against float64."""
    exact = gradients(copy.deepcopy(plain).double(), x.double(), run)
    for name, ours in gradients(prepared, x, run).items():
        assert (ours - exact[name]).norm() <= 2e-6 * exact[name].norm(), name


def used(conv, x, run):
    """The function whose backward pass gave the output."""
    return type(run(conv, x.clone().requires_grad_()).grad_fn).__name__


SIZES = st.integers(1, 2), st.integers(2, 6), st.integers(1, 7), st.integers(1, 7)


@settings(max_examples=25, deadline=None)
@given(SIZES[0], st.integers(2, 9), *SIZES[2:], st.sampled_from([32, 37]), st.sampled_from(["all", "phases"]))
def test_minimal_filtering_has_the_plain_gradients(batch, frames, height, width, out_channels, taps):
    plain, prepared = twins(33, out_channels)
    x = torch.randn(batch, 33, frames, height, width, generator=torch.Generator().manual_seed(0))

    def run(conv, x):
        return conv.convolve(repeat_first_frame(x, 2), taps, starts_still=True)

    assert used(prepared, x, run) == "_MinimalFilteringBackward"
    check_equal(plain, prepared, x, run)


@pytest.mark.parametrize("fewest_positions", [0, 192], ids=["F(4, 3)", "F(2, 3)"])
def test_blocks_of_minimal_filtering_join(monkeypatch, fewest_positions):
    monkeypatch.setattr(minimal_filtering, "_POSITIONS", fewest_positions)
    plain, prepared = twins(32, 32, bias=False)
    x = torch.randn(2, 32, 17, 6, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(minimal_filtering, "BLOCK", 2 * 32 * 6 * 5)
    check_equal(plain, prepared, x, lambda conv, x: conv.convolve(repeat_first_frame(x, 2), starts_still=True))


def test_an_even_number_of_frames_need_not_start_still():
    plain, prepared = twins(32, 32)
    x = torch.randn(1, 32, 6, 6, 5, generator=torch.Generator().manual_seed(0))
    assert used(prepared, x, CausalConv3d.convolve) == "ConvolutionBackward0"

    def run(conv, x):
        return conv.convolve(x)

    assert used(prepared, x, run) == "_MinimalFilteringBackward"
    check_equal(plain, prepared, x, run)
    assert used(prepared, x[:, :, 1:], run) != "_MinimalFilteringBackward", "an odd number has a first output by itself"


@settings(max_examples=25, deadline=None)
@given(*SIZES[1:], st.integers(1, 5), st.sampled_from([1, 2]), st.sampled_from(["all", "phases in time"]))
def test_one_small_clip_has_the_plain_gradients(frames, height, width, channels, stride, taps):
    plain, prepared = twins(channels, 4, stride)
    x = torch.randn(1, channels, frames + 2, height + 2, width + 2, generator=torch.Generator().manual_seed(0))

    def run(conv, x):
        return conv.convolve(x, taps, padding=2 - stride)

    assert used(prepared, x, run) == "_OneClipBackward"
    check_equal(plain, prepared, x, run)


def step_gradients(vae, plan, video):
    objective = Objective(vae, ObjectiveConfig(reconstruction=ReconstructionConfig(perceptual_weight=0)))
    plan.apply(objective)
    objective.zero_grad()
    objective(video, torch.Generator().manual_seed(0)).total.backward()
    return {name: parameter.grad for name, parameter in vae.named_parameters()}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_whole_step_has_the_same_gradients(plan, frozen):
    vae = tiny_vae(**WIDE)
    vae.encoder.requires_grad_(not frozen)
    video = torch.cat([random_video(5, 16, 16), random_video(5, 16, 16).flip(-1)])
    plain, ours = (step_gradients(model, plan, video) for model in (vae, copy.deepcopy(vae).for_training()))
    for name, expected in plain.items():
        if expected is None:
            assert ours[name] is None
        else:
            assert (ours[name] - expected).norm() <= 1e-5 * expected.norm().clamp_min(1e-6), name


class Operators(TorchDispatchMode):
    """Notes what torch executes."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("change", ["autocast", "bfloat16", "meta"])
def test_what_is_not_float32_on_a_cpu_takes_the_plain_path(change):
    dtype = torch.bfloat16 if change == "bfloat16" else torch.float32
    device = "meta" if change == "meta" else "cpu"
    vae = tiny_vae(**WIDE).for_training().to(device, dtype)
    video = random_video(5, 16, 16).to(device, dtype)
    with Operators() as operators, torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        vae.decode(vae.encode(video).mean)
    assert "mkldnn_convolution.default" not in operators.names


def test_files_and_inference_stay_the_same(tmp_path):
    plain, ours = tiny_vae(), tiny_vae().for_training()
    for name, vae in (("plain", plain), ("ours", ours)):
        vae.save_pretrained(tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "ours")]
    assert files[0] == files[1]
    prepared = [type(module) for module in ours.for_inference().modules()]
    assert prepared == [type(module) for module in plain.for_inference().modules()]
