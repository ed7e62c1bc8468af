"""Per-channel statistics of latents: diffusion models are given latents of mean 0 and variance 1 in every channel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation of each latent channel, float32, shape (c,); or of each latent frame, too, (c, t).

    Raises:
        UserError: the shapes differ, or a value is not a finite number (or a std negative).
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim not in (1, 2) or self.mean.shape != self.std.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            raise UserError(f"latent statistics: mean and std need one number per channel, found shapes {shapes}")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std >= 0).all()):
            raise UserError("latent statistics: every number must be finite and no std negative")

    @classmethod
    def measure(cls, latents: Tensor) -> "LatentStats":
        """Statistics of latents `N c t h w` over everything but the channel (population standard deviation)."""
        meter = StatsMeter(latents.shape[1])
        meter.add(latents)
        return meter.result()

    def standardize(self, z: Tensor) -> Tensor:
        """(z - mean) / std per channel for latents `b c t h w`, in their dtype. A constant channel becomes 0."""
        mean, std = self._columns(z)
        return (z - mean) / std

    def unstandardize(self, z: Tensor) -> Tensor:
        """The inverse of `standardize`: back to the autoencoder's latents."""
        mean, std = self._columns(z)
        return z * std + mean

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.ndim != 5 or like.shape[1] != len(self.mean):
            shape = tuple(like.shape)
            raise UserError(
                f"latents: the statistics are those of b c t h w with {len(self.mean)} channels, found {shape}"
            )
        floor = max(torch.finfo(torch.float32).tiny ** 0.5, torch.finfo(like.dtype).tiny)  # float16 has no such small
        frames = like.shape[2]
        mean, std = (value.to(like).reshape(len(value), -1, 1, 1) for value in (self.mean, self.std.clamp(min=floor)))
        if frames > mean.shape[1] > 1:
            raise UserError(f"latents of {frames} frames: the statistics are those of {mean.shape[1]}")
        return mean[:, :frames], std[:, :frames]


class StatsMeter:
    """Statistics of more latents than fit in memory, batch by batch, in double precision."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # summed squares of deviations from the mean

    def add(self, latents: Tensor) -> None:
        """Take in latents `N c t h w`."""
        if not latents.isfinite().all():
            raise UserError(
                "latents that are not finite: the autoencoder's weights are damaged, or its training diverged"
            )
        # Channel by channel, so that double precision does not need a second copy of all latents.
        channels = [channel.double() for channel in latents.detach().transpose(0, 1).flatten(1).cpu()]
        count = len(channels[0])
        mean = torch.stack([channel.mean() for channel in channels])
        self._combine(count, mean, torch.stack([channel.var(correction=0) for channel in channels]) * count)

    def sums(self) -> tuple[int, list[float], list[float]]:
        """Count, means and summed squares of deviations so far, for `add_sums` of another meter."""
        return self._count, self._mean.tolist(), self._squares.tolist()

    def add_sums(self, count: int, mean: Sequence[float], squares: Sequence[float]) -> None:
        """Take in what another meter measured. In the same order, the same sums give the same bits."""
        self._combine(count, *(torch.tensor(values, dtype=torch.float64) for values in (mean, squares)))

    def _combine(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not count:
            return
        # Chan, Golub and LeVeque (1979): combines two parts without the cancellation of summed squares.
        total = self._count + count
        shift = mean - self._mean
        self._mean += shift * (count / total)
        self._squares += squares + shift.square() * (self._count * count / total)
        self._count = total

    def result(self) -> LatentStats:
        """Of all that was added.

        Raises:
            UserError: nothing was added.
        """
        if not self._count:
            raise UserError("no clips to measure latents on; is the folder of videos empty, or are they too short?")
        return LatentStats(self._mean.float(), (self._squares / self._count).sqrt().float())
