"""Stands in for CogVideoX's engine: what the comparison calls of it, in the order of CogVideoX's axes, b t c h w."""

import math

import torch
from einops import rearrange
from sgm.util import instantiate_from_config
from torch import nn
from torch.nn import functional as F


class PooledPixels(nn.Module):
    """A first stage of 16 channels at 4 x 8 x 8: the mean colours, thrice over, without the last frame's end."""

    def __init__(self, **params):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def encode(self, x):
        first, rest = x[:, :, :1], x[:, :, 1:]
        frames = torch.cat([first, F.avg_pool3d(rest, (4, 1, 1))], dim=2)
        return F.avg_pool3d(frames, (1, 8, 8)).repeat(1, 6, 1, 1, 1)[:, :16]

    def decode(self, z):
        video = F.interpolate(z[:, :3], scale_factor=(1, 8, 8))
        return torch.cat([video[:, :, :1], video[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)


class Transformer(nn.Module):
    """First layer, one between, last layer, with the names that a transformer of CogVideoX has."""

    def __init__(self, in_channels, out_channels, hidden_size, patch_size, **params):
        super().__init__()
        self.patch, self.out_channels = patch_size, out_channels
        embed, final = nn.Module(), nn.Module()
        embed.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        final.linear = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self.mixins = nn.ModuleDict({"patch_embed": embed, "final_layer": final})
        self.transformer = nn.Linear(hidden_size + 3, hidden_size)

    def forward(self, x, level, text):
        frames = self.mixins["patch_embed"].proj(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        told = torch.cat([level[:, None] / 1000, text.mean(1)], dim=1)[:, None, :, None, None]
        hidden = torch.cat([frames, told.expand(-1, frames.shape[1], -1, *frames.shape[3:])], dim=2)
        hidden = torch.tanh(self.transformer(hidden.movedim(2, -1)))
        patches = self.mixins["final_layer"].linear(hidden)
        return rearrange(patches, "b t h w (c p q) -> b t c (h p) (w q)", p=self.patch, q=self.patch)


class Denoiser(nn.Module):
    sigmas = torch.cos(torch.linspace(0.01, math.pi / 2, 1000))

    def forward(self, network, noisy, signal, cond, idx, concat_images=None):
        signal = signal.view(-1, 1, 1, 1, 1)
        return signal * noisy - (1 - signal**2).sqrt() * network.diffusion_model(noisy, idx.float(), cond["crossattn"])


class Conditioner:
    def get_unconditional_conditioning(self, batch, batch_uc=None, force_uc_zero_embeddings=None):
        codes = torch.tensor([[[len(text) / 10, 1.0]] for text in batch["txt"]])
        assert force_uc_zero_embeddings == ["txt"]
        return {"crossattn": codes}, {"crossattn": torch.zeros_like(codes)}


class Sampler:
    verbose = True
    levels = (999, 600, 300)


class SATVideoDiffusionEngine(nn.Module):
    def __init__(self, args, params_dtype=None):
        super().__init__()
        config = args.model_config
        self.dtype, self.device = torch.float32, args.device
        self.model = nn.Module()
        self.model.diffusion_model = instantiate_from_config(config.network_config)
        self.denoiser, self.conditioner, self.sampler = Denoiser(), Conditioner(), Sampler()
        self.first_stage_model = instantiate_from_config(config.first_stage_config).requires_grad_(False)
        self.scale_factor = config.scale_factor

    def reinit(self, names):
        """SAT calls this when tensors are missing."""

    def encode_first_stage(self, x, batch):
        return self.scale_factor * self.first_stage_model.encode(x)

    def decode_first_stage(self, z):
        return self.first_stage_model.decode(z / self.scale_factor)

    def sample(self, cond, uc=None, batch_size=16, shape=None):
        x = self.seeded_noise(torch.randn(batch_size, *shape))
        assert not self.sampler.verbose and not uc["crossattn"].any()
        for level, following in zip(self.sampler.levels, (*self.sampler.levels[1:], 0), strict=True):
            idx = torch.full((batch_size,), level)
            clean = self.denoiser(self.model, x, self.denoiser.sigmas[idx], cond, idx=idx)
            signal = self.denoiser.sigmas[following]
            x = signal * clean + (1 - signal**2).sqrt() * torch.randn_like(clean)
        return x
