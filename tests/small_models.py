"""Autoencoders and videos that are small enough for tests of functions of them."""

import torch

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.vae.statistics import LatentStats


def tiny_vae(**changes):
    sizes = {
        "latent_channels": 4,
        "base_channels": 4,
        "channel_multipliers": (1, 2, 2),
        "temporal_downsample": (False, True),
        "num_res_blocks": 1,
        "num_mid_blocks": 1,
    }
    torch.manual_seed(0)
    return SSVAE(SSVAEConfig(**(sizes | changes))).eval()


def measured_vae():
    """`tiny_vae` with latent statistics."""
    vae = tiny_vae()
    vae.latent_stats = LatentStats(torch.arange(4.0), torch.tensor([1.0, 2.0, 0.5, 1.0]))
    return vae


def pattern(*shape, phase=0.0):
    """Reproducible pictures in [-1, 1] that need no random generator."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    value = 0.6 * torch.sin(0.37 * i + phase) + 0.4 * torch.cos(0.0113 * i * (1 + phase))
    return value.reshape(shape).float()


def random_video(frames, height=16, width=16, seed=0):
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed))
