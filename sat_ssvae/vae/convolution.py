"""3-D convolutions with fewer operations, or on faster paths, than a plain call takes. All compute the same function.

- An image, or whatever consists of copies of one frame, needs no taps in time: they can be summed.
- Nearest repeat by 2 followed by 3 taps sees two distinct values at each output: every output phase is a 2-tap
  convolution with summed weights on the input that was not repeated. 27 taps become 12, or 8 with time.
- Three taps in time by the minimal filtering algorithm F(2, 3) (Winograd; Lavin & Gray, arXiv 1509.09308, section 4):
  two outputs for four multiplications instead of six.

Activations are `B C T H W`, weights `C' C kt kh kw`; the fast layout of activations is channels-last.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_MINIMAL_CHANNELS = 128
_MINIMAL_POSITIONS = 2048
"""Below these F(2, 3) costs more than it saves: its additions beside few channels, its weights beside few positions."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """`torch.nn.functional.conv3d` without padding in time; `padding` is that of height and width."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    if _minimal_filtering_pays(x, weight, stride):
        return _minimal_filtering(x, weight, bias, padding)
    # torch does not give oneDNN small float32 inputs of batch 1 and takes an implementation that is 2-3 times slower.
    if _is_plain_float32_on_cpu(x) and torch.backends.mkldnn.is_available():
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, (0, padding, padding), (stride,) * 3, (1,) * 3, 1)
    return F.conv3d(x, weight, bias, stride=stride, padding=(0, padding, padding))


def sum_taps(weight: Tensor) -> Tensor:
    """The one tap in time, `C' C 1 kh kw`, that does on equal frames what all of them do; summed in float32."""
    return weight.float().sum(2, keepdim=True).to(weight.dtype)


def repeat_and_convolve(x: Tensor, weight: Tensor, bias: Tensor, temporal: bool) -> Tensor:
    """Nearest repeat by 2 in space (and time), then `convolve` with padding 1, without building the repeated input.

    Args:
        x: `B C T H W` with one leading frame of history where time is doubled, else with as many as `weight` needs.
        weight: `C' C 3 3 3`, or `C' C 1 3 3` where time is kept.
        bias: `C'`.
        temporal: whether time is doubled, too.

    Returns:
        `B C' 2(T-1) 2H 2W`, or `B C' (T - kt + 1) 2H 2W` where time is kept.
    """
    height, width = x.shape[-2:]
    time = 2 if temporal else 1
    # All phases as channels of one convolution. Phase p of row i sees rows i - 1 + p and i + p: output row i + p.
    every = convolve(x, _phase_weights(weight, temporal).to(x.dtype), bias.repeat(4 * time), padding=1)
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
    return torch.cat(phases)


def _pair_taps(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Two taps instead of three along `dim`, where the values seen are (a, b, b), and where they are (a, a, b)."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)


def _is_plain_float32_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _minimal_filtering_pays(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Only float32 keeps its accuracy, only a CPU computes float32 slowly enough, and training would keep all parts."""
    batch, channels, frames, height, width = x.shape
    return (
        _is_plain_float32_on_cpu(x)
        and not torch.is_grad_enabled()
        and stride == 1
        and weight.shape[2] == 3
        and frames >= 4
        and min(channels, len(weight)) >= _MINIMAL_CHANNELS
        and batch * (frames - 2) * height * width >= _MINIMAL_POSITIONS
    )


def _minimal_filtering(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Three taps in time by F(2, 3): outputs in pairs, each from four frames by four 2-D convolutions."""
    batch, frames = x.shape[0], x.shape[2]
    outputs = frames - 2
    pairs = outputs // 2
    first, second, third = weight.unbind(2)
    outer = first + third
    taps = (first, (outer + second) / 2, (outer - second) / 2, third)

    def frame(offset: int) -> Tensor:  # frames offset, offset + 2, ... of every pair
        return x[:, :, offset : offset + 2 * pairs : 2]

    inputs = (frame(0) - frame(2), frame(1) + frame(2), frame(2) - frame(1), frame(1) - frame(3))
    a, b, c, d = (
        F.conv2d(
            rearrange(part, "b c t h w -> (b t) c h w"),
            tap.contiguous(memory_format=torch.channels_last),
            bias if index == 1 else None,  # the second product enters both outputs once
            padding=padding,
        )
        for index, (part, tap) in enumerate(zip(inputs, taps, strict=True))
    )
    out = x.new_empty(batch, outputs, *a.shape[2:], len(weight)).permute(0, 4, 1, 2, 3)
    even, odd = (out[:, :, offset : 2 * pairs : 2] for offset in (0, 1))
    a += b
    a += c
    b -= c
    b -= d
    even.copy_(rearrange(a, "(b t) c h w -> b c t h w", b=batch))
    odd.copy_(rearrange(b, "(b t) c h w -> b c t h w", b=batch))
    if outputs % 2:
        out[:, :, -1:] = convolve(x[:, :, -3:], weight, bias, padding=padding)
    return out
