"""Scores of a transformer, where the right answer is known."""

import dataclasses

import pytest
import torch
from torch import nn

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.comparison.reference import (
    distance_floors,
    gaussian_loss_floor,
    measure_arm,
    reconstruction_quality,
    training_distances,
)
from sat_ssvae.comparison.results import ABOVE_MEAN_COLOUR
from sat_ssvae.comparison.scoring import DiTGenerator, ScoringConfig, mean_estimate, score_generator
from sat_ssvae.diffusion.process import FlowMatching, VPrediction
from sat_ssvae.latents.latent_set import LatentSet, LatentStats
from sat_ssvae.spectral.spectrum import latent_eigenvalues, mean_gaussian_floor

CONFIG = ScoringConfig(samples=16, sampler_steps=2, denoising_clips=8, loss_levels=4, batch_size=6, noise_levels=(0.5,))


class MeanColour(nn.Module):
    """Features simple enough to reason about: mean and deviation of each colour."""

    def forward(self, video):
        flat = video.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], dim=1)


class Perfect(nn.Module):
    """Predicts the velocity exactly for the one latent that it knows."""

    def __init__(self, latents):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.latents = latents

    def forward(self, x, t, text=None):
        # x = (1 - t) x0 + t e, so e - x0 = (x - x0) / t
        distance = (x[:, None] - (1 - t.view(-1, 1, 1, 1, 1, 1)) * self.latents).flatten(2)
        known = distance.square().sum(2).argmin(1)
        return (x - self.latents[known]) / t.view(-1, 1, 1, 1, 1).clamp_min(1e-3)


class Recalls:
    """A generator whose samples are the latents that it was given."""

    def __init__(self, latents):
        self.latents = latents

    def loss(self, clean, noise, t, text):
        return torch.zeros(len(clean))

    def denoise(self, clean, noise, t, text):
        return clean

    def sample(self, noise, text, empty):
        assert len(noise) == len(self.latents)
        return self.latents


def generator(model):
    return DiTGenerator(model, FlowMatching(), CONFIG)


@pytest.fixture(scope="module")
def arm():
    torch.manual_seed(0)
    sizes = SSVAEConfig(
        latent_channels=4,
        base_channels=4,
        channel_multipliers=(1, 2, 2),
        temporal_downsample=(False, True),
        num_res_blocks=1,
        num_mid_blocks=1,
    )
    vae = SSVAE(sizes).eval()
    clips = torch.rand(12, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = clips * torch.linspace(0.1, 1, 12).view(12, 1, 1, 1, 1)
    with torch.no_grad():
        latents = vae.encode(clips).mode()
    heldout = LatentSet(latents, ("k",) * 12, ("",) * 12, LatentStats.measure(latents))
    return measure_arm(vae.decode, torch.device("cpu"), heldout, clips, {"colour": MeanColour()}, CONFIG)


def test_a_perfect_denoiser_is_left_with_the_reconstruction_error(arm):
    known = arm.heldout.statistics.standardize(arm.heldout.latents)
    scores, shown = score_generator(generator(Perfect(known)), arm, CONFIG, loss_floor=0.25)
    floors = distance_floors(arm, CONFIG)
    assert scores["denoising_error_reconstruction/0.5"].value < 1e-6
    floor = floors["denoising_error_real/0.5"].value
    assert scores["denoising_error_real/0.5"].value == pytest.approx(floor, rel=1e-3)
    assert scores["loss"].value < 0.05  # at the highest level, noise may hide which latent it was
    assert scores["loss_above_floor"].value == pytest.approx(scores["loss"].value - 0.25)
    assert shown.shape == (4, 3, 3, 32, 32) and shown.abs().max() <= 1


def test_training_clips_score_what_a_transformer_that_learnt_them_would(arm):
    train = dataclasses.replace(arm.heldout, latents=arm.heldout.latents[:6], keys=("a",) * 6)
    standard = arm.heldout.statistics.standardize(train.latents)
    config = CONFIG.model_copy(update={"samples": len(train)})
    scores, _ = score_generator(Recalls(standard), arm, config, 0.0)
    distances = training_distances(arm, train, config)
    assert set(distances) == {"kernel_distance_real/colour", "kernel_distance_reconstruction/colour"}
    for metric, distance in distances.items():
        assert distance.value == pytest.approx(scores[metric].value, rel=1e-3, abs=1e-6), metric
        assert distance.low < distance.value < distance.high
    assert not training_distances(arm, dataclasses.replace(train, latents=train.latents[:3]), config)


def test_equal_calls_give_equal_scores_whatever_the_batch_size(arm):
    model = Perfect(arm.heldout.statistics.standardize(arm.heldout.latents) * 0.9)
    first, _ = score_generator(generator(model), arm, CONFIG, 0.0)
    other, _ = score_generator(generator(model), arm, CONFIG.model_copy(update={"batch_size": 3}), 0.0)
    for metric, estimate in first.items():
        assert other[metric].value == pytest.approx(estimate.value, rel=1e-3, abs=1e-5), metric


def test_worse_predictions_score_worse(arm):
    known = arm.heldout.statistics.standardize(arm.heldout.latents)
    good, _ = score_generator(generator(Perfect(known)), arm, CONFIG, 0.0)
    bad, _ = score_generator(generator(Perfect(torch.zeros_like(known[:1]))), arm, CONFIG, 0.0)
    # This untrained autoencoder reconstructs nothing, so the distances to real clips do not order anything.
    for metric in ("loss", "loss_above_floor", "denoising_error_reconstruction/0.5"):
        assert good[metric].value < bad[metric].value, metric
    assert set(good) == {
        "loss",
        "loss_above_floor",
        "denoising_error_real/0.5",
        "denoising_error_reconstruction/0.5",
        "kernel_distance_real/colour",
        "kernel_distance_reconstruction/colour",
    }


def test_loss_floor_is_the_analytic_one(arm):
    latents = torch.randn(400, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("ij,njthw->nithw", torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [0.5, 0.5, 0.5]]), latents)
    train = LatentSet(mixed, ("k",) * 400, ("",) * 400, LatentStats.measure(mixed))
    fine = ScoringConfig(loss_levels=400)
    eigenvalues = latent_eigenvalues(train.statistics.standardize(mixed))
    assert gaussian_loss_floor(train, FlowMatching().signal_and_noise, fine) == pytest.approx(
        mean_gaussian_floor(eigenvalues), rel=0.01
    )
    # White latents are all that v-prediction can know nothing about: a^2 l + s^2 = 1 for l = 1.
    white = LatentSet(latents, ("k",) * 400, ("",) * 400, LatentStats.measure(latents))
    assert gaussian_loss_floor(white, VPrediction().signal_and_noise, fine) == pytest.approx(1.0, abs=0.02)


def test_reconstruction_quality_is_per_clip(arm):
    class Difference(nn.Module):
        metric = "difference"

        def forward(self, x, y):
            return (x - y).abs().flatten(1).mean(1)

    quality = reconstruction_quality(arm, Difference())
    assert set(quality) == {"psnr", ABOVE_MEAN_COLOUR, "ssim", "difference"}
    assert {values.shape for values in quality.values()} == {(12,)}
    # Clip amplitudes rise, and so does the error of a network that knows nothing yet.
    assert quality["psnr"][0] > quality["psnr"][-1]
    assert quality[ABOVE_MEAN_COLOUR].max() < 0  # a flat clip of the mean colour is closer than such a network's


def test_mean_estimate_covers_the_mean():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    estimate = mean_estimate(values)
    assert estimate.value == 2.5
    assert estimate.low == pytest.approx(2.5 - 1.959964 * values.std().item() / 2)
