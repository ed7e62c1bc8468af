"""The sizes of the network, and the sizes of the videos and latents that it takes."""

from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor

from ..config import Config
from ..errors import UserError
from .sizes import latent_size

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
    """Whether the downsampling after each level but the last also halves time."""

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

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, in height and in width."""
        return 2 ** len(self.temporal_downsample)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame; frame 0 has a latent frame of its own."""
        return 2 ** sum(self.temporal_downsample)

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a video of this size.

        Raises:
            UserError: the size does not fit; the message names the nearest sizes that do.
        """
        return latent_size((num_frames, height, width), self.temporal_factor, self.spatial_factor, "SSVAE")

    def check_video(self, x: Tensor) -> None:
        """Refuse anything but `B C T H W` with a height and width that the compression divides (any T)."""
        _check_channels("video", x, "B C T H W", self.in_channels)
        self.latent_size(1, *x.shape[3:])

    def check_latents(self, z: Tensor) -> None:
        """Refuse anything but `b c t h w`."""
        _check_channels("latents", z, "b c t h w", self.latent_channels)


def _check_channels(what: str, x: Tensor, shape: str, channels: int) -> None:
    if x.ndim != 5 or x.shape[1] != channels:
        raise UserError(f"{what}: expected {shape} with {channels} channels, found {tuple(x.shape)}")
