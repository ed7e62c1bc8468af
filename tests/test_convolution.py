"""Convolutions with fewer operations compute what torch's plain ones do."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.vae import convolution
from sat_ssvae.vae.convolution import Kernel, convolve, repeat_and_convolve, sum_taps

from .small_models import random_video, tiny_vae

CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def case(channels, frames, height, width, *, taps=(3, 3, 3), batch=1, out_channels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, frames, height, width, generator=generator)
    weight = torch.randn(out_channels or channels, channels, *taps, generator=generator) / (27 * channels) ** 0.5
    return x, weight, torch.randn(out_channels or channels, generator=generator)


@pytest.fixture
def minimal_filterings(monkeypatch):
    """Counts the convolutions that were computed by F(2, 3)."""
    calls = []
    minimal_filtering = convolution._minimal_filtering
    monkeypatch.setattr(convolution, "_minimal_filtering", lambda *args: calls.append(1) or minimal_filtering(*args))
    return calls


@pytest.mark.parametrize("frames", [4, 5, 10, 11])  # even and odd numbers of outputs
@pytest.mark.parametrize(("taps", "batch"), [((3, 3, 3), 1), ((3, 3, 3), 2), ((3, 2, 2), 1)])
def test_minimal_filtering_in_time_equals_the_plain_convolution(minimal_filterings, frames, taps, batch):
    side = 33
    x, weight, bias = case(128, frames, side, side, taps=taps, batch=batch, out_channels=130)
    with torch.no_grad():
        fast = convolve(x, Kernel(weight), bias, padding=1)
        assert len(minimal_filterings) == 1, "this size should take F(2, 3)"
        torch.testing.assert_close(fast, F.conv3d(x, weight, bias, padding=(0, 1, 1)), **CLOSE)


@pytest.mark.parametrize(("frames", "computed"), [(5, True), (6, False)])
def test_a_still_start_spares_taps_in_time(monkeypatch, frames, computed):
    x, weight, bias = case(128, frames, 33, 33)
    x[:, :, :2] = x[:, :, 2:3]
    summed = []
    sum_of = convolution.sum_taps
    monkeypatch.setattr(convolution, "sum_taps", lambda kernel: summed.append(1) or sum_of(kernel))
    with torch.no_grad():
        fast = convolve(x, Kernel(weight), bias, padding=1, starts_still=True)
        torch.testing.assert_close(fast, F.conv3d(x, weight, bias, padding=(0, 1, 1)), **CLOSE)
    assert bool(summed) == computed  # an even number of outputs consists of pairs alone


def test_blocks_of_minimal_filtering_join(monkeypatch, minimal_filterings):
    x, weight, bias = case(64, 13, 24, 20)
    monkeypatch.setattr(convolution, "_MINIMAL_BLOCK", 64 * 24 * 20 * 2)
    with torch.no_grad():
        fast = convolve(x, Kernel(weight), bias, padding=1)
        torch.testing.assert_close(fast, F.conv3d(x, weight, bias, padding=(0, 1, 1)), **CLOSE)
    assert len(minimal_filterings) == 1


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(3, 7), st.integers(3, 9), st.sampled_from([1, 2]), st.booleans())
def test_small_convolutions_equal_the_plain_one_and_have_its_gradients(channels, frames, side, stride, biased):
    x, weight, bias = case(channels, frames, side, side, seed=channels)
    bias = bias if biased else None
    x.requires_grad_()
    weight.requires_grad_()
    padding = 1 if stride == 1 else 0
    ours = convolve(x, Kernel(weight), bias, stride, padding)
    plain = F.conv3d(x, weight, bias, stride=stride, padding=(0, padding, padding))
    torch.testing.assert_close(ours, plain, **CLOSE)
    for gradient, expected in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight)),
        torch.autograd.grad(plain.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_one_summed_tap_does_on_equal_frames_what_three_do():
    x, weight, bias = case(4, 1, 6, 5)
    copies = x.expand(-1, -1, 3, -1, -1)
    expected = F.conv3d(copies, weight, bias, padding=(0, 1, 1))
    torch.testing.assert_close(convolve(x, sum_taps(Kernel(weight)), bias, padding=1), expected, **CLOSE)


def test_upsampling_of_a_size_for_minimal_filtering_equals_repeating(minimal_filterings):
    x, weight, bias = case(128, 6, 24, 24)
    with torch.no_grad():
        fast = repeat_and_convolve(x, Kernel(weight), bias, temporal=False)
        assert len(minimal_filterings) == 1
        repeated = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
        torch.testing.assert_close(fast, F.conv3d(repeated, weight, bias, padding=(0, 1, 1)), **CLOSE)


def test_chunks_equal_the_whole_where_only_the_whole_takes_minimal_filtering(minimal_filterings):
    vae = tiny_vae(base_channels=128, channel_multipliers=(1, 1), temporal_downsample=(True,))
    x = random_video(5, 24, 32)
    with torch.no_grad():
        whole = vae.encode(x)
        assert minimal_filterings
        minimal_filterings.clear()
        chunked = vae.encode(x, chunk_frames=1)
        assert not minimal_filterings
        torch.testing.assert_close(chunked.mean, whole.mean, atol=1e-5, rtol=0)
        video = vae.decode(whole.mean)
        torch.testing.assert_close(vae.decode(whole.mean, chunk_frames=1), video, atol=1e-5, rtol=0)
