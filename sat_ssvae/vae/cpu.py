"""Causal convolutions for inference on a CPU: fewer operations, kept weights and oneDNN's own entry points.

`SSVAE.for_inference` installs them. They compute the same function as those of layers.py, and leave to these whatever
is not inference on a CPU: gradients, autocast, torch.compile, other devices and types.

- Three taps in time by the minimal filtering algorithm F(2, 3) (Winograd; Lavin & Gray, arXiv 1509.09308, section 4):
  two outputs for four multiplications instead of six.
- Weights are kept in the layout that oneDNN computes in, and so are those with summed taps.
- Norm and activation write into the padded input of their convolution.

Activations are `B C T H W`, weights `C' C kt kh kw`; the fast layout of activations is channels-last.
"""

from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .convolution import Taps, with_taps
from .layers import CausalConv3d, Stream
from .norm import RMSNorm

_MINIMAL_CHANNELS = 64
_MINIMAL_POSITIONS = {False: 2048, True: 512}
"""Below these F(2, 3) costs more than it saves: its additions beside few channels, its weights (whether they are kept
or not) beside few positions."""
_MINIMAL_BLOCK = 2**21
"""Elements of its input that F(2, 3) works on at once, for its additions to stay in the processor's cache."""


def install(module: nn.Module) -> None:
    """Let every causal convolution of `module` take the paths of this file."""
    for part in module.modules():
        if isinstance(part, CausalConv3d):  # also one that was prepared for training
            part.__class__ = CPUCausalConv3d


class CPUCausalConv3d(CausalConv3d):
    """A causal convolution with the paths of this file where they apply, else with those of its base."""

    _kernel: "Kernel | None" = None

    def convolve(self, x: Tensor, taps: Taps = "all", padding: int = 1, starts_still: bool = False) -> Tensor:
        if not _applies(x, self.conv.weight):
            return super().convolve(x, taps, padding, starts_still)
        kernel = self.kernel().with_taps(taps)
        bias = self.conv.bias
        if bias is not None and len(kernel.weight) > len(bias):
            bias = bias.repeat(len(kernel.weight) // len(bias))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if _minimal_filtering_pays(x, kernel, self.stride):
            return _minimal_filtering(x, kernel, bias, padding, starts_still)
        return _convolve(x, kernel, bias, (self.stride,) * 3, (0, padding, padding))

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

    def kernel(self) -> "Kernel":
        """Of the weight as it is now; kept where nothing trains it."""
        weight = self.conv.weight
        if weight.requires_grad:  # an optimiser may write to it without a new version (DeepSpeed does, through `.data`)
            return Kernel(weight)
        if self._kernel is None or not self._kernel.is_current(weight):
            self._kernel = Kernel(weight, kept=True)
        return self._kernel


class Kernel:
    """The weight of a convolution, `C' C kt kh kw`, and what is made of it before it is used.

    Made for one call, it is little more than the weight. One that is kept for all calls remembers summed taps and
    copies in the layout that oneDNN computes in, which small inputs spend a quarter of their time on.

    Args:
        weight: the weight.
        kept: whether the kernel will be used more than once.
    """

    def __init__(self, weight: Tensor, kept: bool = False) -> None:
        self.weight = weight
        self.kept = kept
        self._state = _state(weight) if kept else None
        self._seen = weight.detach()[0, :8, ..., 0]
        self._known = self._seen.clone()
        self._derived: dict[Hashable, tuple[Kernel, ...]] = {}
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[Callable[..., "Kernel"], tuple[Tensor, bool]]:
        return Kernel, (self.weight, self.kept)  # copies make their own: oneDNN's tensors cannot be copied

    def is_current(self, weight: Tensor) -> bool:
        """Whether this is a kept kernel of `weight`, and `weight` has not changed since.

        Writing through `.data`, as diffusers' EMAModel does, leaves its version as it is, so a few values are compared.
        """
        return self._state == _state(weight) and torch.equal(self._seen, self._known)

    def with_taps(self, taps: Taps) -> "Kernel":
        """The kernel of `convolution.with_taps`."""
        return self if taps == "all" else self._derive(taps, lambda weight: (with_taps(weight, taps),))[0]

    def minimal_taps(self) -> tuple["Kernel", ...]:
        """The four 2-D kernels of F(2, 3)."""
        return self._derive("F(2, 3)", _minimal_taps)

    def packed(self, x: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        """The weight in oneDNN's layout for inputs such as `x`; other inputs are computed right, but may be slower."""
        if self._packed is None:
            ones = (1,) * len(stride)
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self._packed = pack(self.weight, padding, stride, ones, 1, tuple(x.shape))
            if len(stride) == 2:  # one of F(2, 3)'s: nothing else is made of it, so the copy replaces it
                self.weight = self.weight.to("meta")
        return self._packed

    def _derive(self, name: Hashable, make: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple["Kernel", ...]:
        if name not in self._derived:
            self._derived[name] = tuple(Kernel(weight, self.kept) for weight in make(self.weight))
        return self._derived[name]


def _state(weight: Tensor) -> tuple[object, ...]:
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device


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


def _convolve(
    x: Tensor, kernel: Kernel, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """A convolution in two or three dimensions by oneDNN."""
    ones = (1,) * len(stride)
    if kernel.kept:
        run = torch.ops.mkldnn._convolution_pointwise
        return run(x, kernel.packed(x, stride, padding), bias, padding, stride, ones, 1, "none", [], "")
    # torch does not give oneDNN small float32 inputs of batch 1 and takes an implementation that is 2-3 times slower.
    return torch.ops.aten.mkldnn_convolution(x, kernel.weight, bias, padding, stride, ones, 1)


def _minimal_filtering_pays(x: Tensor, kernel: Kernel, stride: int) -> bool:
    batch, channels, frames, height, width = x.shape
    return (
        stride == 1
        and kernel.weight.shape[2] == 3
        and frames >= 4
        and min(channels, len(kernel.weight)) >= _MINIMAL_CHANNELS
        and batch * (frames - 2) * height * width >= _MINIMAL_POSITIONS[kernel.kept]
    )


def _minimal_filtering(x: Tensor, kernel: Kernel, bias: Tensor | None, padding: int, starts_still: bool) -> Tensor:
    """Three taps in time by F(2, 3); where the number of outputs is odd, the first one by itself.

    Training in float32 has its own, in minimal_filtering.py, which makes fewer products and rounds more.

    Args:
        x: `B C T+2 H W`, channels-last.
        kernel: of three taps in time.
        bias: of its outputs.
        padding: zeros on each side of height and width.
        starts_still: the first three frames are the same one.

    Returns:
        `B C' T H' W'`, channels-last.
    """
    batch, _, frames, height, width = x.shape
    out_channels, _, _, *taps = kernel.weight.shape
    height, width = (size + 2 * padding - count + 1 for size, count in zip((height, width), taps, strict=True))
    outputs = frames - 2
    out = x.new_empty(batch, outputs, height, width, out_channels).permute(0, 4, 1, 2, 3)
    if outputs % 2:
        seen, needed = (x[:, :, :1], kernel.with_taps("summed")) if starts_still else (x[:, :, :3], kernel)
        out[:, :, :1] = _convolve(seen, needed, bias, stride=(1, 1, 1), padding=(0, padding, padding))
    at_once = max(_MINIMAL_BLOCK // x[:, :, 0].numel(), 1) * 2
    for start in range(outputs % 2, outputs, at_once):
        stop = min(start + at_once, outputs)
        _minimal_pairs(x[:, :, start : stop + 2], kernel, bias, padding, out=out[:, :, start:stop])
    return out


def _minimal_pairs(x: Tensor, kernel: Kernel, bias: Tensor | None, padding: int, out: Tensor) -> None:
    """Outputs in pairs, each from four frames by four 2-D convolutions."""
    pairs = out.shape[2] // 2

    def frame(offset: int) -> Tensor:  # frames offset, offset + 2, ... of every pair
        return x[:, :, offset : offset + 2 * pairs : 2]

    inputs = (frame(0) - frame(2), frame(1) + frame(2), frame(2) - frame(1), frame(1) - frame(3))
    products: list[Tensor] = []
    for part, taps in zip(inputs, kernel.minimal_taps(), strict=True):
        once = bias if len(products) == 1 else None  # the second product enters both outputs once
        frames = rearrange(part, "b c t h w -> (b t) c h w")
        product = _convolve(frames, taps, once, stride=(1, 1), padding=(padding, padding))
        products.append(rearrange(product, "(b t) c h w -> b c t h w", b=len(x)))
    a, b, c, d = products
    torch.add(a.add_(b), c, out=out[:, :, 0::2])
    torch.sub(b.sub_(c), d, out=out[:, :, 1::2])


def _minimal_taps(weight: Tensor) -> tuple[Tensor, ...]:
    """The four kernels of F(2, 3), `C' C kh kw`, of a weight `C' C 3 kh kw`."""
    first, second, third = (tap.contiguous(memory_format=torch.channels_last) for tap in weight.unbind(2))
    outer = first + third
    return first, (outer + second) / 2, (outer - second) / 2, third
