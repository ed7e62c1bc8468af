"""Causal convolutions for inference on a CPU: fewer operations, kept weights and oneDNN's own entry points.

`SSVAE.for_inference` installs them. They compute the same function as those of layers.py, and leave to these whatever
is not inference on a CPU: gradients, autocast, torch.compile, other devices and types.

- Three taps in time by minimal_filtering.py: half of the products in float32, two thirds in bfloat16.
- Weights are kept in the layout that oneDNN computes in, and so are those with summed taps.
- Norm and activation write into the padded input of their convolution.

Activations are `B C T H W`, weights `C' C kt kh kw`; the fast layout of activations is channels-last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import minimal_filtering
from .convolution import Taps
from .kernel import Kernel
from .layers import CausalConv3d, Stream
from .norm import RMSNorm

_MINIMAL_CHANNELS = 64
_MINIMAL_POSITIONS = {False: 2048, True: 512}
"""Below these minimal filtering costs more than it saves: its additions beside few channels, its weights (whether they
are kept or not) beside few positions."""


def install(module: nn.Module) -> None:
    """Let every causal convolution of `module` take the paths of this file."""
    for part in module.modules():
        if isinstance(part, CausalConv3d):  # also one that was prepared for training
            part.__class__ = CPUCausalConv3d


class CPUCausalConv3d(CausalConv3d):
    """A causal convolution with the paths of this file where they apply, else with those of its base."""

    _kernel: Kernel | None = None

    def convolve(self, x: Tensor, taps: Taps = "all", padding: int = 1, starts_still: bool = False) -> Tensor:
        if not _applies(x, self.conv.weight):
            return super().convolve(x, taps, padding, starts_still)
        kernel = self.kernel().with_taps(taps)
        bias = self.conv.bias
        if bias is not None and len(kernel.weight) > len(bias):
            bias = bias.repeat(len(kernel.weight) // len(bias))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if _minimal_filtering_pays(x, kernel, self.stride):
            return minimal_filtering.forward(x, kernel, bias, padding, starts_still)
        return kernel.convolve(x, bias, (0, padding, padding), self.stride)

    def after_norm(self, norm: RMSNorm, x: Tensor, stream: Stream | None) -> Tensor:
        stream = stream or Stream(whole=True)
        if not _applies(x, norm.gamma) or (stream.first and x.shape[2] == 1):
            return super().after_norm(norm, x, stream)
        # What these operations cost is memory traffic, so they work in the convolution's input, padding included.
        b, c, t, h, w = x.shape
        room = x.new_empty(b, t + 2, h, w, c).permute(0, 4, 1, 2, 3)
        inside = room[:, :, 2:]
        torch.mul(x, norm.scale(x), out=inside).mul_(norm.gamma)
        F.silu(inside, inplace=True)
        stream.fill(self, room, 2)
        return self.convolve(room, starts_still=stream.first)

    def kernel(self) -> Kernel:
        """Of the weight as it is now; kept where nothing trains it."""
        weight = self.conv.weight
        if weight.requires_grad:  # an optimiser may write to it without a new version (DeepSpeed does, through `.data`)
            return Kernel(weight)
        if self._kernel is None or not self._kernel.is_current(weight):
            self._kernel = Kernel(weight, kept=True)
        return self._kernel


def _applies(x: Tensor, parameter: Tensor) -> bool:
    """Whether this is inference on a CPU, in a type that oneDNN computes in, with a parameter that is there.

    Offloading and casting by diffusers and accelerate bring it in the `forward` of the module that owns it alone.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    if parameter.device != x.device or parameter.dtype != x.dtype:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _minimal_filtering_pays(x: Tensor, kernel: Kernel, stride: int) -> bool:
    batch, channels, frames, height, width = x.shape
    return (
        stride == 1
        and kernel.weight.shape[2] == 3
        and frames >= 4
        and min(channels, len(kernel.weight)) >= _MINIMAL_CHANNELS
        and batch * (frames - 2) * height * width >= _MINIMAL_POSITIONS[kernel.kept]
    )
