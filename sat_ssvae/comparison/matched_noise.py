"""Noise levels at which two latent spaces are equally hard to denoise for the best linear predictor.

    wanted = {0.5: linear_errors(baseline_train, baseline, noise_factors, config)(0.5)}
    levels = equivalent_levels(linear_errors(train, arm, noise_factors, config), wanted)
    # {0.5: 0.62}: at t = 0.62 this arm's latents have lost as much as the baseline's at t = 0.5

Standardised latents of equal variance are not equally noisy at the same t: those with a steep spectrum keep their large
components where those with a flat one have lost everything. Noise levels are therefore matched in pixels: by the error
of the decoded linear prediction against the autoencoder's own reconstruction.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..latents.latent_set import LatentSet
from ..spectral.spectrum import dct3, frequency_covariance, inverse_dct3
from ..storage import write_text
from .reference import ArmReference, EvaluationConfig, NoiseFactors, decode_standardised, denoising_clips, standardised

_GRID = 14
"""Levels at which an error is measured, from `_SMALLEST` to 1 - `_SMALLEST`."""
_SMALLEST = 0.02
_DECIMALS = 3
"""Of a level: finer than its measurement, and the same on every machine that resumes a comparison."""


@dataclass(frozen=True)
class LinearDenoiser:
    """The best linear predictor of clean latents that treats the frequencies of a 3-D DCT separately."""

    mean: Tensor
    """Of the coefficients, `c t h w`."""
    variances: Tensor
    """Eigenvalues of the channels' covariance at each frequency, (t h w, c)."""
    directions: Tensor
    """Their eigenvectors, (t h w, c, c), as columns."""

    @classmethod
    def fit(cls, latents: Tensor) -> "LinearDenoiser":
        """On standardised training latents `N c t h w`."""
        mean, covariance = frequency_covariance(latents)
        variances, directions = torch.linalg.eigh(covariance)
        return cls(mean, variances.clamp_min(0), directions)

    def __call__(self, noisy: Tensor, signal: float, noise: float) -> Tensor:
        """The clean latents `N c t h w` of signal * clean + noise * white, in the dtype of `noisy`."""
        coefficients = (dct3(noisy.double()) - signal * self.mean).flatten(2)
        along = torch.einsum("kcd,nck->nkd", self.directions, coefficients)
        gain = signal * self.variances / (signal**2 * self.variances + noise**2)
        kept = torch.einsum("kcd,nkd->nck", self.directions, gain * along)
        return inverse_dct3(kept.unflatten(2, self.mean.shape[1:]) + self.mean).to(noisy.dtype)


def linear_errors(
    train: LatentSet, arm: ArmReference, noise_factors: NoiseFactors, config: EvaluationConfig
) -> Callable[[float], float]:
    """Noise level -> decoded squared error of the linear predictor to the arm's own reconstructions."""
    denoiser = LinearDenoiser.fit(train.statistics.standardize(train.latents))
    clean, noise = (x.cpu() for x in standardised(arm, config))
    own = arm.reconstructions[denoising_clips(arm, config)]

    @torch.no_grad()
    def error(level: float) -> float:
        signal, sigma = (factor.item() for factor in noise_factors(torch.tensor([level])))
        estimate = denoiser(signal * clean + sigma * noise, signal, sigma)
        parts = estimate.to(arm.device).split(config.batch_size)
        return (torch.cat([decode_standardised(arm, part) for part in parts]) - own).square().mean().item()

    return error


def equivalent_levels(error: Callable[[float], float], wanted: Mapping[float, float]) -> dict[float, float]:
    """The level at which `error` reaches each wanted value, by the level that the value belongs to.

    `error` rises with the level; `wanted` errors are those of the baseline's levels. One out of range gets the
    nearest end.
    """
    levels = np.linspace(_SMALLEST, 1 - _SMALLEST, _GRID)
    errors = np.maximum.accumulate([max(error(float(level)), 1e-12) for level in levels])
    return {
        level: round(float(np.interp(np.log(max(value, 1e-12)), np.log(errors), levels)), _DECIMALS)
        for level, value in wanted.items()
    }


def kept_levels(file: Path, error: Callable[[float], float], wanted: Mapping[float, float]) -> dict[float, float]:
    """`equivalent_levels`, cached in `file`: measured again, they might differ by rounding."""
    if not file.exists():
        levels = equivalent_levels(error, wanted)
        write_text(file, json.dumps({f"{level:g}": value for level, value in levels.items()}))
    return {float(level): value for level, value in json.loads(file.read_text()).items()}
