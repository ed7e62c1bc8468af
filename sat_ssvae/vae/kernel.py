"""The weight of a convolution as oneDNN takes it, and what is made of it before it is used."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from .convolution import Taps, with_taps


class Kernel:
    """The weight of a convolution, `C' C kt kh kw` or `C' C kh kw`.

    Made for one call, it is little more than the weight. One that is kept for all calls remembers what is derived from
    it, and a copy in the layout that oneDNN computes in, which small inputs spend a quarter of their time on.

    Args:
        weight: the weight.
        kept: whether the kernel will be used more than once.
    """

    def __init__(self, weight: Tensor, kept: bool = False) -> None:
        self.weight = weight
        self.kept = kept
        self._state = _state(weight) if kept else None
        self._values = _few_values(weight).clone()
        self._derived: dict[Hashable, tuple[Kernel, ...]] = {}
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[Callable[..., "Kernel"], tuple[Tensor, bool]]:
        return Kernel, (self.weight, self.kept)  # copies make their own: oneDNN's tensors cannot be copied

    def is_current(self, weight: Tensor) -> bool:
        """Whether this is a kept kernel of `weight`, and `weight` has not changed since.

        Writing through `.data`, as diffusers' EMAModel does, leaves its version as it is, so a few values are compared.
        """
        return self._state == _state(weight) and torch.equal(self._values, _few_values(weight))

    def with_taps(self, taps: Taps) -> "Kernel":
        """The kernel of `convolution.with_taps`."""
        return self if taps == "all" else self.derive(taps, lambda weight: (with_taps(weight, taps),))[0]

    def derive(self, name: Hashable, make: Callable[[Tensor], Sequence[Tensor]]) -> tuple["Kernel", ...]:
        """The kernels of the weights that `make` gives for this one; if this one is kept, `name` finds them again."""
        if name not in self._derived:
            self._derived[name] = tuple(Kernel(weight, self.kept) for weight in make(self.weight))
        return self._derived[name]

    def convolve(self, x: Tensor, bias: Tensor | None, padding: Sequence[int], stride: int = 1) -> Tensor:
        """The convolution of `x`, channels-last, by oneDNN."""
        ones, strides = [1] * len(padding), [stride] * len(padding)
        if self.kept:
            run = torch.ops.mkldnn._convolution_pointwise
            return run(x, self._pack(x, padding, strides), bias, padding, strides, ones, 1, "none", [], "")
        # torch does not give oneDNN small float32 inputs of batch 1 and takes an implementation 2-3 times slower.
        return torch.ops.aten.mkldnn_convolution(x, self.weight, bias, padding, strides, ones, 1)

    def _pack(self, x: Tensor, padding: Sequence[int], stride: Sequence[int]) -> Tensor:
        """The weight in oneDNN's layout for inputs such as `x`; other inputs are computed right, but may be slower."""
        if self._packed is None:
            ones = [1] * len(stride)
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self._packed = pack(self.weight, padding, stride, ones, 1, x.shape)
            if len(stride) == 2:  # of minimal filtering: nothing else is made of it, so the copy replaces it
                self.weight = self.weight.to("meta")
        return self._packed


def _state(weight: Tensor) -> tuple[object, ...]:
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device


def _few_values(weight: Tensor) -> Tensor:
    return weight.detach()[0, :8, ..., 0]
