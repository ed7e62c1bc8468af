"""How latents of diffusers' autoencoders are normalised: as the pipelines of each class do."""

import math

import pytest
import torch

from sat_ssvae.autoencoders.classes import as_autoencoder
from sat_ssvae.errors import UserError

from . import foreign_models


@torch.no_grad()
def test_normalisation_is_the_one_that_each_pipeline_applies():
    z = torch.randn(2, 4, 2, 3, 3)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1, 1) for values in foreign_models.WAN_STATS.values())
    for build, expected in (
        (foreign_models.cogvideox, z * 0.7),
        (foreign_models.wan21, (z - mean) / std),
        (foreign_models.wan22, (z - mean) / std),
        (foreign_models.qwenimage, (z - mean) / std),
        (foreign_models.qwenimage21, (z - mean) / std),
        (foreign_models.hunyuan, z * 0.476986),
        (foreign_models.hunyuan15, z * 1.03682),
        (foreign_models.svd, z * 0.18215),
        (foreign_models.modelscope, z * 0.18215),
        (foreign_models.magvit, z * 0.7125),
        (foreign_models.dc, z * 0.5),
        (foreign_models.vidtok, z),
        (foreign_models.kvae_video, z),
        (foreign_models.taesd, z),
    ):
        stats = as_autoencoder(build()).latent_stats
        torch.testing.assert_close(stats.standardize(z), expected)
        torch.testing.assert_close(stats.unstandardize(stats.standardize(z)), z)


def test_cosmos_has_statistics_of_each_latent_frame():
    model = foreign_models.cosmos()
    vae, z = as_autoencoder(model), torch.randn(1, 16, 5, 2, 2)
    mean, std = (
        torch.tensor(values).view(1, 16, -1, 1, 1)[:, :, :5]
        for values in (model.config.latents_mean, model.config.latents_std)
    )
    torch.testing.assert_close(vae.latent_stats.standardize(z), (z - mean) / std)
    vae.latent_size(121, 8, 8)
    with pytest.raises(UserError, match="129 frames: AutoencoderKLCosmos has statistics for 16 latent frames, 121 fr"):
        vae.latent_size(129, 8, 8)
    model.register_to_config(latents_mean=None, latents_std=None)
    assert as_autoencoder(model).latent_stats.mean.shape == (16,)


def test_statistics_of_flux2_are_those_of_its_batch_normalisation():
    model = foreign_models.flux2()
    z = torch.randn(1, 16, 2, 3, 3)
    normal = torch.stack([model.bn(frame) for frame in z.unbind(2)], 2)
    torch.testing.assert_close(as_autoencoder(model).latent_stats.standardize(z), normal)


def test_shift_and_scale_and_statistics_together():
    shifted = foreign_models.modelscope()
    shifted.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    z = torch.randn(1, 4, 1, 2, 2)
    torch.testing.assert_close(as_autoencoder(shifted).latent_stats.standardize(z), (z - 0.5) * 2)
    both = foreign_models.modelscope()
    for nested in (
        lambda values: values,
        lambda values: [
            [
                [[value]],
            ]
            for value in values
        ],
    ):
        mean, std = nested([1.0, 2.0, 3.0, 4.0]), nested([4.0] * 4)
        both.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=2.0)
        expected = (z - torch.arange(1.0, 5).view(4, 1, 1, 1)) * 2 / 4
        torch.testing.assert_close(as_autoencoder(both).latent_stats.standardize(z), expected)
    both.register_to_config(latents_mean=None)  # pipelines take both or none
    torch.testing.assert_close(as_autoencoder(both).latent_stats.standardize(z), z * 2)
    both.register_to_config(latents_std=None, shift_factor=[1.0, 2.0, 3.0, 4.0], scaling_factor=None)
    expected = z - torch.arange(1.0, 5).view(4, 1, 1, 1)
    torch.testing.assert_close(as_autoencoder(both).latent_stats.standardize(z), expected)
    both.register_to_config(latents_mean=[1.0] * 3, latents_std=[4.0] * 3)
    with pytest.raises(UserError, match="AutoencoderKL: statistics of 3 channels for latents of 4"):
        as_autoencoder(both)


@pytest.mark.parametrize(
    "values",
    [
        {"latents_mean": [[1.0], [1.0, 2.0]], "latents_std": [1.0] * 4},
        {"latents_mean": "zero", "latents_std": [1.0] * 4},
        {"scaling_factor": [1.0, 2.0]},
        {"latents_mean": [1.0] * 5, "latents_std": [1.0] * 4},
        {"latents_mean": [math.nan] * 4, "latents_std": [1.0] * 4},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]},
        {"scaling_factor": 0.0},
        {"scaling_factor": "0.5"},
    ],
)
def test_statistics_that_make_no_sense_are_one_line(values):
    model = foreign_models.wan21()
    model.register_to_config(**values)
    with pytest.raises(UserError, match="statistics") as caught:
        as_autoencoder(model)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_statistics_that_are_buffers_count_too():
    model = foreign_models.ltx()
    model.latents_mean.fill_(2.0)
    model.latents_std.fill_(4.0)
    model.register_to_config(latents_mean=[0.0] * 8, latents_std=[1.0] * 8)  # which its pipelines do not read
    z = torch.randn(1, 8, 2, 2, 2)
    torch.testing.assert_close(as_autoencoder(model).latent_stats.standardize(z), (z - 2) / 4)
