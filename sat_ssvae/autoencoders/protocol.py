"""What every autoencoder of the package offers, SSVAE and those of diffusers alike."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..vae.posterior import Posterior
from ..vae.statistics import LatentStats

A = TypeVar("A", bound="VideoAutoencoder")


class VideoAutoencoder(Protocol):
    """An autoencoder of videos: `B C T H W` in [-1, 1] to latents `b c t h w` and back.

    T = `frame_step` k + 1 frames become (T - 1) / `temporal_factor` + 1 latent frames; height and width are multiples
    of `spatial_factor`, and `min_size` at least.
    """

    latent_stats: LatentStats | None
    """How the latents are normalised for a diffusion model; None if they are not known."""
    training: bool
    """As of `torch.nn.Module`."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, in height and in width."""

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; frame 0 has a latent frame of its own."""

    @property
    def frame_step(self) -> int:
        """A video has T = frame_step k + 1 frames."""

    @property
    def min_size(self) -> int:
        """Smallest height and width in pixels."""

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video of this size.

        Raises:
            UserError: the size does not fit; the message names the nearest that do.
        """

    def encode(self, x: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Posterior:
        """Posterior, not normalised, of a video `B C T H W` in [-1, 1].

        Args:
            x: the video, of a size that `latent_size` takes.
            chunk_frames: take this many frames at a time; the result is the same.
            tile_size: take tiles of this many pixels a side, see `vae/tiling.py`; the result is approximate.

        Raises:
            UserError: the shape does not fit, or the autoencoder cannot work in such chunks or tiles.
        """

    def decode(self, z: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Tensor:
        """Video `B C T H W`, about [-1, 1], of latents `b c t h w`, not normalised; other arguments as in `encode`."""

    def encode_stream(self) -> Callable[[Tensor], Posterior]:
        """An encoder of one video in consecutive chunks `B C T H W`."""

    def decode_stream(self) -> Callable[[Tensor], Tensor]:
        """A decoder of the latents of one video in consecutive chunks `b c t h w`."""

    def describe(self) -> dict[str, Any]:
        """Sizes and, for a class of diffusers, its name, its configuration and how it is `used`; as JSON."""

    def to(self: A, device: torch.device) -> A:
        """As of `torch.nn.Module`, like the methods below."""

    def train(self: A, mode: bool = True) -> A:
        """Training mode on or off."""

    def eval(self: A) -> A:
        """Evaluation mode."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""

    def state_dict(self) -> dict[str, Any]:
        """Its weights and buffers by name."""
