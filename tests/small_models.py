"""Autoencoders and videos that are small enough for tests of functions of them."""

import torch

from sat_ssvae import SSVAE, SSVAEConfig


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


def random_video(frames, height=16, width=16, seed=0):
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed))
