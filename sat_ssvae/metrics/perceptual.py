"""Learned perceptual distances of images, as loss and metric: ST-LPIPS, and LPIPS if it is installed.

    perceptual = build_perceptual("st-lpips-alex")
    distance = perceptual(reconstructed_frames, frames)        # N 3 H W in [-1, 1] -> (N,)

Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric" (ECCV 2022): LPIPS (Zhang et al., CVPR 2018)
on backbones whose strides are moved into anti-aliasing filters (Zhang, "Making Convolutional Networks
Shift-Invariant Again", ICML 2019), heads trained again. Values differ from LPIPS: report them as ST-LPIPS.
"""

import importlib
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..assets import fetch
from ..errors import UserError

Backbone = Literal["alex", "vgg"]
PerceptualName = Literal["st-lpips-alex", "st-lpips-vgg", "lpips-alex", "lpips-vgg"]
PIXELS_AT_ONCE = 2**20
"""Pixels of each side that `distances_and_gradient` passes through the network at a time, but at least one image."""
MIN_SIZE = 32  # pixels; below it the deepest features are smaller than their reflection padding

# Added to the norm of a feature vector before division; part of the trained function (Zhang et al. 2018).
_NORM_EPSILON = 1e-10


class Conv(NamedTuple):
    """A stride-1 convolution followed, after an optional blur, by a rectifier."""

    channels: int
    kernel: int
    padding: int
    blurred: bool = False


class Slice(NamedTuple):
    """Layers up to one feature tap: an optional blurred max-pooling, then convolutions."""

    pool: int
    convs: tuple[Conv, ...]


_SLICES: dict[Backbone, tuple[Slice, ...]] = {
    "alex": (
        Slice(0, (Conv(64, 11, 2, blurred=True),)),
        Slice(3, (Conv(192, 5, 2),)),
        Slice(3, (Conv(384, 3, 1),)),
        Slice(0, (Conv(256, 3, 1),)),
        Slice(0, (Conv(256, 3, 1),)),
    ),
    "vgg": (
        Slice(0, (Conv(64, 3, 1),) * 2),
        Slice(2, (Conv(128, 3, 1),) * 2),
        Slice(2, (Conv(256, 3, 1),) * 3),
        Slice(2, (Conv(512, 3, 1),) * 3),
        Slice(2, (Conv(512, 3, 1),) * 3),
    ),
}


class BlurPool(nn.Module):
    """Depthwise binomial 3x3 filter with stride 2 on a reflection-padded map (Zhang 2019, section 3)."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), H and W at least 3 -> (N, C, H // 2 + 1, W // 2 + 1)."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


def _build_slice(layout: Slice, channels: int, index: Iterator[int]) -> tuple[nn.Sequential, int]:
    """One slice and its width. Layers are numbered by `index`, as in the weight file."""
    layers: list[nn.Module] = []
    if layout.pool:
        layers += [nn.MaxPool2d(layout.pool, stride=1), BlurPool(channels)]
    for conv in layout.convs:
        layers.append(nn.Conv2d(channels, conv.channels, conv.kernel, padding=conv.padding))
        channels = conv.channels
        if conv.blurred:
            layers.append(BlurPool(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(OrderedDict((str(next(index)), layer) for layer in layers)), channels


class Perceptual(nn.Module):
    """A frozen distance of two image batches (N, 3, H, W), (N,); 0 for equal ones, differentiable in both."""

    metric: str
    """Name of the distance in tables of scores."""

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in evaluation mode (no dropout in the distance), even when a parent module is set to training."""
        return super().train(False)


class STLPIPS(Perceptual):
    """Shift-tolerant LPIPS with the weights of the `stlpips-pytorch` package.

    The backbone "alex" is about 4x cheaper than "vgg".

    Raises:
        UserError: the weights cannot be fetched.
    """

    metric = "stlpips"
    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone = "alex") -> None:
        super().__init__()
        self.backbone = backbone
        self.slices = nn.ModuleList()
        channels, index = 3, count()
        for number, layout in enumerate(_SLICES[backbone]):
            built, channels = _build_slice(layout, channels, index)
            self.slices.append(built)
            self.register_buffer(f"head{number}", torch.empty(channels))
        self.register_buffer("shift", torch.empty(3, 1, 1))
        self.register_buffer("scale", torch.empty(3, 1, 1))
        weights = torch.load(fetch(f"stlpips_{backbone}"), map_location="cpu", weights_only=True)
        self.load_state_dict(_rename(weights))
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) of images `x` and `y`, both (N, 3, H, W) in [-1, 1], H and W at least 32.

        Raises:
            UserError: the images are too small for the network.
            ValueError: the shapes differ or are not those of colour images.
        """
        _check_images(x, y)
        # A frame larger than PIXELS_AT_ONCE has one slice's maps at a time, computed again in the backward pass.
        kept = x[0, 0].numel() <= PIXELS_AT_ONCE or not torch.is_grad_enabled()
        distance = x.new_zeros(x.shape[0])
        # channels-last is 1.3 to 1.7 times faster on a CPU
        x, y = (((z - self.shift) / self.scale).contiguous(memory_format=torch.channels_last) for z in (x, y))
        for number in range(len(self.slices)):
            if kept:
                x, y, part = self._advance(x, y, number)
            else:
                x, y, part = checkpoint(self._advance, x, y, number, use_reentrant=False)
            distance = distance + part
        return distance

    def _advance(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Both images' maps after a slice, and the distance (N,) of their channel-normalised features."""
        x, y = self.slices[number](x), self.slices[number](y)
        tap_x, tap_y = (z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + _NORM_EPSILON) for z in (x, y))
        head = self.get_buffer(f"head{number}")
        return x, y, torch.einsum("nchw,c->nhw", (tap_x - tap_y).square(), head).mean((1, 2))


class LPIPS(Perceptual):
    """The distance of the `lpips` package (Zhang et al., CVPR 2018), which downloads a backbone on first use.

    Raises:
        UserError: the package is not installed, or the backbone cannot be downloaded.
    """

    metric = "lpips"

    def __init__(self, backbone: Backbone = "vgg") -> None:
        super().__init__()
        self.backbone = backbone
        instead = f"or choose st-lpips-{backbone} (for `train`: reconstruction.perceptual=st-lpips-{backbone})"
        try:
            package = importlib.import_module("lpips")
            self.network = package.LPIPS(net=backbone, verbose=False)
        except ImportError as error:
            raise UserError(f"LPIPS needs `pip install lpips` ({error}); {instead}") from None
        except OSError as error:
            raise UserError(f"no backbone for LPIPS ({error}): go online once; {instead}") from None
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (N,) of images `x` and `y`, both (N, 3, H, W) in [-1, 1], H and W at least 32.

        Raises:
            UserError, ValueError: as `STLPIPS.forward`.
        """
        _check_images(x, y)
        distance: Tensor = self.network(x, y)
        return distance.flatten()


def build_perceptual(name: PerceptualName) -> Perceptual:
    """The distance called `name`, on the CPU in float32.

    Raises:
        UserError: its weights or its package are missing.
    """
    family, _, backbone = name.rpartition("-")
    if backbone not in _SLICES or family not in ("st-lpips", "lpips"):
        raise UserError(f"unknown perceptual distance `{name}`, known: {', '.join(get_args(PerceptualName))}")
    return STLPIPS(backbone) if family == "st-lpips" else LPIPS(backbone)


def distances_and_gradient(perceptual: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (N,) of images, and the gradient of `weight` times their sum with respect to `x`.

    A few images are taken at a time, so that memory does not grow with their number. In float32: bfloat16 rounds
    features to equal values, among which max-pooling sends the gradient elsewhere (st-lpips-vgg on video frames: the
    distance is off by 0.3 %, its gradient by 40 to 90 %).

    `x` and `y`: equally many images `N 3 H W` in [-1, 1]; `weight`: a scalar.
    """
    at_once = max(PIXELS_AT_ONCE // x[0, 0].numel(), 1)
    distances, gradients = [], []
    for some, others in zip(x.split(at_once), y.split(at_once), strict=True):
        seen = some.detach().requires_grad_()
        distance = perceptual(seen, others)
        gradients += torch.autograd.grad(distance.sum() * weight, seen)
        distances.append(distance.detach())
    return torch.cat(distances), torch.cat(gradients)


def _check_images(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"expected two equal N 3 H W shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    height, width = x.shape[-2:]
    if min(height, width) < MIN_SIZE:
        raise UserError(f"a perceptual distance needs images of at least {MIN_SIZE}x{MIN_SIZE}, got {height}x{width}")


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under this module's names: `slices.0.0.weight` for `net.slice1.0.weight`."""
    renamed = {}
    for name, value in weights.items():
        part, *rest = name.split(".")
        if part == "net":
            renamed[".".join(["slices", str(int(rest[0].removeprefix("slice")) - 1), *rest[1:]])] = value
        elif part == "scaling_layer":
            renamed[rest[0]] = value.reshape(3, 1, 1)
        else:
            renamed[part.replace("lin", "head")] = value.reshape(-1)
    return renamed
