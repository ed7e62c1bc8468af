"""Causal convolutions for training on a CPU in float32: fewer operations, forwards and backwards.

`SSVAE.for_training` installs them. They compute the same function and gradients as those of layers.py, and leave to
these whatever is not training in float32 on a CPU.

- Three taps in time by the minimal filtering algorithm F(2, 3) of cpu.py, in the forward pass and, transposed, for both
  gradients: the gradients of two outputs are four products, too.
- The gradient at the weight by products of matrices, one for each tap: oneDNN's own reaches a third of their speed
  without AVX-512.
- Small convolutions of one clip, which torch does not give to oneDNN, are given to it; their backward passes, for which
  torch has no such operator, as a batch of two halves.

Activations are `B C T H W`, weights `C' C kt kh kw`; the fast layout of activations is channels-last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .convolution import Taps, with_taps
from .cpu import MINIMAL_BLOCK, Kernel, minimal_filtering, minimal_taps
from .layers import CausalConv3d

_CHANNELS = 32
_NUMBERS = 2**18
"""Channels and channels times positions below which F(2, 3) and products of matrices cost more than they save: copies,
and what is made of the weight."""
_LEFT_OUT, _FEW_CHANNELS, _POSITIONS = 20480, 128, 400
"""One clip with at most so many channels times frames times rows torch does not give to oneDNN, but to products of
matrices, which are two to five times slower where there are fewer channels than this. There F(2, 3) pays from so many
positions on."""


def install(module: nn.Module) -> None:
    """Let every causal convolution of `module` take the paths of this file."""
    for part in module.modules():
        if type(part) is CausalConv3d:
            part.__class__ = TrainingCausalConv3d


class TrainingCausalConv3d(CausalConv3d):
    """A causal convolution with the paths of this file where they apply, else with those of its base."""

    def convolve(self, x: Tensor, taps: Taps = "all", padding: int = 1, starts_still: bool = False) -> Tensor:
        applies = _applies(x)
        minimal = applies and _minimal_filtering_pays(x, self.conv.weight, taps, self.stride, starts_still)
        if not minimal and not (applies and _left_out(x)):
            return super().convolve(x, taps, padding, starts_still)
        weight, bias = with_taps(self.conv.weight, taps), self.conv.bias
        if bias is not None and len(weight) > len(bias):
            bias = bias.repeat(len(weight) // len(bias))
        result: Tensor
        if minimal:
            result = _MinimalFiltering.apply(x, weight, bias, padding)
        else:
            result = _OneClip.apply(x, weight, bias, padding, self.stride)
        return result


def _applies(x: Tensor) -> bool:
    """Whether this is float32 on a CPU that has oneDNN; fake tensors are of another class."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return not torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.is_available()


def _left_out(x: Tensor) -> bool:
    batch, channels, frames, height, _ = x.shape
    return batch == 1 and channels < _FEW_CHANNELS and channels * frames * height <= _LEFT_OUT


def _minimal_filtering_pays(x: Tensor, weight: Tensor, taps: Taps, stride: int, starts_still: bool) -> bool:
    batch, channels, frames, height, width = x.shape
    positions = batch * (frames - 2) * height * width
    return (
        stride == 1
        and taps in ("all", "phases")  # three taps in time
        and frames >= 4
        and (starts_still or frames % 2 == 0)
        and min(channels, len(weight)) >= _CHANNELS
        and (channels * positions >= _NUMBERS or (_left_out(x) and positions >= _POSITIONS))
    )


class _OneClip(torch.autograd.Function):
    """A convolution by oneDNN, whose backward pass takes the upper and the lower half as a batch of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.stride = padding, stride
        sizes = ([0, padding, padding], [stride] * 3, [1] * 3)
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, *sizes, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (x, weight), padding, stride = ctx.saved_tensors, ctx.padding, ctx.stride
        half = -(-gradient.shape[3] // 2)
        seen, lower = (half - 1) * stride + weight.shape[3], half * stride
        tall = F.pad(x, (0, 0, padding, max(lower + seen - x.shape[3] - padding, padding)))
        halves = torch.cat([tall[:, :, :, :seen], tall[:, :, :, lower : lower + seen]])
        gradient = F.pad(gradient, (0, 0, 0, 2 * half - gradient.shape[3]))
        sizes = ([stride] * 3, [0, 0, padding], [1] * 3, False, [0] * 3, 1)
        at_halves, at_weight, at_bias = torch.ops.aten.convolution_backward(
            torch.cat(gradient.split(half, 3)), halves, weight, [len(weight)], *sizes, ctx.needs_input_grad[:3]
        )
        if ctx.needs_input_grad[0]:
            tall = torch.zeros_like(tall)
            tall[:, :, :, :seen] = at_halves[:1]
            tall[:, :, :, lower : lower + seen] += at_halves[1:]
            x = tall[:, :, :, padding : padding + x.shape[3]]
        return x if ctx.needs_input_grad[0] else None, at_weight, at_bias, None, None


class _MinimalFiltering(torch.autograd.Function):
    """`cpu.minimal_filtering` with its gradients; the first three frames are the same one if the outputs are odd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return minimal_filtering(x, Kernel(_channels_last(weight)), bias, padding, starts_still=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = _channels_last(gradient)
        at_input, at_weight, at_bias = ctx.needs_input_grad[:3]
        return (
            _input_gradient(x, weight, gradient, ctx.padding) if at_input else None,
            _weight_gradient(x, weight, gradient, ctx.padding) if at_weight else None,
            gradient.sum((0, 2, 3, 4)) if at_bias else None,
            None,
        )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _pairs_at_once(x: Tensor) -> int:
    return max(MINIMAL_BLOCK // x[:, :, 0].numel(), 1)


# --- at the input ---------------------------------------------------------------------------------------------------


def _input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, padding: int) -> Tensor:
    """The transposed algorithm: each pair of outputs gives four products back to its four frames."""
    batch, channels, frames, height, width = x.shape
    result = x.new_empty(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)
    single = gradient.shape[2] % 2
    result[:, :, : single + 2] = 0
    weight = _channels_last(weight)
    if single:
        first = _backward_2d(gradient[:, :, :1], with_taps(weight, "summed")[:, :, 0], result[:, :, :1], padding)
        result[:, :, :1] = first
    taps, at_once = minimal_taps(weight), _pairs_at_once(x) * 2
    for start in range(single, gradient.shape[2], at_once):
        pairs = gradient[:, :, start : start + at_once]
        seen = result[:, :, start : start + pairs.shape[2] + 2]
        _add_pairs(seen[:, :, 0::2], seen[:, :, 1::2], pairs, taps, padding)
    return result


def _add_pairs(even: Tensor, odd: Tensor, gradient: Tensor, taps: tuple[Tensor, ...], padding: int) -> None:
    """The gradients of pairs at the even and odd frames they see: added at the first one, written at the others."""
    first, second = gradient[:, :, 0::2], gradient[:, :, 1::2]
    parts = (first, first + second, first - second, second)
    a, b, c, d = (_backward_2d(part, own, even[:, :, 1:], padding) for part, own in zip(parts, taps, strict=True))
    later = (b + c).sub_(a)  # at the third frame of each pair
    own = b.sub_(c).sub_(d)  # at the second; at the fourth it is d
    for frames, now, then in ((even, a, later), (odd, own, d)):
        frames[:, :, 0] += now[:, :, 0]
        torch.add(now[:, :, 1:], then[:, :, :-1], out=frames[:, :, 1:-1])
        frames[:, :, -1] = then[:, :, -1]


def _backward_2d(gradient: Tensor, weight: Tensor, like: Tensor, padding: int) -> Tensor:
    """The gradient at the input, of the size of `like`, of a convolution of each frame."""
    batch, channels, frames, height, width = like.shape
    rows = gradient.permute(0, 2, 1, 3, 4).flatten(0, 1)
    pad, ones = [padding, padding], [1, 1]
    if len(rows) == 1:  # torch does not give oneDNN small ones; this is the same with the weight turned round
        flipped = weight.flip(2, 3).transpose(0, 1)
        pad = [size - 1 - padding for size in weight.shape[2:]]
        out = torch.ops.aten.mkldnn_convolution(rows, flipped, None, pad, ones, ones, 1)
    else:
        seen = rows.new_empty(len(rows), height, width, channels).permute(0, 3, 1, 2)
        mask = [True, False, False]
        out, _, _ = torch.ops.aten.convolution_backward(
            rows, seen, weight, None, ones, pad, ones, False, [0, 0], 1, mask
        )
    return out.view(batch, frames, channels, height, width).permute(0, 2, 1, 3, 4)


# --- at the weight --------------------------------------------------------------------------------------------------


def _weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, padding: int) -> Tensor:
    out_channels, channels, _, *size = weight.shape
    products = x.new_zeros(4, size[0], size[1], out_channels, channels)
    single, at_once = gradient.shape[2] % 2, _pairs_at_once(x) * 2
    for start in range(single, gradient.shape[2], at_once):
        pairs = gradient[:, :, start : start + at_once]
        _add_products(products, x[:, :, start : start + pairs.shape[2] + 2], pairs, padding)
    a, b, c, d = products
    outer, middle = b.add(c).div_(2), b.sub_(c).div_(2)
    if single:  # the sum of the three taps saw the first frame
        still = torch.zeros_like(a)
        _Rows(x[:, :, :1], gradient[:, :, :1], padding).add_to(still)
        outer, middle = outer.add_(still), middle.add_(still)
    # From `kh kw C' C` by way of `C' kt kh kw C`, since torch copies whole rows faster than single numbers.
    result = products.new_empty(out_channels, 3, *size, channels)
    for tap, (one, other) in enumerate(((a, outer), (middle, None), (d, outer))):
        place = result[:, tap].permute(1, 2, 0, 3)
        place.copy_(one) if other is None else torch.add(one, other, out=place)
    return result.permute(0, 4, 1, 2, 3).contiguous()


def _add_products(products: Tensor, x: Tensor, gradient: Tensor, padding: int) -> None:
    """Add the gradients of pairs at the four kernels of F(2, 3), `4 kh kw C' C`."""
    first, second = gradient[:, :, 0::2], gradient[:, :, 1::2]
    x0, x1, x2, x3 = (x[:, :, start : x.shape[2] - 3 + start : 2] for start in range(4))
    rows = _Rows(x0, first, padding)
    torch.sub(x0, x2, out=rows.x)
    rows.add_to(products[0])
    torch.sub(x3, x1, out=rows.x)
    rows.gradient.copy_(second)
    rows.add_to(products[3])
    torch.add(x1, x2, out=rows.x)
    torch.add(first, second, out=rows.gradient)
    rows.add_to(products[1])
    torch.sub(x2, x1, out=rows.x)
    torch.sub(first, second, out=rows.gradient)
    rows.add_to(products[2])


class _Rows:
    """Frames and the gradients of their convolutions' outputs as matrices of positions, `P C` and `P C'`.

    Zeros lie between rows and between frames, so that every tap sees the same positions at an offset: the row before
    is `W + 1` positions away, in front of the first row, too.
    """

    def __init__(self, x: Tensor, gradient: Tensor, padding: int) -> None:
        batch, channels, frames, height, width = x.shape
        self.padding = padding
        self.pitch = width + 1
        self.lead = self.pitch + 1
        self.positions = batch * frames * (height + 1) * self.pitch
        self._x = x.new_zeros(self.positions + 2 * self.lead, channels)
        self._gradient = gradient.new_zeros(self.positions, gradient.shape[1])
        self.x = self._inside(self._x[self.lead : self.lead + self.positions], x)
        self.gradient = self._inside(self._gradient, gradient)
        self.x.copy_(x)
        self.gradient.copy_(gradient)

    def _inside(self, rows: Tensor, like: Tensor) -> Tensor:
        batch, channels, frames, height, width = like.shape
        every = rows.view(batch, frames, -1, self.pitch, channels)
        return every[:, :, :height, :width].permute(0, 4, 1, 2, 3)

    def add_to(self, products: Tensor) -> None:
        """Add the gradient at the weight of the convolution of frames, `kh kw C' C`."""
        for row, taps in enumerate(products):
            start = self.lead + (row - self.padding) * self.pitch - self.padding
            channels = self._x.shape[1]
            seen = self._x.as_strided((len(taps), self.positions, channels), (channels, channels, 1), start * channels)
            taps.baddbmm_(self._gradient.t().expand(len(taps), -1, -1), seen)
