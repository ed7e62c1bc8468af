"""Building blocks of the causal video autoencoder.

Shapes: B batch, C channels, T frames, H height, W width; every block maps `B C T H W` to `B C' T' H' W'`.

Causality and streaming. Each temporal operation looks back over a bounded number of frames, so a video may be
processed in chunks when the blocks are given a `Stream`, which keeps what they need of earlier chunks. Without one,
the input is a whole video. The results are the same, because both follow the same path: a whole video is simply the
first and only chunk. Before the first frame, convolutions see copies of it.

Parameter names (`conv.weight`, `gamma`, `nin_shortcut`, ...) are those of the published checkpoints.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .convolution import Taps, interleave_phases, with_taps
from .norm import RMSNorm, norm_silu, repeat_first_frame


class Stream:
    """What the blocks must remember between the chunks of one video. Owned by the caller, one per video.

    Args:
        whole: the first chunk is the only one: nothing needs to be remembered.
        frames_at_once: frames that the layers which do not compress time take at a time; None for all.
    """

    def __init__(self, whole: bool = False, frames_at_once: int | None = None) -> None:
        self.first = True
        """Whether the chunk being processed is the first of its video; the owner clears it after that chunk."""
        self._whole = whole
        self._frames_at_once = frames_at_once
        self._parts = None if frames_at_once is None else Stream()
        self._history: dict[nn.Module, Tensor] = {}

    def extend(self, module: nn.Module, x: Tensor, frames: int, keep: int) -> Tensor:
        """Put what came before `x` in front of it: `frames` copies of frame 0 at the start, else the kept history.

        Args:
            module: the block that asks; histories are kept per block.
            x: this chunk's input, `B C T H W`.
            frames: number of leading frames that the very first output needs.
            keep: number of frames of history that the first output of a later chunk needs.
        """
        extended = repeat_first_frame(x, frames) if self.first else torch.cat([self._history.pop(module), x], dim=2)
        self._remember(module, extended, keep)
        return extended

    def fill(self, module: nn.Module, room: Tensor, frames: int) -> None:
        """As `extend`, for `room` that has `frames` empty frames in front of the input, and needs as many later."""
        room[:, :, :frames] = room[:, :, frames : frames + 1] if self.first else self._history.pop(module)
        self._remember(module, room, frames)

    def in_parts(self, run: Callable[[Tensor, "Stream | None"], Tensor], x: Tensor) -> Tensor:
        """`run`, which gives a frame for each frame, of `x` (`B C T H W`) and a stream: all at once, or in parts.

        A chunk has at least the frames of one latent frame, and it is largest where time is not compressed.
        """
        if self._frames_at_once is None or self._parts is None:
            return run(x, self)
        out = []
        for part in x.split(self._frames_at_once, dim=2):
            out.append(run(part, self._parts))
            self._parts.first = False
        return torch.cat(out, dim=2)

    def _remember(self, module: nn.Module, x: Tensor, frames: int) -> None:
        if frames and not self._whole:
            self._history[module] = x[:, :, -frames:].clone()


def _add(x: Tensor, y: Tensor) -> Tensor:
    """The sum, written into x, which nothing else reads, unless a graph needs x."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


class _TapConv3d(nn.Conv3d):
    """`nn.Conv3d` with the taps and padding of each call.

    The weight is used in the `forward` of the module that owns it: offloading and casting bring it for that alone.
    """

    def forward(self, x: Tensor, taps: Taps = "all", padding: int = 1) -> Tensor:
        weight, bias = with_taps(self.weight, taps), self.bias
        if bias is not None and len(weight) > len(bias):
            bias = bias.repeat(len(weight) // len(bias))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, weight, bias, self.stride, (0, padding, padding))


class CausalConv3d(nn.Module):
    """3-D convolution that sees the present and past frames only.

    In space the border is zeros: one on each side at stride 1, one on the far side alone at stride 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = _TapConv3d(in_channels, out_channels, kernel_size=3, stride=stride)
        self.stride = stride

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        stream = stream or Stream(whole=True)
        image = stream.first and x.shape[2] == 1
        before = stream.extend(self, x, frames=2, keep=3 - self.stride)
        x = x if image else before
        if self.stride == 2:
            x = F.pad(x, (0, 1, 0, 1))
        return self.convolve(
            x, "summed" if image else "all", padding=1 if self.stride == 1 else 0, starts_still=stream.first
        )

    def convolve(self, x: Tensor, taps: Taps = "all", padding: int = 1, starts_still: bool = False) -> Tensor:
        """The convolution alone, without padding in time.

        Args:
            x: `B C T H W`.
            taps: which of the weight's taps, see `convolution.with_taps`.
            padding: zeros on each side of height and width.
            starts_still: the first three frames are the same one; an implementation may make use of it.
        """
        result: Tensor = self.conv(x, taps, padding)
        return result

    def after_norm(self, norm: RMSNorm, x: Tensor, stream: Stream | None) -> Tensor:
        """norm, SiLU, convolution."""
        here = norm.gamma.device == x.device  # offloading brings it in the norm's `forward` alone
        if torch.is_grad_enabled() and stream is None and x.shape[2] > 1 and here and not torch.compiler.is_compiling():
            return self.convolve(norm_silu(x, norm.gamma, 2), starts_still=True)
        return self(F.silu(norm(x)), stream)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1x1 convolution when the width changes)."""

    checkpointed = False
    """Keep nothing but the input for the backward pass, and compute the block again there."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = RMSNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.nin_shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        # A stream would be filled twice.
        if self.checkpointed and torch.is_grad_enabled() and stream is None:
            return checkpoint(self._forward, x, None, use_reentrant=False)
        return self._forward(x, stream)

    def _forward(self, x: Tensor, stream: Stream | None) -> Tensor:
        h = self.conv1.after_norm(self.norm1, x, stream)
        h = self.conv2.after_norm(self.norm2, h, stream)
        return _add(h, self.nin_shortcut(x))


class FrameAttention(nn.Module):
    """Single-head self-attention over the positions of each frame; frames do not see each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, spatial_dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        for parameter in self.proj.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        height, width = x.shape[-2:]
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3).unbind()
        attended = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(rearrange(attended, "n 1 (h w) c -> n c h w", h=height, w=width))
        return x + _as_videos(out, x)


class Downsample(nn.Module):
    """Halve height and width, and time if asked, by a strided convolution plus an averaging shortcut (DC-AE).

    Time: `T = 2k + 1` frames become `k + 1` (later chunks of a stream: `2k` become `k`).
    """

    def __init__(self, in_channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.out_channels = out_channels
        self.conv: nn.Module
        if temporal:
            self.conv = CausalConv3d(in_channels, out_channels, stride=2)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        if self.temporal:
            h = self.conv(x, stream)
        else:
            frames = F.pad(rearrange(x, "b c t h w -> (b t) c h w"), (0, 1, 0, 1))
            h = _as_videos(self.conv(frames), x)
        return _add(h, self._shortcut(x, first=stream is None or stream.first))

    def _shortcut(self, x: Tensor, first: bool) -> Tensor:
        """Space(-time) to depth, then the mean over groups of consecutive channels."""
        if self.temporal and first:
            x = F.pad(x, (0, 0, 0, 0, 1, 0))
        time = 2 if self.temporal else 1
        depth = rearrange(x, "b c (t r) (h p) (w q) -> b (c r p q) t h w", r=time, p=2, q=2)
        return reduce(depth, "b (c n) t h w -> b c t h w", "mean", c=self.out_channels)


class Upsample(nn.Module):
    """Double height and width, and time if asked, by nearest repeat and a causal convolution, plus a shortcut.

    Time: `T` frames become `2T - 1`, frame 0 staying single (later chunks of a stream: `T` become `2T`).
    """

    def __init__(self, in_channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.out_channels = out_channels
        self.conv = CausalConv3d(in_channels, out_channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        stream = stream or Stream(whole=True)
        shortcut = _duplicate(x, self.out_channels, self.temporal)
        # What precedes the first output: causal padding of the doubled video is two frames, of the single one, one.
        before = 1 if self.temporal else 2
        extended = stream.extend(self, x, before, keep=before)
        if stream.first and x.shape[2] == 1:  # an image sees copies of itself
            out = interleave_phases(self.conv.convolve(x, "summed phases"), time=1)
            return _add(out, shortcut[:, :, -1:])
        taps: Taps = "phases in time" if self.temporal else "phases"
        phases = self.conv.convolve(extended, taps, starts_still=stream.first)
        out = _add(interleave_phases(phases, time=2 if self.temporal else 1), shortcut)
        return out[:, :, 1:] if self.temporal and stream.first else out


def _as_videos(frames: Tensor, videos: Tensor) -> Tensor:
    """Frames `(b t) c h w` as `b c t h w`, b and t those of `videos`; there may be none."""
    return rearrange(frames, "(b t) c h w -> b c t h w", b=videos.shape[0], t=videos.shape[2])


def _duplicate(x: Tensor, out_channels: int, temporal: bool) -> Tensor:
    """Repeat channels, then depth to space(-time): the inverse of averaging, without parameters (DC-AE)."""
    time = 2 if temporal else 1
    copies = out_channels * 4 * time // x.shape[1]
    x = repeat(x, "b c t h w -> b (c n) t h w", n=copies)
    return rearrange(x, "b (c r p q) t h w -> b c (t r) (h p) (w q)", r=time, p=2, q=2)


def middle_blocks(channels: int, num_blocks: int, attention_after: Sequence[int]) -> nn.ModuleList:
    """The flat list `mid`: residual blocks, each followed by an attention block if its number is listed."""
    blocks: list[nn.Module] = []
    for index in range(num_blocks):
        blocks.append(ResidualBlock(channels, channels))
        if index in attention_after:
            blocks.append(FrameAttention(channels))
    return nn.ModuleList(blocks)


def output_layers(in_channels: int, out_channels: int) -> nn.ModuleList:
    """The list `out`: norm, SiLU, convolution."""
    return nn.ModuleList([RMSNorm(in_channels), nn.SiLU(), CausalConv3d(in_channels, out_channels)])
