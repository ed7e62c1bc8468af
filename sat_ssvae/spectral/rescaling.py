"""Scale equivariance: latents that shrink as their video does (Skorokhodov et al., arXiv 2502.14831).

    small, target = shrink(latents, video, draw_factor((2, 4), generator))
    error = (vae.decode(small) - target).abs().mean()

A decoder that has to agree keeps the coarse picture in the latents' low spatial frequencies, as LCR asks for by
other means.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_factor(factors: Sequence[int], generator: torch.Generator) -> int:
    """One of the factors; of a single one, nothing is drawn."""
    if len(factors) == 1:
        return factors[0]
    return factors[int(torch.randint(len(factors), (), generator=generator))]


def shrink(latents: Tensor, video: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Latents `b c t h w` and their video `B C T H W`, both averaged over areas of about `factor` x `factor`.

    Sides that the factor does not divide are rounded down, to one position at least; the video gets the size that the
    smaller latents decode to.
    """
    height, width = latents.shape[-2:]
    size = [max(side // factor, 1) for side in (height, width)]
    pixels = [
        smaller * (side // positions)
        for smaller, side, positions in zip(size, video.shape[-2:], (height, width), strict=True)
    ]
    return _averaged(latents, size), _averaged(video, pixels)


def _averaged(x: Tensor, size: Sequence[int]) -> Tensor:
    """`B C T H W` with other H and W; time stays."""
    frames = x.transpose(1, 2).flatten(0, 1)
    return F.interpolate(frames, size=tuple(size), mode="area").unflatten(0, (len(x), -1)).transpose(1, 2)
