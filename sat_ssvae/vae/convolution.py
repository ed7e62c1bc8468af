"""3-D convolutions with fewer operations, or on faster paths, than a plain call takes. All compute the same function.

- An image, or whatever consists of copies of one frame, needs no taps in time: they can be summed.
- Nearest repeat by 2 followed by 3 taps sees two distinct values at each output: every output phase is a 2-tap
  convolution with summed weights on the input that was not repeated. 27 taps become 12, or 8 with time.
- Three taps in time by the minimal filtering algorithm F(2, 3) (Winograd; Lavin & Gray, arXiv 1509.09308, section 4):
  two outputs for four multiplications instead of six.

Activations are `B C T H W`, weights `C' C kt kh kw`; the fast layout of activations is channels-last.
"""

from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_MINIMAL_CHANNELS = 64
_MINIMAL_POSITIONS = {False: 2048, True: 512}
"""Below these F(2, 3) costs more than it saves: its additions beside few channels, its weights (whether they are kept
or not) beside few positions."""
_MINIMAL_BLOCK = 2**21
"""Elements of its input that F(2, 3) works on at once, for its additions to stay in the processor's cache."""


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
        self._derived: dict[Hashable, tuple[Kernel, ...]] = {}
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[Callable[..., "Kernel"], tuple[Tensor, bool]]:
        return Kernel, (self.weight, self.kept)  # copies make their own: oneDNN's tensors cannot be copied

    def is_current(self, weight: Tensor) -> bool:
        """Whether this is a kept kernel of `weight`, and `weight` has not changed since."""
        return self._state == _state(weight)

    def derive(self, name: Hashable, make: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple["Kernel", ...]:
        """Kernels of the weights that `make` makes of this one; `name` says which, for the next time."""
        if name not in self._derived:
            self._derived[name] = tuple(Kernel(weight, self.kept) for weight in make(self.weight))
        return self._derived[name]

    def packed(self, x: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        """The weight in oneDNN's layout for inputs such as `x`; other inputs are computed right, but may be slower."""
        if self._packed is None:
            ones = (1,) * len(stride)
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self._packed = pack(self.weight, padding, stride, ones, 1, tuple(x.shape))
            if len(stride) == 2:  # one of F(2, 3)'s: nothing else is made of it, so the copy replaces it
                self.weight = self.weight.to("meta")
        return self._packed


def _state(weight: Tensor) -> tuple[object, ...]:
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device


def convolve(
    x: Tensor, kernel: Kernel, bias: Tensor | None, stride: int = 1, padding: int = 0, starts_still: bool = False
) -> Tensor:
    """`torch.nn.functional.conv3d` without padding in time.

    Args:
        x: `B C T H W`.
        kernel: of a weight `C' C kt kh kw`.
        bias: `C'`.
        stride: of time, height and width.
        padding: zeros on each side of height and width.
        starts_still: whether the first three frames are the same one; it spares two taps in time.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if _minimal_filtering_pays(x, kernel, stride):
        return _minimal_filtering(x, kernel, bias, padding, starts_still)
    return _convolve(x, kernel, bias, (stride,) * 3, (0, padding, padding))


def _convolve(
    x: Tensor, kernel: Kernel, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """A plain convolution in two or three dimensions, on the fastest path there is."""
    ones = (1,) * len(stride)
    if kernel.kept and _onednn_computes(x):
        run = torch.ops.mkldnn._convolution_pointwise
        return run(x, kernel.packed(x, stride, padding), bias, padding, stride, ones, 1, "none", [], "")
    # torch does not give oneDNN small float32 inputs of batch 1 and takes an implementation that is 2-3 times slower.
    if x.dtype == torch.float32 and _onednn_computes(x):
        return torch.ops.aten.mkldnn_convolution(x, kernel.weight, bias, padding, stride, ones, 1)
    convolution = F.conv3d if len(stride) == 3 else F.conv2d
    return convolution(x, kernel.weight, bias, stride, padding)


def _onednn_computes(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu":  # a compiler chooses by itself
        return False
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def sum_taps(kernel: Kernel) -> Kernel:
    """The one tap in time, `C' C 1 kh kw`, that does on equal frames what all of them do; summed in float32."""
    return kernel.derive("sum", lambda weight: (weight.float().sum(2, keepdim=True).to(weight.dtype),))[0]


def repeat_and_convolve(x: Tensor, kernel: Kernel, bias: Tensor, temporal: bool, starts_still: bool = False) -> Tensor:
    """Nearest repeat by 2 in space (and time), then `convolve` with padding 1, without building the repeated input.

    Args:
        x: `B C T H W` with one leading frame of history where time is doubled, else with as many as the weight needs.
        kernel: of a weight `C' C 3 3 3`, or `C' C 1 3 3` where time is kept.
        bias: `C'`.
        temporal: whether time is doubled, too.
        starts_still: see `convolve`.

    Returns:
        `B C' 2(T-1) 2H 2W`, or `B C' (T - kt + 1) 2H 2W` where time is kept.
    """
    height, width = x.shape[-2:]
    time = 2 if temporal else 1
    (phases,) = kernel.derive(("phases", temporal), lambda weight: (_phase_weights(weight, temporal),))
    # All phases as channels of one convolution. Phase p of row i sees rows i - 1 + p and i + p: output row i + p.
    every = convolve(x, phases, bias.repeat(4 * time), padding=1, starts_still=starts_still)
    every = rearrange(every, "b (r p q c) t h w -> r p q b c t h w", r=time, p=2, q=2)
    out = torch.stack([every[:, p, q, ..., p : p + height, q : q + width] for p in (0, 1) for q in (0, 1)])
    return rearrange(out, "(p q) r b c t h w -> b c (t r) (h p) (w q)", p=2, q=2)


def _phase_weights(weight: Tensor, temporal: bool) -> Tensor:
    """Summed taps of every phase, `(phases C') C kt 2 2`; kt is 2 where time is doubled, else unchanged."""
    # Taps are summed in float32: rounded once, like the weights of any other convolution.
    phases = [weight.float()]
    # Space: output 2i sees the repeated inputs (i-1, i, i), and 2i + 1 sees (i, i, i+1). Time: frame 0 is single, so
    # the pair made of frame i starts at 2i - 1, which sees (i-1, i-1, i), and 2i sees (i-1, i, i).
    if temporal:
        phases = [taps for phase in phases for taps in reversed(_pair_taps(phase, 2))]
    for dim in (3, 4):
        phases = [taps for phase in phases for taps in _pair_taps(phase, dim)]
    return torch.cat(phases).to(weight.dtype)


def _pair_taps(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Two taps instead of three along `dim`, where the values seen are (a, b, b), and where they are (a, a, b)."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)


def _minimal_filtering_pays(x: Tensor, kernel: Kernel, stride: int) -> bool:
    """Only where a CPU computes, and without gradients, since all parts would have to be kept for them."""
    batch, channels, frames, height, width = x.shape
    return (
        _onednn_computes(x)
        and not torch.is_grad_enabled()
        and stride == 1
        and kernel.weight.shape[2] == 3
        and frames >= 4
        and min(channels, len(kernel.weight)) >= _MINIMAL_CHANNELS
        and batch * (frames - 2) * height * width >= _MINIMAL_POSITIONS[kernel.kept]
    )


def _minimal_filtering(x: Tensor, kernel: Kernel, bias: Tensor | None, padding: int, starts_still: bool) -> Tensor:
    """Three taps in time by F(2, 3); where the number of outputs is odd, the first one by itself."""
    batch, _, frames, height, width = x.shape
    out_channels, _, _, *taps = kernel.weight.shape
    height, width = (size + 2 * padding - count + 1 for size, count in zip((height, width), taps, strict=True))
    outputs = frames - 2
    out = x.new_empty(batch, outputs, height, width, out_channels).permute(0, 4, 1, 2, 3)
    if outputs % 2:
        seen, needed = (x[:, :, :1], sum_taps(kernel)) if starts_still else (x[:, :, :3], kernel)
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
    for part, taps in zip(inputs, kernel.derive("F(2, 3)", _minimal_taps), strict=True):
        once = bias if len(products) == 1 else None  # the second product enters both outputs once
        frames = rearrange(part, "b c t h w -> (b t) c h w")
        product = _convolve(frames, taps, once, stride=(1, 1), padding=(padding, padding))
        products.append(rearrange(product, "(b t) c h w -> b c t h w", b=len(x)))
    a, b, c, d = products
    torch.add(a.add_(b), c, out=out[:, :, 0::2])
    torch.sub(b.sub_(c), d, out=out[:, :, 1::2])


def _minimal_taps(weight: Tensor) -> tuple[Tensor, ...]:
    first, second, third = (tap.contiguous(memory_format=torch.channels_last) for tap in weight.unbind(2))
    outer = first + third
    return first, (outer + second) / 2, (outer - second) / 2, third
