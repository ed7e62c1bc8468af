"""Feature vectors of clips, for a distance between sets of clips.

    features = ClipFeatures()(video)        # B 3 T H W in [-1, 1] -> (B, 896)

`FrameFeatures` describe the content and sharpness of single frames (EfficientNet-lite0, ImageNet). `ClipFeatures` come
from 3-D convolutions over time (TransNet V2, trained to find shot boundaries) and detect freezes, shuffles and flicker.
Neither is the network of FID or FVD; call a distance by the features' name.
"""

import abc
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..assets import fetch
from ..spacing import evenly_spaced

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Stage(NamedTuple):
    """Inverted residual blocks of one width (arXiv 1905.11946; "lite": no squeeze-excitation, ReLU6)."""

    blocks: int
    expansion: int
    kernel: int
    stride: int
    channels: int


_LITE0_STEM, _LITE0_HEAD = 32, 1280
_LITE0 = (
    _Stage(1, 1, 3, 1, 16),
    _Stage(2, 6, 3, 2, 24),
    _Stage(2, 6, 5, 2, 40),
    _Stage(3, 6, 3, 2, 80),
    _Stage(3, 6, 5, 1, 112),
    _Stage(4, 6, 5, 2, 192),
    _Stage(1, 6, 3, 1, 320),
)


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "SAME": an odd pixel of padding goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(reversed(x.shape[-2:]), self.kernel_size, self.stride, strict=True):
            total = max((-(size // -stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> _SameConv:
    return _SameConv(channels, out, kernel, stride, groups=groups, bias=False)


class _InvertedResidual(nn.Module):
    """Expand, filter each channel in space, project; plus the input where the shape stays."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands = expansion > 1
        self.residual = stride == 1 and channels == out
        if self.expands:
            self._expand_conv = _conv(channels, wide)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = _conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = _conv(wide, out)
        self._bn2 = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self.residual else hidden


class EfficientNetLite0(nn.Module):
    """The feature extractor of EfficientNet-lite0, names as in its published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, _LITE0_STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_LITE0_STEM, eps=1e-3)
        blocks, channels = [], _LITE0_STEM
        for stage in _LITE0:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(_InvertedResidual(channels, stage.channels, stage.expansion, stage.kernel, stride))
                channels = stage.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _conv(channels, _LITE0_HEAD)
        self._bn1 = nn.BatchNorm2d(_LITE0_HEAD, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Images N 3 H W, normalised as ImageNet's -> feature maps N 1280 ceil(H / 32) ceil(W / 32)."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        return F.relu6(self._bn1(self._conv_head(self._blocks(x))))


class _DilatedCell(nn.Module):
    """One DDCNN cell (TransNet V2, arXiv 2008.04838, section 3.1).

    Side by side for the dilations 1, 2, 4, 8 in time: a 3x3 convolution in space and one of 3 in time; then
    batch norm and rectifier. The four convolutions in space see the same input, so they run as one.
    """

    DILATIONS = (1, 2, 4, 8)

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, len(self.DILATIONS) * 2 * filters, 3, padding=1, bias=False)
        self.time = nn.ModuleList(
            nn.Conv2d(2 * filters, filters, (3, 1), padding=(d, 0), dilation=(d, 1), bias=False) for d in self.DILATIONS
        )
        self.bn = nn.BatchNorm2d(len(self.DILATIONS) * filters, eps=1e-3)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(B*T, C, H, W) -> (B*T, 4 * filters, H, W)."""
        height, width = x.shape[-2:]
        hidden = self.space(x).permute(0, 2, 3, 1)  # one row per position: channels last is the fast layout on a CPU
        hidden = hidden.reshape(-1, frames, height * width, hidden.shape[-1]).permute(0, 3, 1, 2)
        branches = [conv(part) for conv, part in zip(self.time, hidden.chunk(len(self.DILATIONS), 1), strict=True)]
        hidden = F.relu(self.bn(torch.cat(branches, 1)))  # B C T HW
        return hidden.permute(0, 2, 3, 1).reshape(len(x), height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def rename(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A cell's published weights under this module's names."""
        own = {f"bn.{name.rpartition('.')[2]}": v for name, v in weights.items() if name.startswith(f"{prefix}.bn.")}
        branches = [f"{prefix}.Conv3D_{dilation}.layers" for dilation in _DilatedCell.DILATIONS]
        own["space.weight"] = torch.cat([weights[f"{branch}.0.weight"].squeeze(2) for branch in branches])
        return own | {
            f"time.{number}.weight": weights[f"{branch}.1.weight"].squeeze(-1) for number, branch in enumerate(branches)
        }


class _Stack(nn.Module):
    """Two cells, the second with a shortcut around it, then halving in space (arXiv 2008.04838, figure 1)."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.first = _DilatedCell(channels, filters)
        self.second = _DilatedCell(len(_DilatedCell.DILATIONS) * filters, filters)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        shortcut = self.first(x, frames)
        return F.avg_pool2d(self.second(shortcut, frames) + shortcut, 2)

    def load_published(self, weights: dict[str, Tensor], prefix: str) -> None:
        self.first.load_state_dict(_DilatedCell.rename(weights, f"{prefix}.DDCNN.0"))
        self.second.load_state_dict(_DilatedCell.rename(weights, f"{prefix}.DDCNN.1"))


class TransNetV2(nn.Module):
    """The convolutional trunk of TransNet V2 (arXiv 2008.04838): three stacks of two DDCNN cells."""

    FILTERS = (16, 32, 64)
    SIZE = (27, 48)  # pixels (height, width) the network was trained at

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(len(_DilatedCell.DILATIONS) * filters for filters in self.FILTERS)]
        self.stacks = nn.ModuleList(map(_Stack, widths, self.FILTERS))

    def forward(self, video: Tensor) -> list[Tensor]:
        """Video B 3 T H W in [0, 1] -> each stack's output, B T C h w, with h and w halved, rounding down."""
        batch, _, frames = video.shape[:3]
        x = video.movedim(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        outputs = []
        for stack in self.stacks:
            x = stack(x, frames)
            outputs.append(x.unflatten(0, (batch, frames)))
        return outputs

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Take the trunk's weights out of the published file's state dict."""
        for number, stack in enumerate(self.stacks):
            assert isinstance(stack, _Stack)
            stack.load_published(weights, f"SDDCNN.{number}")


class _Features(nn.Module, abc.ABC):
    """A network that is never trained: no gradients, no batch statistics."""

    DIMENSION: int
    AT_ONCE = 4
    """Clips at a time, which does not affect the features; 4 suits a CPU's cache."""

    def train(self, mode: bool = True) -> "_Features":
        """Stay in evaluation mode, even when a parent module is set to training."""
        return super().train(False)

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Features (B, DIMENSION), float32, of clips B 3 T H W in [-1, 1]; values outside are clipped.

        The clips need not be on the network's device, nor fit there; the features are on the clips' device.

        Raises:
            ValueError: not a batch of colour videos.
        """
        if video.ndim != 5 or video.shape[1] != 3 or not all(video.shape):
            raise ValueError(f"expected video B 3 T H W, got {tuple(video.shape)}")
        device = next(self.parameters()).device
        parts = (part.to(device, torch.float32).clamp(-1, 1) for part in video.split(self.AT_ONCE))
        return torch.cat([self._features(part).to(video.device) for part in parts])

    @abc.abstractmethod
    def _features(self, video: Tensor) -> Tensor:
        """Of clips `B 3 T H W` in [-1, 1] on the network's device, (B, DIMENSION)."""


class FrameFeatures(_Features):
    """Appearance of a clip: EfficientNet-lite0's 1280 pooled features, averaged over some of its frames.

    `frames` are evenly spaced from first to last (1: the middle one), and scaled to `resolution` pixels a side; 224
    is what the network was trained at, and costs four times as much as 112.

    Raises:
        UserError: the weights cannot be fetched.
    """

    DIMENSION = _LITE0_HEAD

    def __init__(self, *, frames: int = 4, resolution: int = 112) -> None:
        super().__init__()
        self.frames, self.resolution = frames, resolution
        self.network = EfficientNetLite0()
        weights = torch.load(fetch("efficientnet_lite0"), map_location="cpu", weights_only=True)
        self.network.load_state_dict({name: v for name, v in weights.items() if not name.startswith("_fc.")})
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self._freeze()

    def _features(self, video: Tensor) -> Tensor:
        chosen = torch.stack([video[:, :, number] for number in evenly_spaced(video.shape[2], self.frames)], 2)
        x = _resize(chosen.movedim(2, 1).flatten(0, 1), (self.resolution, self.resolution))
        x = ((x + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        pooled = self.network(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        return pooled.unflatten(0, (len(video), -1)).mean(1)


class ClipFeatures(_Features):
    """Appearance and motion of a clip: TransNet V2's 3-D convolution features, scaled to its 27x48 pixels.

    For each channel of each of its three stacks, the mean over the clip and the mean absolute difference of
    neighbouring frames: the first says what is seen, the second how it moves.

    Raises:
        UserError: the weights cannot be fetched.
    """

    DIMENSION = 2 * 4 * sum(TransNetV2.FILTERS)

    def __init__(self) -> None:
        super().__init__()
        self.network = TransNetV2()
        weights = torch.load(fetch("transnetv2"), map_location="cpu", weights_only=True)
        self.network.load_published(weights)
        self._freeze()

    def _features(self, video: Tensor) -> Tensor:
        batch, _, frames = video.shape[:3]
        x = _resize(video.movedim(2, 1).flatten(0, 1), TransNetV2.SIZE)
        outputs = self.network((x.unflatten(0, (batch, frames)).movedim(1, 2) + 1) / 2)
        seen = [output.mean((1, 3, 4)) for output in outputs]
        if frames == 1:
            moved = [torch.zeros_like(values) for values in seen]
        else:
            moved = [output.diff(dim=1).abs().mean((1, 3, 4)) for output in outputs]
        return torch.cat(seen + moved, 1)


def feature_networks(device: torch.device) -> dict[str, FrameFeatures | ClipFeatures]:
    """Both networks, by the name that their distances carry."""
    return {"frame": FrameFeatures().to(device), "clip": ClipFeatures().to(device)}


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
