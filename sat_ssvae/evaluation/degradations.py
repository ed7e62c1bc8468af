"""Controlled degradations of a video, to measure how well it can be restored.

    degrade = Degradation.parse("noise:25")
    degraded = degrade(video, fps=8, generator=generator)        # C T H W in [-1, 1]

`noise:SIGMA` adds Gaussian noise of SIGMA of 255 grey levels to every pixel; `blur:FACTOR` scales down by FACTOR and up
again (bicubic, anti-aliased); `compress:CRF` is a round trip through H.264 at that constant rate factor, 0 to 51.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.video_io import encode_h264, read_frames, to_uint8, to_unit_range
from ..errors import UserError

_RANGES = {"noise": (0.0, 255.0), "blur": (1.0, 64.0), "compress": (0.0, 51.0)}


class Degradation(NamedTuple):
    """A kind and its strength."""

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """From `KIND:AMOUNT`.

        Raises:
            UserError: unknown kind, or an amount out of its range.
        """
        kind, _, amount = text.partition(":")
        low, high = _RANGES.get(kind, (0.0, 0.0))
        try:
            value = float(amount)
        except ValueError:
            value = -1.0
        if kind not in _RANGES or not low <= value <= high:
            known = ", ".join(f"{name}:{low:g}..{high:g}" for name, (low, high) in _RANGES.items())
            raise UserError(f"degradation `{text}`: expected KIND:AMOUNT, one of {known}")
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}"

    def __call__(self, video: Tensor, fps: float, generator: torch.Generator) -> Tensor:
        """The degraded video, like `video` `C T H W` float32 in [-1, 1]; `generator` draws the noise."""
        if self.kind == "noise":
            noise = torch.randn(video.shape, generator=generator)
            return (video + noise * (self.amount / 127.5)).clamp(-1, 1)
        return self._blurred(video) if self.kind == "blur" else self._compressed(video, fps)

    def _blurred(self, video: Tensor) -> Tensor:
        size = video.shape[-2:]
        small = [max(1, round(pixels / self.amount)) for pixels in size]
        frames = F.interpolate(video.transpose(0, 1), size=small, mode="bicubic", antialias=True)
        return F.interpolate(frames, size=size, mode="bicubic").transpose(0, 1).clamp(-1, 1)

    def _compressed(self, video: Tensor, fps: float) -> Tensor:
        pictures = to_uint8(video).permute(1, 2, 3, 0).numpy()
        data = encode_h264(pictures, fps, crf=round(self.amount))
        height, width = video.shape[-2:]  # the codec makes odd sizes even
        frames = [torch.from_numpy(frame.picture[:height, :width].copy()) for frame in read_frames(data)]
        return to_unit_range(torch.stack(frames)).permute(3, 0, 1, 2)
