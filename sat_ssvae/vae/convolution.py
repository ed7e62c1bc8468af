"""Weights with fewer taps than a plain convolution has, for inputs whose frames or pixels are known to repeat.

- An image sees copies of itself in time: its taps in time can be summed.
- Nearest repeat by 2 followed by 3 taps sees two distinct values at each output: every output phase is a 2-tap
  convolution with summed weights on the input that was not repeated. 27 taps become 12, or 8 with time.

Activations are `B C T H W`, weights `C' C kt kh kw`.
"""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

Taps = Literal["all", "summed", "phases", "phases in time", "summed phases"]
"""Which weight: as it is, for an image, and those of `interleave_phases` (time kept, time doubled, for an image)."""


def with_taps(weight: Tensor, taps: Taps) -> Tensor:
    """`weight` with the taps that `taps` names; they are summed in float32 or better, and rounded once."""
    return _TAPS[taps](weight.to(torch.promote_types(weight.dtype, torch.float32))).to(weight.dtype)


def interleave_phases(phases: Tensor, time: int) -> Tensor:
    """The repeated and convolved video, of the convolution of what was not repeated.

    Args:
        phases: `B (4 time C) T H+1 W+1`: phase p of row i saw rows i - 1 + p and i + p, so it is row i + p's.
        time: 2 where time is doubled, else 1.

    Returns:
        `B C time*T 2H 2W`.
    """
    height, width = (size - 1 for size in phases.shape[-2:])
    every = rearrange(phases, "b (r p q c) t h w -> r p q b c t h w", r=time, p=2, q=2)
    out = torch.stack([every[:, p, q, ..., p : p + height, q : q + width] for p in (0, 1) for q in (0, 1)])
    return rearrange(out, "(p q) r b c t h w -> b c (t r) (h p) (w q)", p=2, q=2)


def _sum_in_time(weight: Tensor) -> Tensor:
    return weight.sum(2, keepdim=True)


def _phases_in_space(weight: Tensor) -> Tensor:
    """`(4 C') C kt 2 2`. Output 2i sees the repeated inputs (i-1, i, i), and 2i + 1 sees (i, i, i+1)."""
    phases = [weight]
    for dim in (3, 4):
        phases = [taps for phase in phases for taps in _pair_taps(phase, dim)]
    return torch.cat(phases)


def _phases_in_time(weight: Tensor) -> Tensor:
    """`(8 C') C 2 2 2`. Frame 0 is single: the pair of frame i starts at 2i - 1, which sees (i-1, i-1, i)."""
    return torch.cat([_phases_in_space(taps) for taps in reversed(_pair_taps(weight, 2))])


def _pair_taps(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Two taps instead of three along `dim`, where the values seen are (a, b, b), and where they are (a, a, b)."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)


_TAPS: dict[Taps, Callable[[Tensor], Tensor]] = {
    "all": lambda weight: weight,
    "summed": _sum_in_time,
    "phases": _phases_in_space,
    "phases in time": _phases_in_time,
    "summed phases": lambda weight: _phases_in_space(_sum_in_time(weight)),
}
