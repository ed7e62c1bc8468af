"""Noise levels at which two latent spaces are equally hard for the best linear predictor."""

import json

import pytest
import torch

from sat_ssvae.comparison.matched_noise import LinearDenoiser, equivalent_levels, kept_levels, linear_errors
from sat_ssvae.comparison.reference import measure_arm
from sat_ssvae.comparison.scoring import ScoringConfig
from sat_ssvae.diffusion.process import FlowMatching
from sat_ssvae.latents.latent_set import LatentSet, LatentStats
from sat_ssvae.spectral.spectrum import dct3, inverse_dct3

CONFIG = ScoringConfig(denoising_clips=64, batch_size=16)


def gaussian(steepness, count=400, seed=0):
    """Latents 3 x 2 x 4 x 4 whose variance falls with the frequency, the more the steeper; mean variance 1."""
    generator = torch.Generator().manual_seed(seed)
    frequency = sum(torch.arange(n).reshape([-1 if i == j else 1 for j in range(3)]) for i, n in enumerate((2, 4, 4)))
    deviation = torch.exp(-steepness * frequency)
    deviation = deviation / deviation.square().mean().sqrt()
    return inverse_dct3(torch.randn(count, 3, 2, 4, 4, generator=generator) * deviation), deviation.square()


def errors(latents):
    """Of an autoencoder whose videos are the latents themselves."""
    small = latents / 8  # inside [-1, 1], to which videos are cut
    data = LatentSet(small, ("k",) * len(small), ("",) * len(small), LatentStats.measure(small))
    arm = measure_arm(lambda z: z, torch.device("cpu"), data, small, {}, CONFIG)
    return linear_errors(data, arm, FlowMatching().signal_and_noise, CONFIG)


def test_dct_and_its_inverse():
    x = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(inverse_dct3(dct3(x)), x)


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_the_linear_predictor_leaves_what_the_wiener_filter_leaves(level):
    latents, variance = gaussian(0.5, 4000)
    denoiser = LinearDenoiser.fit(latents)
    clean, _ = gaussian(0.5, 4000, seed=1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    left = (denoiser((1 - level) * clean + level * noise, 1 - level, level) - clean).square().mean()
    expected = (variance * level**2 / ((1 - level) ** 2 * variance + level**2)).mean()
    assert left.item() == pytest.approx(expected.item(), rel=0.03)


def test_equal_latents_have_equal_levels_and_steeper_ones_stand_more_noise():
    flat, steep = errors(gaussian(0.1)[0]), errors(gaussian(1.0)[0])
    wanted = {level: flat(level) for level in (0.3, 0.5, 0.7)}
    for level, own in equivalent_levels(flat, wanted).items():
        assert own == pytest.approx(level, abs=0.01)
    for level, own in equivalent_levels(steep, wanted).items():
        assert own > level + 0.03
        assert steep(own) == pytest.approx(wanted[level], rel=0.05)


def test_levels_end_where_a_schedule_ends():
    error = errors(gaussian(0.1, 64)[0])
    assert equivalent_levels(error, {0.5: 1e9, 0.3: 0.0}) == {0.5: 0.98, 0.3: 0.02}


def test_levels_are_measured_once(tmp_path):
    file = tmp_path / "levels.json"
    assert kept_levels(file, lambda t: t, {0.25: 0.5})[0.25] == pytest.approx(0.5, abs=0.01)
    file.write_text(json.dumps({"0.25": 0.4}))
    assert kept_levels(file, lambda t: t, {0.25: 0.5}) == {0.25: 0.4}
