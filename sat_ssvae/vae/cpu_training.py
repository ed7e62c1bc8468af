"""Causal convolutions for training on a CPU in float32: fewer operations, forwards and backwards.

`SSVAE.for_training` installs them. They compute the same function and gradients as those of layers.py, and leave to
these whatever is not training in float32 on a CPU.

- Three taps in time by minimal_filtering.py: half of the products in the forward pass and for both gradients. Those at
  the weight are products of matrices: oneDNN's own way reaches a third of their speed without AVX-512.
- Small convolutions of one clip, which torch does not give to oneDNN, are given to it; their backward passes, for which
  torch has no such operator, as a batch of two halves.

Activations are `B C T H W`, weights `C' C kt kh kw`; the fast layout of activations is channels-last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import minimal_filtering
from .convolution import Taps, with_taps
from .kernel import Kernel
from .layers import CausalConv3d
from .minimal_filtering import LEFT_OUT

_CHANNELS = 32
_NUMBERS = 2**18
"""Channels and channels times positions below which minimal filtering costs more than it saves, by its copies and the
kernels that it makes of the weight."""
_FEW_CHANNELS, _POSITIONS = 128, 400
"""What torch does not give to oneDNN it computes by products of matrices, which are two to five times slower where
there are fewer channels than this. There minimal filtering pays from so many positions on."""


def install(module: nn.Module) -> None:
    """Let every causal convolution of `module` take the paths of this file."""
    for part in module.modules():
        if type(part) is CausalConv3d:
            part.__class__ = TrainingCausalConv3d


class TrainingCausalConv3d(CausalConv3d):
    """A causal convolution with the paths of this file where they apply, else with those of its base."""

    def convolve(self, x: Tensor, taps: Taps = "all", padding: int = 1, starts_still: bool = False) -> Tensor:
        applies = _applies(x, self.conv.weight)
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


def _applies(x: Tensor, weight: Tensor) -> bool:
    """Whether this is float32 on a CPU that has oneDNN; fake tensors are of another class.

    A weight that is elsewhere, or in another type, comes in the `forward` of the module that owns it.
    """
    if weight.device != x.device or weight.dtype != x.dtype:
        return False
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return not torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.is_available()


def _left_out(x: Tensor) -> bool:
    batch, channels, frames, height, _ = x.shape
    return batch == 1 and channels < _FEW_CHANNELS and channels * frames * height <= LEFT_OUT


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
        return Kernel(weight).convolve(x, bias, (0, padding, padding), stride)

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
    """`minimal_filtering.forward` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return minimal_filtering.forward(x, Kernel(_channels_last(weight)), bias, padding, starts_still=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = _channels_last(gradient)
        at_input, at_weight, at_bias = ctx.needs_input_grad[:3]
        return (
            minimal_filtering.input_gradient(x, _channels_last(weight), gradient, ctx.padding) if at_input else None,
            minimal_filtering.weight_gradient(x, weight, gradient, ctx.padding) if at_weight else None,
            gradient.sum((0, 2, 3, 4)) if at_bias else None,
            None,
        )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
