"""The adversarial term: PatchGAN discriminators of frames and of video, with the hinge loss.

    critic = Discriminator(AdversarialConfig(weight=0.5), "bfloat16")
    loss_of_autoencoder = generator_loss(critic(reconstruction))
    loss_of_critic = critic_loss(critic(video), critic(reconstruction.detach()))

Patches (Isola et al., arXiv 1611.07004): a discriminator judges each of many overlapping parts of its input. Hinge
loss: Lim and Ye, arXiv 1705.02894.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..config import Config
from ..engine.precision import Precision, autocast

_GROUPS = 8


class AdversarialConfig(Config):
    """The discriminators and how strongly they count."""

    weight: float = Field(default=0.0, ge=0)
    """Weight of the adversarial term: the ratio of its gradient norm to the reconstruction term's at the decoder's last
    convolution; 0 trains without discriminators."""
    start_step: int = Field(default=25_001, gt=0)
    """The first step, counted from 1, that uses them; before it they cost neither time nor memory."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the discriminators; empty: that of the autoencoder."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay of Adam's two moments for the discriminators."""
    base_channels: int = Field(default=64, gt=0, multiple_of=_GROUPS)
    """Width of their first layer; each further one doubles it, up to eight times."""
    num_layers: int = Field(default=3, gt=0)
    """Layers that halve height and width."""

    @property
    def min_size(self) -> int:
        """Pixels of the shortest side for which a patch is left to judge."""
        return 3 * 2**self.num_layers

    def active_at(self, step: int) -> bool:
        """Whether step number `step`, counted from 0, uses the discriminators."""
        return self.weight > 0 and step + 1 >= self.start_step


class Discriminator(nn.Module):
    """A discriminator of single frames and, for clips of several, one of video."""

    def __init__(self, config: AdversarialConfig, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        widths = [config.base_channels * min(2**layer, 8) for layer in range(config.num_layers + 1)]
        self.frames = _patch_classifier(_FrameConv, widths)
        self.video = _patch_classifier(_VideoConv, widths)

    def forward(self, video: Tensor) -> list[Tensor]:
        """Logits of the patches, float32, of a video `B C T H W` in [-1, 1]: of its frames and, if T > 1, of clips."""
        with autocast(video.device, self.precision):
            logits = [self.frames(video.transpose(1, 2).flatten(0, 1))]
            if video.shape[2] > 1:
                logits.append(self.video(video))
        return [value.float() for value in logits]


class _VideoConv(nn.Conv3d):
    """Kernel 3 in time and 4 in space, padded by 1 on all sides.

    Time is padded by hand: of a clip of two frames that it pads itself, the CPU's bf16 convolution returns garbage as
    the gradient of the weight (torch 2.13.0, oneDNN).
    """

    def __init__(self, channels: int, width: int, stride: int, bias: bool = True) -> None:
        super().__init__(channels, width, (3, 4, 4), stride, (0, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, 1, 1)))


class _FrameConv(nn.Conv2d):
    """Kernel 4, padded by 1 on all sides."""

    def __init__(self, channels: int, width: int, stride: int, bias: bool = True) -> None:
        super().__init__(channels, width, 4, stride, 1, bias=bias)


def _patch_classifier(conv: type[_FrameConv] | type[_VideoConv], widths: Sequence[int]) -> nn.Sequential:
    """Convolutions that halve the size, then two that nearly keep it; normalised but at both ends."""
    layers: list[nn.Module] = [conv(3, widths[0], stride=2), nn.LeakyReLU(0.2)]
    for layer, (before, width) in enumerate(pairwise(widths), start=1):
        layers += [
            conv(before, width, stride=1 if layer == len(widths) - 1 else 2, bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, conv(widths[-1], 1, stride=1))


def critic_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminators: 0 when every real patch has at least 1 and every fake one at most -1."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([(F.relu(1 - r).mean() + F.relu(1 + f).mean()) / 2 for r, f in pairs]).mean()


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """The autoencoder's side of the hinge loss: minus the mean logit of its reconstructions."""
    return torch.stack([-logits.mean() for logits in fake]).mean()
