"""Frames too large for memory: overlapping tiles, blended.

What a tile sees ends at its edge, and attention sees the tile instead of the frame, so the result is approximate.
Where tiles overlap, their results are averaged with weights that fall linearly towards each tile's edge.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

OVERLAP = 0.25
"""Share of a tile's side that it has in common with its neighbour, at least."""


class Span(NamedTuple):
    """One tile's part of an axis."""

    start: int
    stop: int
    weight: Tensor
    """Of each position; at every position of the axis, the weights of all spans add up to 1."""

    def of_scale(self, scale: int) -> slice:
        """Its positions on an axis that is `scale` times finer."""
        return slice(self.start * scale, self.stop * scale)


def spans(size: int, tile: int, scale: int = 1) -> list[Span]:
    """Cover `size` positions by spans of at most `tile`, evenly spaced; weights for an axis `scale` times finer."""
    tile = min(tile, size)
    step = max(tile - round(tile * OVERLAP), 1)
    count = -(-(size - tile) // step) + 1
    starts = [round(index * (size - tile) / max(count - 1, 1)) for index in range(count)]
    overlap = max(tile - step, 1) * scale
    weights = torch.zeros(count, size * scale)
    for row, start in zip(weights, starts, strict=True):
        distance = torch.arange(tile * scale) + 0.5  # to the tile's near edge, and below to its far one
        rising = distance / overlap if start else torch.ones(tile * scale)
        falling = distance.flip(0) / overlap if start + tile < size else torch.ones(tile * scale)
        row[start * scale : (start + tile) * scale] = torch.minimum(rising, falling).clamp(max=1)
    weights /= weights.sum(0)
    return [
        Span(start, start + tile, row[start * scale : (start + tile) * scale])
        for start, row in zip(starts, weights, strict=True)
    ]


def blend_tiles(
    run: Callable[[Tensor], Tensor], x: Tensor, tile: int | tuple[int, int], scale_in: int, scale_out: int
) -> Tensor:
    """Apply `run` to tiles of `x` and blend the results.

    Args:
        run: maps `B C T H W` to `B C' T' H' W'`; `H' / H = scale_out / scale_in`.
        x: the whole, its height and width multiples of `scale_in`.
        tile: side of a tile, or height and width, in latent positions, of which `scale_in` and `scale_out` are the
            subdivisions.
        scale_in: input positions per latent position.
        scale_out: output positions per latent position.
    """
    height, width = (side // scale_in for side in x.shape[3:])
    rows, columns = tile if isinstance(tile, tuple) else (tile, tile)
    out: Tensor | None = None
    for row, column in product(spans(height, rows, scale_out), spans(width, columns, scale_out)):
        y = run(x[:, :, :, row.of_scale(scale_in), column.of_scale(scale_in)])
        if out is None:
            out = y.new_zeros(*y.shape[:3], height * scale_out, width * scale_out)
        weight = (row.weight[:, None] * column.weight).to(y)
        out[:, :, :, row.of_scale(scale_out), column.of_scale(scale_out)] += y * weight
    assert out is not None
    return out


def tiled_stream(
    new_stream: Callable[[], Callable[[Tensor], Tensor]], tile: int, scale_in: int, scale_out: int
) -> Callable[[Tensor], Tensor]:
    """A stream of consecutive chunks whose tiles each go through a stream of their own, see `blend_tiles`."""
    streams: list[Callable[[Tensor], Tensor]] = []

    def run(chunk: Tensor) -> Tensor:
        started = iter(list(streams))

        def on_tile(x: Tensor) -> Tensor:
            stream = next(started, None)
            if stream is None:
                streams.append(stream := new_stream())
            return stream(x)

        return blend_tiles(on_tile, chunk, tile, scale_in, scale_out)

    return run
