"""SSVAE: a causal video autoencoder whose latents diffusion models learn fast.

    vae = SSVAE(SSVAEConfig())
    posterior = vae.encode(video)            # B 3 T H W in [-1, 1], T = 4k + 1
    video = vae.decode(posterior.mode())     # latents b c t h w, t = k + 1

The network is the one of "Delving into Latent Spectral Biasing of Video VAEs for Superior Diffusability" (arXiv
2512.05394). What makes its latents special happens in training alone: see `spectral/correlation.py` (LCR) and
`spectral/masking.py` (LMR).
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config
from ..errors import UserError
from .decoder import Decoder
from .encoder import Encoder
from .layers import CausalConv3d, ResidualBlock
from .posterior import Posterior
from .sizes import latent_size
from .statistics import LatentStats
from .streaming import DecodeStream, EncodeStream
from .tiling import blend_tiles

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
        self.latent_stats: LatentStats | None = None
        """Statistics of the latents on the training videos, where they are known; kept by `save_pretrained`."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, in height and in width."""
        return 2 ** len(self.config.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; frame 0 has a latent frame of its own."""
        return 2 ** sum(self.config.temporal_downsample)

    @property
    def frame_step(self) -> int:
        """A video has T = frame_step k + 1 frames."""
        return self.temporal_factor

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video of this size.

        Raises:
            UserError: the size does not fit; the message names the nearest that do.
        """
        return latent_size((num_frames, height, width), self.temporal_factor, self.spatial_factor, "SSVAE")

    def encode(self, x: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Posterior:
        """Posterior of a video `B C T H W` in [-1, 1]; its latents are `b c t h w`.

        Args:
            x: the video, T = 4k + 1 (see `latent_size`; `padding.py` makes other sizes fit).
            chunk_frames: take this many frames at a time, for memory that does not grow with T; the result is the same.
            tile_size: take tiles of this many pixels a side, for memory that does not grow with H and W; the result is
                approximate, see `tiling.py`.

        Raises:
            UserError: the shape does not fit the compression factors.
        """
        self.check_video(x)
        self.latent_size(*x.shape[2:])
        if tile_size is not None:
            return Posterior.from_moments(
                blend_tiles(
                    lambda tile: self.encode(tile, chunk_frames).moments(), x, *self._tile(tile_size, encode=True)
                )
            )
        if chunk_frames is None:
            return Posterior.from_moments(self.encoder(x))
        stream = self.encode_stream()
        return Posterior.cat([stream(chunk) for chunk in x.split(_at_least_one(chunk_frames), dim=2)])

    def decode(self, z: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Tensor:
        """Video `B C T H W`, about [-1, 1] (not clamped), of latents `b c t h w`.

        Args:
            z: the latents.
            chunk_frames: make at most this many frames at a time (but one latent frame's at least), for memory that
                does not grow with t beyond the result; the result is the same.
            tile_size: make tiles of this many pixels a side, for memory that does not grow with H and W beyond the
                result; the result is approximate, see `tiling.py`.
        """
        self.check_latents(z)
        if tile_size is not None:
            return blend_tiles(lambda tile: self.decode(tile, chunk_frames), z, *self._tile(tile_size, encode=False))
        if chunk_frames is None:
            return self.decoder(z)
        stream, done = self.decode_stream(), 0
        video = None
        for chunk in z.split(max(_at_least_one(chunk_frames) // self.temporal_factor, 1), dim=2):
            frames = stream(chunk)
            if video is None:
                total = (z.shape[2] - 1) * self.temporal_factor + 1
                video = frames.new_empty(*frames.shape[:2], total, *frames.shape[3:])
            video[:, :, done : done + frames.shape[2]] = frames
            done += frames.shape[2]
        assert video is not None
        return video

    def encode_stream(self) -> EncodeStream:
        """What encodes one video in chunks of any length, see `streaming.py`."""
        return EncodeStream(self)

    def decode_stream(self) -> DecodeStream:
        """What decodes one video's latents in chunks of any length, see `streaming.py`."""
        return DecodeStream(self)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "SSVAE":
        """The autoencoder of a folder, a safetensors file or a published torch file; on the CPU, in float32.

        Raises:
            UserError: the path is missing, the file damaged, or its tensors are not those of an SSVAE.
        """
        from .checkpoint import load_pretrained

        return load_pretrained(path)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, configuration and, where there are some, the latents' statistics into a folder.

        Raises:
            UserError: the disk is full or the folder cannot be written; what was there before stays.
        """
        from .checkpoint import save_pretrained

        save_pretrained(self, folder)

    def for_inference(self) -> "SSVAE":
        """Prepare for being used and not trained, in place: evaluation mode, frozen weights, in their fastest layout.

        What convolutions make of their weights, copies in oneDNN's layout on a CPU above all, is kept from its first
        use on, in one to two times the weights' memory. The less there is to compute, the more it saves: the published
        model is 5 times faster for one 64x64 image, 1.4 times for 17 frames of it, 1.06 times for 9 frames of 256x256.
        """
        self.eval().requires_grad_(False)
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for parameter in self.parameters():
            if parameter.ndim in formats:
                parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.keeps_kernel = True
        return self

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """In training, keep only each residual block's input and compute the block again in the backward pass.

        Trades a third more computation for most of the activations' memory; gradients are the same.
        """
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.checkpointed = enabled

    def check_video(self, x: Tensor) -> None:
        """Refuse what is no `B C T H W` of a height and width that the compression divides."""
        self._check_channels("video", x, "B C T H W", self.config.in_channels)
        self.latent_size(1, *x.shape[3:])

    def check_latents(self, z: Tensor) -> None:
        """Refuse what is no `b c t h w`."""
        self._check_channels("latents", z, "b c t h w", self.config.latent_channels)

    def _tile(self, pixels: int, encode: bool) -> tuple[int, int, int]:
        """Side of a tile in latent positions; positions of the input and of the output per latent position."""
        side, rest = divmod(pixels, self.spatial_factor)
        if side < 1 or rest:
            raise UserError(f"tile_size {pixels}: must be a multiple of {self.spatial_factor}")
        return side, *((self.spatial_factor, 1) if encode else (1, self.spatial_factor))

    def _check_channels(self, what: str, x: Tensor, shape: str, channels: int) -> None:
        if x.ndim != 5 or x.shape[1] != channels:
            raise UserError(f"{what}: expected {shape} with {channels} channels, found {tuple(x.shape)}")


def _at_least_one(chunk_frames: int) -> int:
    if chunk_frames < 1:
        raise UserError(f"chunk_frames {chunk_frames}: must be at least 1")
    return chunk_frames
