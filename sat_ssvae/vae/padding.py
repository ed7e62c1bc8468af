"""Videos of any size: padded up to a size that the autoencoder takes, and cropped back.

padded = pad_to_valid(video, vae)
reconstruction = crop_to(vae.decode(vae.encode(padded).mode()), video)
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Compression(Protocol):
    """What padding needs to know of an autoencoder."""

    @property
    def frame_step(self) -> int:
        """It takes videos of T = frame_step k + 1 frames."""

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, in height and in width."""


def pad_to_valid(x: Tensor, vae: Compression) -> Tensor:
    """Repeat the last frame, row and column of `B C T H W` until T = 4k + 1 and H, W are multiples of the factor.

    (4 stands for the autoencoder's `frame_step`.) A size that fits is returned as it is.
    """
    time, space = vae.frame_step, vae.spatial_factor
    frames, height, width = x.shape[2:]
    missing = (0, -width % space, 0, -height % space, 0, -(frames - 1) % time)
    return F.pad(x, missing, mode="replicate") if any(missing) else x


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """The first frames, rows and columns of `x`, as many as `like` has."""
    frames, height, width = like.shape[2:]
    return x[:, :, :frames, :height, :width]
