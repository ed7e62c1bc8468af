"""SSVAE: a causal video autoencoder whose latents diffusion models learn fast.

    vae = SSVAE(SSVAEConfig())
    posterior = vae.encode(video)            # B 3 T H W in [-1, 1], T = 4k + 1
    video = vae.decode(posterior.mode())     # latents b c t h w, t = k + 1

The network is the one of "Delving into Latent Spectral Biasing of Video VAEs for Superior Diffusability" (arXiv
2512.05394). What makes its latents special happens in training alone: see `spectral/correlation.py` (LCR) and
`spectral/masking.py` (LMR).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import cpu, cpu_training
from .checkpoint import Checkpoint, check_fits, read_checkpoint, write_checkpoint
from .config import SSVAEConfig
from .decoder import Decoder
from .encoder import Encoder
from .layers import ResidualBlock
from .posterior import Posterior
from .statistics import LatentStats
from .streaming import DecodeStream, EncodeStream
from .tiling import blend_tiles


class SSVAE(nn.Module):
    """Encoder, decoder and the mask token of latent masked reconstruction."""

    def __init__(self, config: SSVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SSVAEConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.mask_token = nn.Parameter(torch.randn(1, config.latent_channels, 1, 1, 1))
        self.latent_stats: LatentStats | None = None
        """Statistics of the latents on the training videos, if they are known; kept by `save_pretrained`."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, in height and in width."""
        return self.config.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; frame 0 has a latent frame of its own."""
        return self.config.temporal_factor

    @property
    def frame_step(self) -> int:
        """A video has T = frame_step k + 1 frames."""
        return self.temporal_factor

    @property
    def min_size(self) -> int:
        """Smallest height and width in pixels."""
        return self.spatial_factor

    def describe(self) -> dict[str, Any]:
        """The configuration as JSON."""
        return self.config.model_dump(mode="json")

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video of this size.

        Raises:
            UserError: the size does not fit; the message names the nearest that do.
        """
        return self.config.latent_size(num_frames, height, width)

    def encode(self, x: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Posterior:
        """Posterior of a video `B C T H W` in [-1, 1]; its latents are `b c t h w`.

        Args:
            x: the video, T = 4k + 1 (see `latent_size`; `autoencoders/padding.py` makes other sizes fit).
            chunk_frames: take this many frames at a time, for memory that does not grow with T; the result is the same.
            tile_size: take tiles of this many pixels a side, for memory that does not grow with H and W; the result is
                approximate, see `tiling.py`.

        Raises:
            UserError: the shape does not fit the compression factors.
        """
        self.config.check_video(x)
        self.latent_size(*x.shape[2:])
        if tile_size is not None:
            return Posterior.from_moments(
                blend_tiles(
                    lambda tile: self.encode(tile, chunk_frames).moments(), x, *self._tile(tile_size, encode=True)
                )
            )
        if chunk_frames is None:
            return Posterior.from_moments(self.encoder(x))
        stream = self.encode_stream(chunk_frames)
        return Posterior.cat([stream(chunk) for chunk in x.split(_at_least_one(chunk_frames), dim=2)])

    def decode(self, z: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Tensor:
        """Video `B C T H W`, about [-1, 1] (not clamped), of latents `b c t h w`.

        Args:
            z: the latents.
            chunk_frames: make this many frames at a time, for memory that does not grow with t beyond the result; the
                result is the same. Where frames are latent (compressed in time), it is one latent frame at least.
            tile_size: make tiles of this many pixels a side, for memory that does not grow with H and W beyond the
                result; the result is approximate, see `tiling.py`.
        """
        self.config.check_latents(z)
        if tile_size is not None:
            return blend_tiles(lambda tile: self.decode(tile, chunk_frames), z, *self._tile(tile_size, encode=False))
        if chunk_frames is None:
            return self.decoder(z)
        stream, done = self.decode_stream(chunk_frames), 0
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

    def encode_stream(self, frames_at_once: int | None = None) -> EncodeStream:
        """An encoder of one video in chunks of any length, see `streaming.py`.

        Args:
            frames_at_once: fewer than `temporal_factor`, to go through the largest layers in less memory; more have no
                effect. The result is the same.
        """
        return EncodeStream(self.encoder, self.config, self._below_temporal_factor(frames_at_once))

    def decode_stream(self, frames_at_once: int | None = None) -> DecodeStream:
        """A decoder of one video's latents in chunks of any length; the argument is that of `encode_stream`."""
        return DecodeStream(self.decoder, self.config, self._below_temporal_factor(frames_at_once))

    @classmethod
    def from_pretrained(cls, path: str | Path, revision: str | None = None) -> "SSVAE":
        """The autoencoder of a folder, a file or the Hugging Face hub; on the CPU, in float32.

        Args:
            path: a folder that `save_pretrained` or a training run wrote, a safetensors file, a torch file such as
                the published ch48_256p_15w_512p_5w.ckpt (of which the moving average is taken where it holds one), or
                "organisation/name" on the hub.
            revision: branch, tag or commit on the hub.

        Raises:
            UserError: the path is missing, the file damaged, its tensors are not those of an SSVAE, or the hub cannot
                be reached.
        """
        checkpoint = read_checkpoint(path, revision)
        vae = cls(checkpoint.config)
        check_fits(checkpoint.weights, vae.state_dict(), path)
        vae.load_state_dict(checkpoint.weights)
        vae.latent_stats = checkpoint.statistics
        return vae

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, configuration and, if there are any, the latents' statistics into a folder.

        Raises:
            UserError: the disk is full or the folder cannot be written; what was there before stays.
        """
        write_checkpoint(folder, Checkpoint(self.config, self.state_dict(), self.latent_stats))

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
        cpu.install(self)
        return self

    def for_training(self) -> "SSVAE":
        """Prepare for being trained, in place: faster convolutions and gradients in float32 on a CPU.

        Function, gradients (but for rounding), parameters and memory stay the same, and so does everything on other
        devices and in other types.
        """
        cpu_training.install(self)
        return self

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """In training, keep only each residual block's input and compute the block again in the backward pass.

        Trades a third more computation for most of the activations' memory; gradients are the same.
        """
        for module in self.modules():
            if isinstance(module, ResidualBlock | Decoder):
                module.checkpointed = enabled

    def check_tile_size(self, pixels: int) -> None:
        """Refuse a side of tiles that is no multiple of the spatial factor.

        Raises:
            UserError: it is not.
        """
        if pixels < self.spatial_factor or pixels % self.spatial_factor:
            raise UserError(f"tile_size {pixels}: must be a multiple of {self.spatial_factor}")

    def _below_temporal_factor(self, frames: int | None) -> int | None:
        return frames if frames is not None and frames < self.temporal_factor else None

    def _tile(self, pixels: int, encode: bool) -> tuple[int, int, int]:
        """Side of a tile in latent positions; positions of the input and of the output per latent position."""
        self.check_tile_size(pixels)
        factor = self.spatial_factor
        return pixels // factor, *((factor, 1) if encode else (1, factor))


def _at_least_one(chunk_frames: int) -> int:
    if chunk_frames < 1:
        raise UserError(f"chunk_frames {chunk_frames}: must be at least 1")
    return chunk_frames
