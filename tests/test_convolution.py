"""Weights with fewer taps compute what torch's plain convolutions do on frames and pixels that repeat."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.vae.convolution import interleave_phases, with_taps
from sat_ssvae.vae.layers import CausalConv3d

CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def convolution(in_channels, out_channels=None, seed=0):
    torch.manual_seed(seed)
    return CausalConv3d(in_channels, out_channels or in_channels)


def video(channels, frames, height, width):
    return torch.randn(2, channels, frames, height, width, generator=torch.Generator().manual_seed(0))


def plain(conv, x):
    return F.conv3d(x, conv.conv.weight, conv.conv.bias, padding=(0, 1, 1))


def test_one_summed_tap_does_on_equal_frames_what_three_do():
    conv, x = convolution(4), video(4, 1, 6, 5)
    torch.testing.assert_close(conv.convolve(x, "summed"), plain(conv, x.expand(-1, -1, 3, -1, -1)), **CLOSE)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(3, 6), st.integers(1, 6), st.integers(1, 6))
def test_phases_equal_repeating_in_space(channels, out_channels, frames, height, width):
    conv, x = convolution(channels, out_channels), video(channels, frames, height, width)
    repeated = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    torch.testing.assert_close(interleave_phases(conv.convolve(x, "phases"), time=1), plain(conv, repeated), **CLOSE)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_phases_equal_repeating_in_space_and_time(channels, out_channels, frames, height, width):
    """`x` starts with a frame of history; outputs start where the pair of the next one does."""
    conv, x = convolution(channels, out_channels), video(channels, frames + 1, height, width)
    repeated = F.interpolate(x, scale_factor=(2, 2, 2), mode="nearest")[:, :, 0:]
    phases = interleave_phases(conv.convolve(x, "phases in time"), time=2)
    torch.testing.assert_close(phases, plain(conv, repeated)[:, :, :], **CLOSE)


def test_summed_phases_equal_repeating_an_image():
    conv, x = convolution(3), video(3, 1, 4, 5)
    repeated = F.interpolate(x, scale_factor=(3, 2, 2), mode="nearest")
    torch.testing.assert_close(
        interleave_phases(conv.convolve(x, "summed phases"), time=1), plain(conv, repeated), **CLOSE
    )


@pytest.mark.parametrize("taps", ["all", "summed", "phases", "phases in time", "summed phases"])
def test_taps_are_rounded_once(taps):
    weight = convolution(5).conv.weight.detach().bfloat16()
    assert torch.equal(with_taps(weight, taps), with_taps(weight.float(), taps).bfloat16())
