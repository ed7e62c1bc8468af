"""The RMS norm over channels, and the norm followed by SiLU, whose backward pass keeps the input alone.

Activations are `B C T H W`; the fast layout is channels-last.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AT_ONCE = 2**25
"""Elements that the backward pass of norm and SiLU works on at a time, but one frame at least."""
_FEW_CHANNELS = {torch.bfloat16: 64}
"""On a CPU, with fewer channels than this, sums over the channels of each position, and products with a number for
each position, take up to six times as long as the same by products of matrices. Not in float32: other roundings flip
signs of an L1 error, and gradients would leave those that were recorded (tests/test_reference.py)."""
_ROWS_AT_ONCE = 2**22
"""Elements up to which that is done: it needs some copies in float32."""


class RMSNorm(nn.Module):
    """Unit-norm over channels, scaled by sqrt(C) and a learned gain.

    The norm is bounded below by 1e-12 instead of having an epsilon added to its square, as common RMS norms do:
    published checkpoints need this form.
    """

    def __init__(self, channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x) * self.gamma.to(x.dtype)

    @staticmethod
    def scale(x: Tensor) -> Tensor:
        """sqrt(C) / norm of `x` (`B C ...`) at every position, `B 1 ...`; computed in float32 at least."""
        norm = torch.linalg.vector_norm(
            x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
        ).clamp_min(1e-12)
        return (math.sqrt(x.shape[1]) / norm).to(x.dtype)


def repeat_first_frame(x: Tensor, frames: int) -> Tensor:
    """Put `frames` copies of frame 0 in front of `x` (`B C T H W`)."""
    # Not `expand`: concatenating that would fall back from the channels-last layout.
    return torch.cat([x[:, :, :1]] * frames + [x], dim=2) if frames else x


def norm_silu(x: Tensor, gamma: Tensor, frames: int) -> Tensor:
    """`repeat_first_frame(silu(norm(x)), frames)`, which keeps `x` alone for its backward pass, not the steps between.

    Args:
        x: `B C T H W`.
        gamma: the norm's, `C 1 1 1`.
        frames: copies of frame 0 to put in front.
    """
    result: Tensor = _NormSiLU.apply(x, gamma, frames)
    return result


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, frames: int) -> Tensor:
        ctx.save_for_backward(x, gamma)
        ctx.frames = frames
        if _pays_by_rows(x):
            return _forward_by_rows(x, gamma, frames)
        return repeat_first_frame(F.silu(x * RMSNorm.scale(x) * gamma.to(x.dtype), inplace=True), frames)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gamma = ctx.saved_tensors
        if _pays_by_rows(x):
            return *_backward_by_rows(x, gamma, gradient, ctx.frames), None
        repeated, gradient = gradient[:, :, : ctx.frames], gradient[:, :, ctx.frames :]
        result, at_gamma = torch.empty_like(x), torch.zeros_like(gamma)
        at_once = max(AT_ONCE // x[:, :, 0].numel(), 1)
        for start in range(0, x.shape[2], at_once):  # what lies between is as large as the result
            part = slice(start, start + at_once)
            own = gradient[:, :, part]
            if start == 0 and ctx.frames:
                own = own.clone()
                own[:, :, :1] += repeated.sum(2, keepdim=True)
            result[:, :, part], at_gamma_too = _backward(x[:, :, part], gamma, own)
            at_gamma += at_gamma_too
        return result, at_gamma, None


def _backward(x: Tensor, gamma: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `silu(norm(x))` at `x` and at gamma.

    Of the norm, g becomes s (gamma g - x <gamma g, x> / |x|^2) at x, with s = sqrt(C) / |x|.
    """
    scale, exact = RMSNorm.scale(x), torch.promote_types(x.dtype, torch.float32)
    gradient = torch.ops.aten.silu_backward(gradient, x * scale * gamma.to(x.dtype))
    positions = [dim for dim in range(x.ndim) if dim != 1]
    at_gamma = (gradient * x).mul_(scale).sum(positions, dtype=exact).view_as(gamma).to(gamma.dtype)
    gradient = (gradient * gamma.to(x.dtype)).mul_(scale)
    along = (gradient * x).sum(1, keepdim=True, dtype=exact)
    return gradient.addcmul_(x, (along * _inverse_square(scale.to(exact), x.shape[1])).to(x.dtype), value=-1), at_gamma


def _inverse_square(scale: Tensor, channels: int) -> Tensor:
    """1 / |x|^2 from the norm's scale; nothing where the norm is at its lower bound, a constant."""
    return torch.where(scale < 0.9e12 * math.sqrt(channels), scale.square() / channels, 0)


# --- few channels on a CPU: the same with products of matrices, in float32 ------------------------------------------


def _pays_by_rows(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[1] < _FEW_CHANNELS.get(x.dtype, 0) and x.numel() <= _ROWS_AT_ONCE


def _rows(x: Tensor) -> Tensor:
    """`B C T H W` to float32 rows `(B T H W) C`."""
    return x.permute(0, 2, 3, 4, 1).float().reshape(-1, x.shape[1])


def _frames(rows: Tensor, like: Tensor) -> Tensor:
    """Rows to the shape of `like`, channels-last."""
    batch, channels, *size = like.shape
    return rows.view(batch, *size, channels).permute(0, 4, 1, 2, 3)


def _outer(column: Tensor, row: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return column[:, None] @ row[None]


def _row_scale(rows: Tensor) -> Tensor:
    """`RMSNorm.scale` of rows, one number for each."""
    squares = torch.mv(rows.square(), rows.new_ones(rows.shape[1]))
    return math.sqrt(rows.shape[1]) / squares.sqrt_().clamp_min_(1e-12)


def _forward_by_rows(x: Tensor, gamma: Tensor, frames: int) -> Tensor:
    rows = _rows(x)
    result = F.silu(rows * _outer(_row_scale(rows), gamma.flatten().float()), inplace=True)
    batch, channels, time, height, width = x.shape
    room = x.new_empty(batch, frames + time, height, width, channels).permute(0, 4, 1, 2, 3)
    room[:, :, frames:] = _frames(result, x)
    room[:, :, :frames] = room[:, :, frames : frames + 1]
    return room


def _backward_by_rows(x: Tensor, gamma: Tensor, gradient: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    rows, gains, own = _rows(x), gamma.flatten().float(), gradient[:, :, frames:]
    if frames:
        own = own.clone()
        own[:, :, :1] += gradient[:, :, :frames].sum(2, keepdim=True)
    scale = _row_scale(rows)
    spread = _outer(scale, gains)
    inner = torch.ops.aten.silu_backward(_rows(own), rows * spread)
    product = inner * rows
    at_gamma = torch.mv(product.t(), scale).view_as(gamma).to(gamma.dtype)
    along = torch.mv(product, gains) * scale * _inverse_square(scale, x.shape[1])
    result = inner.mul_(spread).addcmul_(rows, _outer(along, torch.ones_like(gains)), value=-1)
    return _frames(result, x).to(x.dtype), at_gamma
