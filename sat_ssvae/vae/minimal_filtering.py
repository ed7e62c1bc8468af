"""Convolutions with three taps in time and their gradients by minimal filtering on a CPU.

F(m, 3) makes m outputs from m + 2 frames by m + 2 convolutions of single frames instead of 3 m (Winograd; Lavin & Gray,
arXiv 1509.09308, section 4): F(4, 3) makes half of the products, F(2, 3) two thirds. F(4, 3) is for float32 alone: it
rounds more. The same products, transposed, give the gradients at the input and at the weight. All transforms are
products with small matrices, along frames:

    outputs = A ((G weight) * (B frames))

Activations are `B C T H W`, channels-last; weights `C' C 3 kh kw`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from .kernel import Kernel

BLOCK = 2**20
"""Elements of its input that are worked on at once, for the transforms to stay in the processor's cache."""

_POSITIONS = 192
"""Positions in the tiles of F(4, 3) below which its kernels cost more than it saves over F(2, 3)."""
LEFT_OUT = 20480
"""Torch does not give a batch of one to oneDNN if the product of its first four sizes is at most this."""
_POINTS = {2: (0, 1, -1), 4: (0, 0.75, -0.75, 1.5, -1.5)}
"""Where the polynomials of F(m, 3) are read, beside infinity. Of eight sets for 4 that were tried, including the usual
0, 1, -1, 2, -2, this one rounds least: 1.4 to 2.2 times as much as a plain convolution does."""


@dataclass(frozen=True, eq=False)
class _Algorithm:
    """How a tile of outputs is made of the frames that it sees, by convolutions of single frames.

    Args:
        inputs: B: from the frames of a tile to the inputs of the products.
        kernels: G: from the three taps to their kernels.
        outputs: A: from the products to the outputs of a tile.
        ones: products of which A makes ones: so much of the bias is added to each.
    """

    inputs: Tensor
    kernels: Tensor
    outputs: Tensor
    ones: Tensor


_STILL = _Algorithm(torch.ones(1, 1), torch.ones(1, 3), torch.ones(1, 1), torch.ones(1))
"""One output whose three frames are the same one: it needs the first, and the sum of the taps."""


@cache
def _algorithm(outputs: int) -> _Algorithm:
    """F(outputs, 3) by the construction of Toom and Cook: polynomials are multiplied by their values at points."""
    points = np.array(_POINTS[outputs])
    others = [np.delete(points, i) for i in range(len(points))]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    kernels = np.concatenate([np.vander(points, 3, increasing=True) / scale[:, None], np.eye(1, 3, 2)])
    values = np.concatenate([np.vander(points, outputs, increasing=True), np.eye(1, outputs, outputs - 1)])
    inputs = np.zeros((outputs + 2, outputs + 2))
    for row, roots in zip(inputs, [*others, points], strict=True):
        row[: len(roots) + 1] = np.poly(roots)[::-1]
    ones = np.concatenate([[0], np.linalg.solve(values[1:-1].T, np.ones(outputs)), [0]])
    return _Algorithm(*(torch.tensor(array, dtype=torch.float32) for array in (inputs, kernels, values.T, ones)))


def forward(x: Tensor, kernel: Kernel, bias: Tensor | None, padding: int, starts_still: bool) -> Tensor:
    """The convolution.

    Args:
        x: `B C T+2 H W`, channels-last.
        kernel: of a weight `C' C 3 kh kw`; faster if channels-last or kept.
        bias: of the outputs.
        padding: zeros on each side of height and width.
        starts_still: the first three frames are the same one.

    Returns:
        `B C' T H' W'`, channels-last.
    """
    out_channels, _, _, *taps = kernel.weight.shape
    size = [side + 2 * padding - count + 1 for side, count in zip(x.shape[3:], taps, strict=True)]
    out = _channels_last(x, len(x), out_channels, x.shape[2] - 2, *size)
    if out.shape[2] % 2 and not starts_still:
        out[:, :, :1] = kernel.convolve(x[:, :, :3], bias, (0, padding, padding))
    for algorithm, tiles in _parts(x, starts_still):
        kernels = kernel.derive(algorithm, partial(_kernels, algorithm))
        biases = [None] * len(kernels) if bias is None else torch.outer(algorithm.ones.to(bias.dtype), bias)
        for written, seen in _blocks(x, algorithm, tiles):
            inputs = _transform(algorithm.inputs, x[:, :, seen], tiles.step)
            products = (
                kernel.convolve(frames, own_bias, (padding, padding))
                for frames, kernel, own_bias in zip(inputs, kernels, biases, strict=True)
            )
            _combine(algorithm.outputs, products, out[:, :, written])
    return out


def input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, padding: int) -> Tensor:
    """The gradient at the input, `B C T+2 H W`, of `gradient` `B C' T H' W'`, both channels-last."""
    result = _channels_last(x, *x.shape).zero_()
    for algorithm, tiles in _parts(x, starts_still=True):
        kernels = _kernels(algorithm, weight)
        for written, seen in _blocks(x, algorithm, tiles):
            inputs = _transform(algorithm.outputs.t(), gradient[:, :, written], tiles.step)
            like = x[:, :, 0]
            each = (_convolve_back(*pair, like, padding) for pair in zip(inputs, kernels, strict=True))
            products = _together(len(kernels), each)
            for frames, product in _tiles(result[:, :, seen], products, len(algorithm.inputs), tiles.step):
                frames.addmm_(algorithm.inputs.t(), product)
    return result


def weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, padding: int) -> Tensor:
    """The gradient at the weight, `C' C 3 kh kw`, by products of matrices, one for each kernel and tap."""
    out_channels, channels, _, *size = weight.shape
    taps = x.new_zeros(3, *size, out_channels, channels)
    for algorithm, tiles in _parts(x, starts_still=True):
        products = x.new_zeros(len(algorithm.inputs), *size, out_channels, channels)
        for written, seen in _blocks(x, algorithm, tiles):
            _add_products(products, algorithm, x[:, :, seen], gradient[:, :, written], padding)
        taps.flatten(1).addmm_(algorithm.kernels.t(), products.flatten(1))
    # By way of `C' kt kh kw C`, since torch copies whole rows faster than single numbers.
    return taps.permute(3, 0, 1, 2, 4).contiguous().permute(0, 4, 1, 2, 3).contiguous()


def _channels_last(x: Tensor, batch: int, channels: int, frames: int, height: int, width: int) -> Tensor:
    return x.new_empty(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)


def _parts(x: Tensor, starts_still: bool) -> Iterator[tuple[_Algorithm, range]]:
    """Each algorithm, and where its tiles of outputs begin, without a first output that is by itself and not still."""
    outputs = x.shape[2] - 2
    pairs = outputs % 2
    quads = pairs + (outputs - pairs) % 4
    if x.dtype != torch.float32 or x[:, 0, 0].numel() * (outputs - quads) // 4 < _POSITIONS:
        quads = outputs
    every = (
        (_STILL, range(0, pairs if starts_still else 0)),
        (_algorithm(2), range(pairs, quads, 2)),
        (_algorithm(4), range(quads, outputs, 4)),
    )
    return ((algorithm, tiles) for algorithm, tiles in every if tiles)


def _blocks(x: Tensor, algorithm: _Algorithm, tiles: range) -> Iterator[tuple[slice, slice]]:
    """The outputs of as many tiles as are worked on at once, and the frames of `x` that these see."""
    at_once = max(BLOCK // x[:, :, 0].numel(), 1)
    for start in range(0, len(tiles), at_once):
        block = tiles[start : start + at_once]
        yield slice(block[0], block[-1] + tiles.step), slice(block[0], block[-1] + len(algorithm.inputs))


def _kernels(algorithm: _Algorithm, weight: Tensor) -> list[Tensor]:
    """The kernels of the products, `C' C kh kw`, channels-last."""
    taps = weight.permute(2, 0, 3, 4, 1)
    kernels = (algorithm.kernels @ taps.reshape(3, -1).float()).to(weight.dtype)
    return [kernel.view(taps.shape[1:]).permute(0, 3, 1, 2) for kernel in kernels]


def _together(count: int, products: Iterator[Tensor]) -> Tensor:
    """`torch.stack`, `K (B tiles) C H W`, channels-last; each is freed before the next one is made."""
    first = next(products)
    result = first.new_empty(count, *first.permute(0, 2, 3, 1).shape).permute(0, 1, 4, 2, 3)
    for place, product in zip(result, chain([first], products), strict=True):
        place.copy_(product)
    return result


def _convolve_back(gradient: Tensor, weight: Tensor, like: Tensor, padding: int) -> Tensor:
    """The gradient at the input of a convolution of frames, of the size of `like`."""
    if len(gradient) == 1 and like.numel() <= LEFT_OUT:  # the same, as a convolution with the weight turned round
        pad = [size - 1 - padding for size in weight.shape[2:]]
        flipped = weight.flip(2, 3).transpose(0, 1)
        return Kernel(flipped).convolve(gradient, None, pad)
    _, channels, height, width = like.shape
    seen = like.new_empty(len(gradient), height, width, channels).permute(0, 3, 1, 2)
    sizes = ([1] * 2, [padding] * 2, [1] * 2, False, [0] * 2, 1, [True, False, False])
    return torch.ops.aten.convolution_backward(gradient, seen, weight, None, *sizes)[0]


def _add_products(products: Tensor, algorithm: _Algorithm, x: Tensor, gradient: Tensor, padding: int) -> None:
    """Add the gradients of tiles at their kernels, `K kh kw C' C`.

    Zeros lie between the rows of a frame and between frames, so that every tap sees the same positions at an offset:
    the row before is `W + 1` positions away, in front of the first row, too.
    """
    height, width = (size + 1 for size in x.shape[3:])
    lead, step, channels = 2 * (width + 1), len(algorithm.outputs), x.shape[1]
    seen = _transform(algorithm.inputs, x, step)
    gradients = _transform(algorithm.outputs.t(), gradient, step)
    rows, inside = _bordered(seen[0], height, width, lead)
    gradient_rows, inside_gradient = _bordered(gradients[0], height, width)
    for product, own, own_gradient in zip(products, seen, gradients, strict=True):
        inside.copy_(own)
        inside_gradient.copy_(own_gradient)
        for row, taps in enumerate(product):
            start = lead + (row - padding) * width - padding
            windows = rows[start:].as_strided((len(taps), len(gradient_rows), channels), (channels, channels, 1))
            taps.baddbmm_(gradient_rows.t().expand(len(taps), -1, -1), windows)


def _bordered(like: Tensor, height: int, width: int, lead: int = 0) -> tuple[Tensor, Tensor]:
    """Zeros, `lead+P+lead C`, whose positions are frames of `height` and `width`; and where frames as `like` belong."""
    count, channels, *size = like.shape
    rows = like.new_zeros(count * height * width + 2 * lead, channels)
    frames = rows[lead : lead + count * height * width].view(count, height, width, channels)
    return rows, frames[:, : size[0], : size[1]].permute(0, 3, 1, 2)


# --- along frames -----------------------------------------------------------------------------------------------------


def _transform(matrix: Tensor, frames: Tensor, step: int) -> Sequence[Tensor]:
    """Tiles of frames, `step` apart, times `matrix`: K times `(B tiles) C H W`, channels-last."""
    batch, channels, count, height, width = frames.shape
    tiles = (count - matrix.shape[1]) // step + 1
    if _is_signs(matrix):
        every = [frames[:, :, i : i + tiles * step : step] for i in range(matrix.shape[1])]
        return [_sum(row, every).transpose(1, 2).flatten(0, 1) for row in matrix.tolist()]
    result = frames.new_empty(len(matrix), batch * tiles, height, width, channels).permute(0, 1, 4, 2, 3)
    for tile, mixed in _tiles(frames, result, matrix.shape[1], step):
        torch.mm(matrix, tile, out=mixed)
    return result.unbind()


def _combine(matrix: Tensor, products: Iterator[Tensor], out: Tensor) -> None:
    """`matrix` times products, `(B tiles) C H W`, into the frames of tiles that lie side by side."""
    step, count = matrix.shape
    if _is_signs(matrix):
        every = [product.unflatten(0, (len(out), -1)).transpose(1, 2) for product in products]
        for i, row in enumerate(matrix.tolist()):
            _sum(row, every, out[:, :, i::step])
        return
    for frames, product in _tiles(out, _together(count, products), step, step):
        torch.mm(matrix, product, out=frames)


def _is_signs(matrix: Tensor) -> bool:
    """Whether it is, but for zeros, signs of a few terms, as in F(2, 3): sums are faster than products."""
    return {abs(entry) for row in matrix.tolist() for entry in row} <= {0, 1}


def _sum(signs: list[float], frames: list[Tensor], out: Tensor | None = None) -> Tensor:
    terms = [(sign, part) for sign, part in zip(signs, frames, strict=True) if sign]
    (_, result), *rest = sorted(terms, key=lambda term: -term[0])  # one is positive
    if out is not None and not rest:
        return out.copy_(result)
    for sign, part in rest:
        result = torch.add(result, part, alpha=sign, out=out)
    return result


def _tiles(frames: Tensor, mixed: Tensor, count: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each tile two matrices with a frame in each row, which are views.

    Args:
        frames: `B C T H W`, channels-last.
        mixed: `K (B tiles) C H W`, channels-last: what is made of the tiles, or to be added to them.
        count: frames of a tile.
        step: frames from the beginning of a tile to that of the next.
    """
    frames, mixed = frames.permute(0, 2, 3, 4, 1), mixed.permute(0, 1, 3, 4, 2)
    tiles = mixed.shape[1] // len(frames)
    for i in range(mixed.shape[1]):
        start = i % tiles * step
        yield frames[i // tiles, start : start + count].view(count, -1), mixed[:, i].view(len(mixed), -1)
