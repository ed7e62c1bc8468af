"""SSVAE: a causal video autoencoder whose latents diffusion models learn fast.

    vae = SSVAE(SSVAEConfig())
    posterior = vae.encode(video)            # B 3 T H W in [-1, 1], T = 4k + 1
    video = vae.decode(posterior.mode())     # latents b c t h w, t = k + 1

The network is the one of "Delving into Latent Spectral Biasing of Video VAEs for Superior Diffusability" (arXiv
2512.05394). What makes its latents special happens in training alone: see `spectral/correlation.py` (LCR) and
`spectral/masking.py` (LMR).
"""

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config
from ..errors import UserError
from .decoder import Decoder
from .encoder import Encoder
from .layers import Stream
from .posterior import Posterior

Positive = Annotated[int, Field(gt=0)]


class SSVAEConfig(Config):
    """Sizes of the network. The defaults are the published 48-channel model, 4x16x16 compression, 315 M parameters."""

    in_channels: Positive = 3
    """Channels of the video."""
    latent_channels: Positive = 48
    """Channels of the latents."""
    base_channels: Positive = 32
    """Width that the multipliers multiply."""
    channel_multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2, 4, 8, 16, 16)
    """Width of each resolution level, shallowest first; every level but the last halves height and width."""
    num_res_blocks: Positive = 3
    """Residual blocks in each encoder level; decoder levels have one more."""
    num_mid_blocks: Positive = 2
    """Residual blocks in the middle, with attention between."""
    temporal_downsample: tuple[bool, ...] = (False, False, True, True)
    """Whether the downsampling after each level but the last halves time, too."""

    @model_validator(mode="after")
    def _levels_fit(self) -> "SSVAEConfig":
        levels = len(self.channel_multipliers)
        if len(self.temporal_downsample) != levels - 1:
            raise ValueError(
                f"temporal_downsample needs one entry per downsampling: {levels - 1} for {levels} channel_multipliers, "
                f"found {len(self.temporal_downsample)}"
            )
        for level, temporal in enumerate(self.temporal_downsample):
            shallow, deep = self.channel_multipliers[level : level + 2]
            if (shallow * (8 if temporal else 4)) % deep:
                raise ValueError(
                    f"channel_multipliers {shallow} -> {deep}: the shortcut needs {deep} to divide "
                    f"{shallow} x {8 if temporal else 4}"
                )
        return self


class SSVAE(nn.Module):
    """Encoder, decoder and the mask token of latent masked reconstruction."""

    def __init__(self, config: SSVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SSVAEConfig()
        sizes = config.model_dump(exclude={"in_channels"})
        self.encoder = Encoder(in_channels=config.in_channels, **sizes)
        self.decoder = Decoder(out_channels=config.in_channels, **sizes)
        self.mask_token = nn.Parameter(torch.randn(1, config.latent_channels, 1, 1, 1))

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, in height and in width."""
        return 2 ** len(self.config.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; frame 0 has a latent frame of its own."""
        return 2 ** sum(self.config.temporal_downsample)

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video of this size.

        Raises:
            UserError: the size does not fit; the message names the nearest that do.
        """
        time, space = self.temporal_factor, self.spatial_factor
        if num_frames < 1 or (num_frames - 1) % time:
            below = max(num_frames - 1, 0) // time * time + 1
            raise UserError(f"{num_frames} frames: SSVAE takes {time}k + 1; the nearest are {below} and {below + time}")
        for name, size in (("height", height), ("width", width)):
            if size < space or size % space:
                options = sorted({max(size // space, 1) * space, -(-size // space) * space})
                nearest = " and ".join(map(str, options))
                raise UserError(f"{name} {size}: SSVAE takes multiples of {space}; the nearest: {nearest}")
        return (num_frames - 1) // time + 1, height // space, width // space

    def encode(self, x: Tensor) -> Posterior:
        """Posterior of a video `B C T H W` in [-1, 1]; its latents are `b c t h w`.

        Raises:
            UserError: the shape does not fit the compression factors.
        """
        self._check_channels("video", x, "B C T H W", self.config.in_channels)
        self.latent_size(*x.shape[2:])
        return Posterior.from_moments(self.encoder(x, Stream()))

    def decode(self, z: Tensor) -> Tensor:
        """Video `B C T H W`, about [-1, 1] (not clamped), of latents `b c t h w`."""
        self._check_channels("latents", z, "b c t h w", self.config.latent_channels)
        return self.decoder(z, Stream())

    def _check_channels(self, what: str, x: Tensor, shape: str, channels: int) -> None:
        if x.ndim != 5 or x.shape[1] != channels:
            raise UserError(f"{what}: expected {shape} with {channels} channels, found {tuple(x.shape)}")
