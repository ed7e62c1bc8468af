"""How close a reconstruction is to its original: PSNR, SSIM and a perceptual distance, frame by frame.

    scores = reconstruction_scores(reconstruction, video, perceptual=build_perceptual("st-lpips-alex"))
    scores["psnr"]      # (B,), one score per clip: the mean over its frames

Videos are `B C T H W` in [-1, 1]; values outside are clipped, as in a written video.
"""

import torch
from einops import rearrange
from pytorch_msssim import ssim as msssim_ssim
from torch import Tensor

from ..errors import UserError
from .perceptual import Perceptual

SSIM_WINDOW = 11  # pixels, Wang et al. (2004)
_FRAMES = "b c t h w -> (b t) c h w"
_FRAMES_AT_ONCE = 32
_ROUNDING_ERROR = (2 / 255) ** 2 / 12
"""Mean square of the error of rounding to 8 bits."""


def psnr(x: Tensor, y: Tensor, least_error: float = 0.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): the mean of the frames', infinite where one is equal.

    The peak is 2, the range of pixels. x, y: B C T H W in [-1, 1]; least_error: a smaller squared error of a frame
    counts as this.
    """
    a, b = _checked(x, y)
    error = (a - b).square().mean((1, 3, 4)).clamp_min(least_error)  # B T
    return (10 * torch.log10(4 / error)).mean(1)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window 11, sigma 1.5), (B,): the mean of the frames'.

    x, y: B C T H W in [-1, 1], H and W at least 11.

    Raises:
        UserError: frames smaller than the window.
    """
    a, b = _checked(x, y)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise UserError(f"SSIM needs frames of at least {SSIM_WINDOW} pixels a side, got {tuple(a.shape[-2:])}")
    frames = (rearrange(video, _FRAMES) for video in (a, b))
    values = msssim_ssim(*frames, data_range=2, size_average=False, win_size=SSIM_WINDOW)
    return values.unflatten(0, (len(a), -1)).mean(1)


@torch.no_grad()
def perceptual_distance(x: Tensor, y: Tensor, network: Perceptual) -> Tensor:
    """Mean perceptual distance of a clip's frames, (B,), on the videos' device; the network may be on another.

    x, y: B 3 T H W in [-1, 1], H and W at least 32.
    """
    a, b = _checked(x, y)
    device = next((parameter.device for parameter in network.parameters()), a.device)
    pairs = zip(*(rearrange(video, _FRAMES).split(_FRAMES_AT_ONCE) for video in (a, b)), strict=True)
    values = torch.cat([network(one.to(device), other.to(device)).to(a.device) for one, other in pairs])
    return values.unflatten(0, (len(a), -1)).mean(1)


def reconstruction_scores(x: Tensor, y: Tensor, perceptual: Perceptual | None = None) -> dict[str, Tensor]:
    """`psnr`, `ssim` and, given a network, `stlpips` or `lpips` of reconstructions `x` of `y`, (B,) each.

    PSNR counts no frame's error as less than that of rounding to 8 bits (58.9 dB): one black frame, which any codec
    reproduces, would make the mean over all frames infinite.
    """
    scores = {"psnr": psnr(x, y, _ROUNDING_ERROR), "ssim": ssim(x, y)}
    if perceptual is not None:
        scores[perceptual.metric] = perceptual_distance(x, y, perceptual)
    return scores


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim != 5:
        raise ValueError(f"expected two equal B C T H W shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    return x.float().clamp(-1, 1), y.float().clamp(-1, 1)
