"""Per-channel statistics of latents, with which diffusion models see them: mean 0 and variance 1 in every channel."""

from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class LatentStats:
    """Mean and standard deviation of each latent channel, float32, shape (c,)."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise UserError(
                f"latent statistics: mean and std need one number a channel, found {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}"
            )
        if not (self.std > 0).all() or not self.mean.isfinite().all() or not self.std.isfinite().all():
            raise UserError("latent statistics: every mean must be finite, every std positive")

    def standardize(self, z: Tensor) -> Tensor:
        """(z - mean) / std per channel, for `b c t h w` in any float dtype, on any device."""
        mean, std = self._like(z)
        return (z - mean) / std

    def unstandardize(self, z: Tensor) -> Tensor:
        """The inverse of `standardize`."""
        mean, std = self._like(z)
        return z * std + mean

    def _like(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.ndim != 5 or z.shape[1] != len(self.mean):
            raise UserError(
                f"latents: expected b c t h w with {len(self.mean)} channels as the latent statistics have, found "
                f"{tuple(z.shape)}"
            )
        return self.mean.to(z)[:, None, None, None], self.std.to(z)[:, None, None, None]
