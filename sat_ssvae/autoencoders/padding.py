"""Videos of any size, padded up to one that the autoencoder takes: `vae.encode(pad_to_valid(video, vae))`."""

import torch.nn.functional as F
from torch import Tensor

from .protocol import VideoAutoencoder


def pad_to_valid(x: Tensor, vae: VideoAutoencoder) -> Tensor:
    """Repeat the last frame, row and column of `B C T H W` until the autoencoder takes it.

    A size that fits is returned as it is.
    """
    return pad_space(_pad(x, -(x.shape[2] - 1) % vae.frame_step, 0, 0), vae)


def pad_space(x: Tensor, vae: VideoAutoencoder) -> Tensor:
    """Repeat the last row and column of `B C T H W`, but no frame."""
    factor, least = vae.spatial_factor, vae.min_size
    below, right = (max(-(-side // factor) * factor, least) - side for side in x.shape[3:])
    return _pad(x, 0, below, right)


def _pad(x: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    return F.pad(x, (0, columns, 0, rows, 0, frames), mode="replicate") if frames or rows or columns else x
