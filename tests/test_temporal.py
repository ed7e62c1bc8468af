"""Motion, flicker and smoothness of videos whose motion is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.metrics.temporal import flicker, motion, smoothness


def gray(levels):
    """A video of even frames with these grey levels."""
    return (torch.tensor(levels) / 127.5 - 1).view(1, 1, -1, 1, 1).expand(1, 3, -1, 24, 32)


def moving(offsets, size=64):
    """A smooth texture shifted by these pixels to the right."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 20, 20, generator=generator) * 2 - 1, size=(2 * size, 2 * size), mode="bilinear"
    )[0]
    frames = [texture[:, 32 : 32 + size, 32 - offset : 32 - offset + size] for offset in offsets]
    return torch.stack(frames, 1)[None]


@given(st.floats(20, 100), st.floats(0, 50))
def test_alternating_brightness_has_its_amplitude_as_flicker(base, amplitude):
    video = gray([base, base + amplitude] * 4)
    assert flicker(video).item() == pytest.approx(amplitude, abs=1e-3)
    assert motion(video).item() == pytest.approx(amplitude, abs=1e-3)


@given(st.floats(0, 100), st.floats(-10, 10))
def test_a_steady_fade_does_not_flicker(base, slope):
    video = gray([128 + base / 2 + slope * step / 2 for step in range(9)])
    assert flicker(video).item() == pytest.approx(0, abs=1e-3)
    assert smoothness(video).item() == pytest.approx(10 * math.log10(255**2 * 12), abs=1e-3)


@pytest.mark.parametrize("speed", [1, 3, 8])
def test_uniform_motion_is_smooth_and_jerks_are_not(speed):
    steady = moving([speed * step for step in range(4)])
    jerky = moving([0, speed, speed, 3 * speed])
    assert smoothness(steady).item() > 50 > smoothness(moving([0, 5, 2, 7])).item()
    assert smoothness(steady).item() > smoothness(jerky).item()
    assert motion(steady).item() > 1


def test_a_still_video_has_neither_motion_nor_flicker_and_the_largest_smoothness():
    still = moving([5] * 5)
    assert motion(still).item() == 0 and flicker(still).item() == pytest.approx(0, abs=1e-4)
    assert smoothness(still).item() == pytest.approx(58.9, abs=0.05)


def test_noise_lowers_smoothness_and_large_frames_are_scaled_down():
    steady = moving([0, 2, 4, 6, 8], size=64)
    noisy = (steady + 0.2 * torch.randn(steady.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    assert smoothness(noisy).item() < smoothness(steady).item() - 10
    large = torch.nn.functional.interpolate(steady[0].transpose(0, 1), scale_factor=4, mode="bilinear")
    assert smoothness(large.transpose(0, 1)[None]).item() > 35


def test_values_are_per_video_and_wrong_shapes_are_refused():
    pair = torch.cat([gray([100.0, 120.0, 100.0]), gray([100.0, 100.0, 100.0])])
    assert flicker(pair).tolist() == pytest.approx([20, 0], abs=1e-3)
    for measure in (flicker, smoothness):
        with pytest.raises(ValueError, match="T at least 3"):
            measure(pair[:, :, :2])
    with pytest.raises(ValueError, match="at least 24 pixels"):
        smoothness(pair[..., :20])
