"""The adversarial term: PatchGAN discriminators of frames and of video, with the hinge loss.

    critic = Discriminator(AdversarialConfig(weight=0.5), "bfloat16")
    loss_of_autoencoder = generator_loss(critic(reconstruction))
    loss_of_critic = critic_step(critic, video, reconstruction.detach())

Patches (Isola et al., arXiv 1611.07004): a discriminator judges many overlapping parts of its input. Hinge
loss: Lim and Ye, arXiv 1705.02894. Spectral norm: Miyato et al., arXiv 1802.05957.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..config import Config
from ..engine.optimization import OptimizerConfig
from ..engine.precision import Precision, autocast
from ..vae.layers import repeat_first_frame
from .gradients import with_gradients

_GROUPS = 8
_VOLUMES = 2
"""Layers of the published video discriminator that halve time, too."""
_Conv = Callable[..., nn.Module]
"""Of (channels, width, stride, bias=True)."""


class AdversarialConfig(Config):
    """The discriminators and how strongly they count."""

    weight: float = Field(default=0.0, ge=0)
    """Weight of the adversarial term: the ratio of its gradient norm to the reconstruction term's at the decoder's last
    convolution; 0 trains without discriminators."""
    start_step: int = Field(default=25_001, gt=0)
    """The first step, counted from 1, that uses them; before it they cost neither time nor memory."""
    architecture: Literal["groupnorm", "published"] = "groupnorm"
    """4x4 and 3x4x4 convolutions with group normalisation, or the published discriminators: spectral norm, causal in
    time, images judged as videos of one frame, too."""
    alternate: bool = False
    """Whether autoencoder and discriminators take turns, a batch each (published), so that a step takes two batches;
    until `start_step` the second one is unused. Otherwise both learn from every batch."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the discriminators; empty: that of the autoencoder."""
    schedule: Literal["constant", "optimizer"] = "optimizer"
    """Keep `lr` constant without warm-up (published), or let it follow the autoencoder's warm-up and decay."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay of Adam's two moments for the discriminators."""
    base_channels: int = Field(default=64, gt=0, multiple_of=_GROUPS)
    """Width of their first layer; each further one doubles it, up to eight times."""
    num_layers: int = Field(default=3, gt=0)
    """Layers that halve height and width."""

    @property
    def min_size(self) -> int:
        """Pixels of the shortest side that leaves one patch to judge."""
        return 3 * 2**self.num_layers

    def active_at(self, step: int) -> bool:
        """Whether step number `step`, counted from 0, uses the discriminators."""
        return self.weight > 0 and step + 1 >= self.start_step

    def optimizer(self, autoencoder: OptimizerConfig) -> OptimizerConfig:
        """How the discriminators are optimised, next to the autoencoder."""
        lr = self.lr or autoencoder.lr
        changes = {"lr": lr, "betas": self.betas, "min_lr": autoencoder.min_lr * lr / autoencoder.lr}
        if self.schedule == "constant":
            changes |= {"schedule": "constant", "warmup_steps": 0}
        return autoencoder.model_copy(update=changes)


class Discriminator(nn.Module):
    """A discriminator of single frames and one of video."""

    def __init__(self, config: AdversarialConfig, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.judges_images_as_video = config.architecture == "published"
        widths = [config.base_channels * min(2**layer, 8) for layer in range(config.num_layers + 1)]
        if config.architecture == "published":
            self.frames = _published_frames(widths[:-1])
            self.video = _published_video(widths[:-1])
        else:
            self.frames = _patch_classifier(_frame_conv, widths)
            self.video = _patch_classifier(_VideoConv, widths)

    def forward(self, video: Tensor) -> list[Tensor]:
        """Logits of the patches of a video `B C T H W` in [-1, 1], float32.

        Those of its frames, `(B T) 1 h w`, and those of clips, `B 1 t h w`; the latter only if T > 1 or if the
        architecture judges images as videos of one frame.
        """
        with autocast(video.device, self.precision):
            logits = [self.frames(video.transpose(1, 2).flatten(0, 1))]
            if video.shape[2] > 1 or self.judges_images_as_video:
                logits.append(self.video(video))
        return [value.float() for value in logits]


class _VideoConv(nn.Conv3d):
    """Kernel 3 in time and 4 in space, padded by 1 on all sides.

    Time is padded by hand: for a clip of two frames that it pads itself, the CPU's bf16 convolution returns garbage as
    the gradient of the weight (torch 2.13.0, oneDNN).
    """

    def __init__(self, channels: int, width: int, stride: int, bias: bool = True) -> None:
        super().__init__(channels, width, (3, 4, 4), stride, (0, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, 1, 1)))


def _frame_conv(channels: int, width: int, stride: int, bias: bool = True) -> nn.Conv2d:
    """Kernel 4, padded by 1 on all sides."""
    return nn.Conv2d(channels, width, 4, stride, 1, bias=bias)


class _CausalConv(nn.Conv3d):
    """Kernel 3, padded in time by two copies of the first frame; in space by 1, for stride 2 at the far end alone."""

    def __init__(self, channels: int, width: int, stride: int, bias: bool = True) -> None:
        super().__init__(channels, width, 3, stride, bias=bias)
        self.near = 2 - stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(repeat_first_frame(x, 2), (self.near, 1, self.near, 1)))


def _conv_in_each_frame(channels: int, width: int, stride: int, bias: bool = True) -> nn.Conv3d:
    """Kernel 3 in space alone, padded by 1."""
    return nn.Conv3d(channels, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=bias)


def _patch_classifier(conv: _Conv, widths: Sequence[int]) -> nn.Sequential:
    """Convolutions that halve the size, then two that nearly keep it; normalised except at both ends."""
    layers: list[nn.Module] = [conv(3, widths[0], stride=2), nn.LeakyReLU(0.2)]
    for layer, (before, width) in enumerate(pairwise(widths), start=1):
        layers += [
            conv(before, width, stride=1 if layer == len(widths) - 1 else 2, bias=False),
            nn.GroupNorm(_GROUPS, width),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, conv(widths[-1], 1, stride=1))


def _published_frames(widths: Sequence[int]) -> nn.Sequential:
    """4x4 convolutions that halve the size, then two that nearly keep it; spectral norm on all but the last."""
    *convs, last = _published_convs([_frame_conv] * len(widths), _frame_conv, widths)
    return _rectified([*map(spectral_norm, convs), last])


def _published_video(widths: Sequence[int]) -> nn.Sequential:
    """Two causal convolutions that halve time, height and width, then ones within each frame, then two causal ones."""
    halving = [_CausalConv if layer < _VOLUMES else _conv_in_each_frame for layer in range(len(widths))]
    return _rectified([*map(spectral_norm, _published_convs(halving, _CausalConv, widths))])


def _published_convs(halving: Sequence[_Conv], keeping: _Conv, widths: Sequence[int]) -> list[nn.Module]:
    """A halving convolution for each width, then two that keep the size; biases at both ends alone."""
    pairs = enumerate(zip(halving, pairwise([3, *widths]), strict=True))
    convs = [conv(before, width, 2, bias=layer == 0) for layer, (conv, (before, width)) in pairs]
    return [*convs, keeping(widths[-1], widths[-1], 1, bias=False), keeping(widths[-1], 1, 1)]


def _rectified(convs: Sequence[nn.Module]) -> nn.Sequential:
    """A leaky rectifier between each two."""
    first, *others = convs
    return nn.Sequential(first, *(layer for conv in others for layer in (nn.LeakyReLU(0.2), conv)))


def critic_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminators: 0 when every real patch has at least 1 and every fake one at most -1."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([(F.relu(1 - r).mean() + F.relu(1 + f).mean()) / 2 for r, f in pairs]).mean()


def critic_step(critic: Discriminator, video: Tensor, reconstruction: Tensor, scale: float = 1.0) -> Tensor:
    """The loss of the discriminators on a batch, one sample at a time.

    The gradients are computed here, and delivered by its backward pass, see `with_gradients`.

    `video` is `B C T H W` in [-1, 1], `reconstruction` has no graph. `scale`: factor of the loss before its
    backward pass, so that float16 can hold the gradients.
    """

    def compute() -> Tensor:
        losses = []
        for real, fake in zip(video.split(1), reconstruction.split(1), strict=True):
            loss = critic_loss(critic(real), critic(fake)) / len(video)
            (loss * scale).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    return with_gradients(critic, compute, scale)


def generator_loss(fake: Sequence[Tensor]) -> Tensor:
    """The autoencoder's side of the hinge loss: minus the mean logit of its reconstructions."""
    return torch.stack([-logits.mean() for logits in fake]).mean()
