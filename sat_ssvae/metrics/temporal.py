"""How a video changes from frame to frame, without a network: amount of motion, its smoothness, and flicker.

Videos are `B 3 T H W` in [-1, 1], measured on luma (Rec. 709) in grey levels, 0 to 255. The values depend on the frame
rate and on the content: compare videos of one rate and of the same prompts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.2126, 0.7152, 0.0722)
_GRID = 8
"""Flicker is measured on the mean brightness of GRID x GRID parts of a frame, which motion hardly changes."""
_SHORT_SIDE, _BLOCK, _REACH = 128, 8, 8
"""Smoothness: frames are scaled down to this short side, and blocks of this side move at most this far, in pixels."""
_ROUNDING_ERROR = 1 / 12
"""Mean square, in grey levels, of the error of rounding to 8 bits: the least error that counts."""


def motion(video: Tensor) -> Tensor:
    """Mean absolute change of a pixel from one frame to the next, in grey levels, (B,); T at least 2."""
    return _luma(video, 2).diff(dim=1).abs().mean((1, 2, 3))


def flicker(video: Tensor) -> Tensor:
    """Mean distance of a region's brightness from the mean of the frames before and after, in grey levels, (B,).

    A region is a cell of an 8 x 8 grid. Steady fades give 0, brightness that alternates by a gives a. T at least 3.
    """
    regions = F.adaptive_avg_pool2d(_luma(video, 3), _GRID)
    return (regions[:, 1:-1] - (regions[:, :-2] + regions[:, 2:]) / 2).abs().mean((1, 2, 3))


def smoothness(video: Tensor) -> Tensor:
    """PSNR in dB, (B,), of the frames as predicted from their two neighbours by uniform motion; T at least 3.

    Frames are scaled to a short side of at most 128 pixels. Each block of 8 x 8 pixels is the mean of the blocks at -d
    in the frame before and at +d in the frame after, for the best displacement d of at most 8 pixels; the outermost 8
    pixels, where objects come into view, do not count. The error of rounding to 8 bits bounds the value: a still video
    has 58.9.
    """
    frames = _luma(video, 3)
    scale = _SHORT_SIDE / min(frames.shape[-2:])
    if scale < 1:
        size = tuple(round(side * scale) for side in frames.shape[-2:])
        frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)
    height, width = (side - 2 * _REACH for side in frames.shape[-2:])
    if min(height, width) < _BLOCK:
        raise ValueError(f"smoothness needs frames of at least {2 * _REACH + _BLOCK} pixels a side")
    before, middle, after = frames[:, :-2], frames[:, 1:-1, _REACH:-_REACH, _REACH:-_REACH], frames[:, 2:]
    least: Tensor | None = None
    for y in range(-_REACH, _REACH + 1):
        for x in range(-_REACH, _REACH + 1):
            came = before[..., _REACH - y : _REACH - y + height, _REACH - x : _REACH - x + width]
            goes = after[..., _REACH + y : _REACH + y + height, _REACH + x : _REACH + x + width]
            error = F.avg_pool2d((middle - (came + goes) / 2).square(), _BLOCK)
            least = error if least is None else torch.minimum(least, error)
    assert least is not None
    return 10 * torch.log10(255**2 / least.mean((1, 2, 3)).clamp_min(_ROUNDING_ERROR))


def _luma(video: Tensor, frames: int) -> Tensor:
    """Grey levels `B T H W`."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < frames:
        raise ValueError(f"expected video B 3 T H W with T at least {frames}, got {tuple(video.shape)}")
    weights = torch.tensor(_LUMA, device=video.device).view(3, 1, 1, 1)
    return ((video.float().clamp(-1, 1) + 1) * 127.5 * weights).sum(1)
