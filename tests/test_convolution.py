"""Convolutions with fewer operations compute what torch's plain ones do."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.vae.convolution import convolve, repeat_and_convolve, sum_taps

from .small_models import random_video, tiny_vae

CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def case(channels, frames, height, width, *, taps=(3, 3, 3), batch=1, out_channels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, frames, height, width, generator=generator)
    weight = torch.randn(out_channels or channels, channels, *taps, generator=generator) / (27 * channels) ** 0.5
    return x, weight, torch.randn(out_channels or channels, generator=generator)


@pytest.fixture
def multiplications(monkeypatch):
    """Counts the 2-D convolutions that F(2, 3) consists of."""
    calls = []
    plain = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *arguments, **options: calls.append(1) or plain(*arguments, **options))
    return calls


@pytest.mark.parametrize("frames", [4, 5, 10, 11])  # even and odd numbers of outputs
@pytest.mark.parametrize(("taps", "batch"), [((3, 3, 3), 1), ((3, 3, 3), 2), ((3, 2, 2), 1)])
def test_minimal_filtering_in_time_equals_the_plain_convolution(multiplications, frames, taps, batch):
    side = 33
    x, weight, bias = case(128, frames, side, side, taps=taps, batch=batch, out_channels=130)
    with torch.no_grad():
        fast = convolve(x, weight, bias, padding=1)
        assert len(multiplications) == 4, "this size should take F(2, 3)"
        torch.testing.assert_close(fast, F.conv3d(x, weight, bias, padding=(0, 1, 1)), **CLOSE)


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(3, 7), st.integers(3, 9), st.sampled_from([1, 2]), st.booleans())
def test_small_convolutions_equal_the_plain_one_and_have_its_gradients(channels, frames, side, stride, biased):
    x, weight, bias = case(channels, frames, side, side, seed=channels)
    bias = bias if biased else None
    x.requires_grad_()
    weight.requires_grad_()
    padding = 1 if stride == 1 else 0
    ours = convolve(x, weight, bias, stride, padding)
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
    torch.testing.assert_close(convolve(x, sum_taps(weight), bias, padding=1), expected, **CLOSE)


def test_upsampling_of_a_size_for_minimal_filtering_equals_repeating(multiplications):
    x, weight, bias = case(128, 6, 24, 24)
    with torch.no_grad():
        fast = repeat_and_convolve(x, weight, bias, temporal=False)
        assert len(multiplications) == 4
        repeated = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
        torch.testing.assert_close(fast, F.conv3d(repeated, weight, bias, padding=(0, 1, 1)), **CLOSE)


def test_chunks_equal_the_whole_where_only_the_whole_takes_minimal_filtering(multiplications):
    vae = tiny_vae(base_channels=128, channel_multipliers=(1, 1), temporal_downsample=(True,))
    x = random_video(5, 24, 32)
    with torch.no_grad():
        whole = vae.encode(x)
        assert multiplications
        multiplications.clear()
        chunked = vae.encode(x, chunk_frames=1)
        assert not multiplications
        torch.testing.assert_close(chunked.mean, whole.mean, atol=1e-5, rtol=0)
        video = vae.decode(whole.mean)
        torch.testing.assert_close(vae.decode(whole.mean, chunk_frames=1), video, atol=1e-5, rtol=0)
