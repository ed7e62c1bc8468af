"""Gradients that are computed piece by piece and delivered in one backward pass, and weights balanced by their norms.

total = with_gradients(module, compute)     # `compute` makes its own backward passes, one for each piece
total.backward()                            # every parameter receives the sum, once
send_back(output, gradient)                 # a backward pass from any tensor
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.grad
from torch import Tensor, nn
from torch.func import functional_call

from .. import distributed
from ..vae.layers import CausalConv3d, repeat_first_frame


def with_gradients(module: nn.Module, compute: Callable[[], Tensor], scale: float = 1.0) -> Tensor:
    """A scalar whose gradients at the parameters of `module` are known before its backward pass.

    While `compute` runs, the parameters are replaced by other leaves. So hooks of the parameters (DeepSpeed reduces a
    gradient as soon as it arrives, and expects it once) see one backward pass, the one from the result.

    `compute` returns the scalar, after backward passes that add up `scale` times its gradients: a factor that keeps
    float16 gradients inside their range.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    leaves = {name: nn.Parameter(p.detach()) for name, p in parameters.items()}
    with torch.enable_grad():
        total = functional_call(_Call(module, compute), {f"module.{name}": leaf for name, leaf in leaves.items()}, ())
    reached = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    result: Tensor = _KnownGradients.apply(
        total.detach(), scale, list(reached.values()), *(parameters[name] for name in reached)
    )
    return result


class _Call(nn.Module):
    """`compute()` as a module's forward pass, for `functional_call`."""

    def __init__(self, module: nn.Module, compute: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.compute = compute

    def forward(self) -> Tensor:
        return self.compute()


class _KnownGradients(torch.autograd.Function):
    """The identity; its backward pass delivers gradients that are already known."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, scale: float, gradients: list[Tensor], *_parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return total.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # moved: they become the parameters' gradients without a copy
        if gradients is None:
            raise RuntimeError("the gradients of a step are delivered once; compute the losses again")
        factor = gradient / ctx.scale
        for known in gradients:
            known.mul_(factor)
        return None, None, None, *gradients


def send_back(output: Tensor, gradient: Tensor | None, *, retain_graph: bool = False) -> None:
    """`output.backward(gradient)`, without sympy, which torch imports to compare their shapes."""
    assert gradient is not None and gradient.shape == output.shape
    _Sent.apply(output, gradient).backward(retain_graph=retain_graph)


class _Sent(torch.autograd.Function):
    """A scalar whose backward pass sends a known gradient to a tensor."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _one: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def weight_gradient(convolution: CausalConv3d, features: Tensor, gradient: Tensor) -> Tensor:
    """The gradient, float32, at the weight of a convolution of stride 1, from its input and its output's gradient."""
    inputs = repeat_first_frame(features, 2)
    if inputs.dtype == torch.float16:  # float16 overflows in a sum over all positions
        inputs = inputs.float()
    shape = convolution.conv.weight.shape
    return torch.nn.grad.conv3d_weight(inputs, shape, gradient.to(inputs.dtype), padding=(0, 1, 1)).float()


def balanced_weight(weight: float, main: Tensor, regularised: Tensor, limit: float) -> Tensor:
    """The weight of a regulariser, balanced by the ratio of gradient norms at one layer's weight.

        weight * min(|main| / (|regularised| + 1e-4), limit)

    It counts as a constant in the derivative (published; VQGAN's adaptive weight, arXiv 2012.09841, eq. 7). The norms
    are averaged over the ranks; every rank must call it.

    `main` and `regularised` are the gradient norms of the reconstruction term, over the whole batch, and of the
    regulariser.
    """
    norms = distributed.mean_over_ranks(torch.stack([main, regularised]))
    return weight * (norms[0] / (norms[1] + 1e-4)).clamp_max(limit)
