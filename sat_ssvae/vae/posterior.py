"""The diagonal Gaussian that the encoder predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)
"""Bounds of the log-variance (published)."""


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mean, exp(logvar)), both `b c t h w`."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Posterior":
        """Split the encoder's output `b 2c t h w` and bound the log-variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    def moments(self) -> Tensor:
        """Mean and log-variance stacked on channels, `b 2c t h w`."""
        return torch.cat([self.mean, self.logvar], dim=1)

    @classmethod
    def cat(cls, posteriors: Sequence["Posterior"]) -> "Posterior":
        """One posterior of consecutive latent frames."""
        return cls(
            torch.cat([posterior.mean for posterior in posteriors], dim=2),
            torch.cat([posterior.logvar for posterior in posteriors], dim=2),
        )

    @property
    def std(self) -> Tensor:
        """Standard deviation, `b c t h w`."""
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """The most likely latent: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a latent, mean + std * eps; eps comes from `generator`, or from torch's default one."""
        mean = self.mean
        eps = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * eps

    def kl(self) -> Tensor:
        """KL divergence to N(0, I), summed over all elements of each sample, in float32: shape (b,)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(dim=1)
