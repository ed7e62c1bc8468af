"""LCR, local correlation regularisation: make neighbouring latent positions resemble each other.

    loss = correlation_loss(local_correlation(posterior.mean, window=(2, 2, 2)), threshold=0.75)

A latent video whose neighbours correlate has a spectrum biased to low frequencies. Every position is a vector of c
channels; the correlation of two positions is the Pearson correlation of their vectors; R is its mean over all pairs
of positions within local windows. The loss is relu(threshold - R): the published code uses threshold 0.75 and a
2x2x2 window; with threshold 1 it is the article's 1 - R, there with a 3x3x3 window. The paper is arXiv 2512.05394.

Works on any `b c t h w` latents; for an image autoencoder, t = 1.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STD_EPSILON = 1e-6
_NORM_EPSILON = 1e-8

Tiling = Literal["tiled", "sliding"]
"""Windows side by side (incomplete ones at the far border count as well), or one starting at every position."""


class LocalCorrelation(NamedTuple):
    """Mean Pearson correlation inside windows, scalars in [-1, 1]; None for a group that has no pairs."""

    first: Tensor | None
    """Of latent frame 0, which encodes a single frame, in the spatial part of the window."""
    rest: Tensor | None
    """Of the remaining latent frames, in the whole window."""

    @property
    def mean(self) -> Tensor | None:
        """Plain average of the groups, whatever their window counts (published)."""
        groups = [group for group in self if group is not None]
        return torch.stack(groups).mean() if groups else None


def local_correlation(
    latents: Tensor, window: tuple[int, int, int] = (2, 2, 2), tiling: Tiling = "tiled"
) -> LocalCorrelation:
    """Mean correlation R of neighbouring positions; differentiable, float32 whatever the input.

    `latents`: posterior means `b c t h w`. `window` (t, h, w) is cut to the latents' size where it exceeds it.
    """
    with torch.autocast(latents.device.type, enabled=False):
        vectors = _unit_vectors(latents.float())
        first = _mean_window_correlation(vectors[:, :, :1], (1, *window[1:]), tiling)
        rest = _mean_window_correlation(vectors[:, :, 1:], window, tiling)
    return LocalCorrelation(first, rest)


def correlation_loss(correlation: LocalCorrelation, threshold: float = 0.75) -> Tensor | None:
    """relu(threshold - R), a scalar >= 0; None if no window holds two positions, so nothing can be correlated."""
    mean = correlation.mean
    return None if mean is None else F.relu(threshold - mean)


def _unit_vectors(latents: Tensor) -> Tensor:
    """Standardise each channel over (b, t, h, w), then centre every position's vector and scale it to unit norm.

    The statistics are detached: the loss cannot be lowered by moving them (published).
    """
    if latents[:, 0].numel() < 2:  # one position: no deviation, and no pair that would need it
        return torch.zeros_like(latents)
    std, mean = torch.std_mean(latents.detach(), dim=(0, 2, 3, 4), keepdim=True)
    vectors = (latents - mean) / (std + STD_EPSILON)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    return vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + _NORM_EPSILON)


def _mean_window_correlation(vectors: Tensor, window: tuple[int, int, int], tiling: Tiling) -> Tensor | None:
    """Mean over windows of the mean inner product over pairs, without building the pairs.

    For vectors u_i in a window of N:  sum over ordered pairs i != j of <u_i, u_j> = |sum_i u_i|^2 - sum_i |u_i|^2,
    so the cost is linear in the number of positions.
    """
    size = vectors.shape[2:]
    kernel = [min(extent, available) for extent, available in zip(window, size, strict=True)]
    if math.prod(kernel) < 2:  # no frames, or windows of one position
        return None
    stride = kernel if tiling == "tiled" else [1, 1, 1]

    def window_sums(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, kernel, stride, ceil_mode=tiling == "tiled", divisor_override=1)

    positions = window_sums(vectors.new_ones(1, 1, *size))
    pairs = positions * (positions - 1)
    squares = window_sums(vectors.square().sum(dim=1, keepdim=True))
    products = window_sums(vectors).square().sum(dim=1, keepdim=True) - squares
    per_window = torch.where(pairs > 0, products / pairs.clamp_min(1), 0)
    return per_window.sum() / (_windows_with_pairs(size, kernel, tiling) * len(vectors))


def _windows_with_pairs(size: Sequence[int], kernel: Sequence[int], tiling: Tiling) -> int:
    """Windows of at least two positions; counted from sizes, without waiting for the device."""
    windows, of_one_position = 1, 1
    for available, extent in zip(size, kernel, strict=True):
        whole = available // extent if tiling == "tiled" else available - extent + 1
        cut = available % extent if tiling == "tiled" else 0  # positions of the incomplete window at the far border
        windows *= whole + (cut > 0)
        of_one_position *= (whole if extent == 1 else 0) + (cut == 1)
    return windows - of_one_position
