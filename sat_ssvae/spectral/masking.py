"""LMR, latent masked reconstruction: hide part of the latents from the decoder while training.

    ratios = draw_ratios({0.0: 0.7, 0.25: 0.1, 0.5: 0.1, 0.75: 0.1}, batch_size, generator)
    mask = draw_mask("block", latents.shape, ratios, generator=generator)
    video = vae.decode(apply_mask(latents, mask, vae.mask_token))

A decoder that must rebuild the whole video from what is left makes the encoder concentrate the information in few
channel modes, and becomes robust to errors in generated latents. Three kinds of mask:

- `channel`: a share of the channels (the article; 20 % by default);
- `block`: a share of the positions, in blocks of a given size (published; blocks 1x1x1 at 256 px, 2x2x2 at 512 px);
- `future`: the last share of the latent frames (PV-VAE, arXiv 2605.02134); frame 0 always stays.

Every sample has a mask of its own. The number of masked units is rounded at random so that its expectation is exactly
the ratio; blocks that stick out of the video are cut, so every position can be masked for every size.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["channel", "block", "future"]


def draw_ratios(ratio: float | Mapping[float, float], batch_size: int, generator: torch.Generator) -> Tensor:
    """A mask ratio for each sample, shape (b,): a constant, or drawn from a `{ratio: probability}` table."""
    if isinstance(ratio, Mapping):
        values, probabilities = torch.tensor(list(ratio.items()), dtype=torch.float32).unbind(dim=1)
        return values[torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)]
    return torch.full((batch_size,), float(ratio))


def draw_mask(
    kind: MaskKind,
    shape: torch.Size | tuple[int, ...],
    ratios: Tensor,
    block: tuple[int, int, int] = (1, 1, 1),
    *,
    generator: torch.Generator,
) -> Tensor:
    """Draw what to hide: boolean, broadcastable to `b c t h w`, True where masked. On the CPU, like `generator`.

    Args:
        kind: which units are masked, see the module's text.
        shape: of the latents, `b c t h w`.
        ratios: share to mask in each sample, (b,), in [0, 1].
        block: (t, h, w) of a block mask's blocks.
        generator: a CPU generator; give every rank its own.
    """
    batch, channels, *size = shape
    if kind == "channel":
        return _draw_units(ratios, (batch, channels), generator)[:, :, None, None, None]
    if kind == "future":
        later = size[0] - 1
        masked = _round_at_random(ratios * later, generator)
        frame = torch.arange(size[0])
        return (frame > later - masked[:, None])[:, None, :, None, None]
    grid = [-(-extent // step) for extent, step in zip(size, block, strict=True)]
    # A grid that does not divide the size is shifted at random, so that cut blocks are not always at the same end.
    offsets = [
        int(torch.randint(cells * step - extent + 1, (), generator=generator))
        for cells, step, extent in zip(grid, block, size, strict=True)
    ]
    units = _draw_units(ratios, (batch, grid[0] * grid[1] * grid[2]), generator).view(batch, 1, *grid)
    mask = units
    for dim, (offset, step, extent) in enumerate(zip(offsets, block, size, strict=True), start=2):
        mask = mask.repeat_interleave(step, dim).narrow(dim, offset, extent)
    return mask


def apply_mask(latents: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """Replace masked elements of `b c t h w` latents by the mask token (1, c, 1, 1, 1)."""
    return torch.where(mask.to(latents.device, non_blocking=True), token.to(latents.dtype), latents)


def _draw_units(ratios: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Mask `ratio * n` of each row's n units, chosen uniformly: boolean (b, n)."""
    count = _round_at_random(ratios * shape[1], generator)
    order = torch.rand(shape, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < count[:, None]


def _round_at_random(x: Tensor, generator: torch.Generator) -> Tensor:
    """Round down or up, with expectation x."""
    return torch.floor(x + torch.rand(x.shape, generator=generator))
