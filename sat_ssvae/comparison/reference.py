"""An autoencoder as a comparison measures it, once: what its transformer is scored against, and what it costs.

    reference = measure_arm(vae.decode, device, heldout, clips, features, config)
    result = arm_result("ssvae", reference, train, reconstruction_quality(reference, perceptual), config, loss_floor)

`scoring.py` measures the transformer at each evaluation step, with the draws that are here: they depend on the
configuration alone, so that two arms differ in their latents and in nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Config
from ..latents.latent_set import LatentSet
from ..metrics.fidelity import reconstruction_scores
from ..metrics.intervals import MIN_VALUES
from ..metrics.kernel_distance import bootstrap_counts, bootstrap_distances, bootstrap_interval, kernel_distance
from ..metrics.perceptual import Perceptual
from ..spacing import evenly_spaced
from ..spectral.correlation import local_correlation
from ..spectral.spectrum import (
    channel_eigenvalues,
    cumulative_explained_variance,
    dct_amplitude,
    gaussian_floor,
    latent_eigenvalues,
    spatial_spectrum,
)
from .analysis import paired_difference
from .clusters import mean_over_videos, over_videos, video_numbers
from .results import ABOVE_MEAN_COLOUR, ArmResult, Estimate

if TYPE_CHECKING:
    from ..diffusion.text import CaptionStates

RESAMPLES = 200
"""Bootstrap resamples of the clips kept with each score: the same clips for every arm, seed and step."""


Features = Mapping[str, nn.Module]
"""Feature networks by the name that their metrics carry."""


NoiseFactors = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Factors of data and noise at noise levels (n,), each (n,)."""


class EvaluationConfig(Config):
    """How many clips and samples are scored. More of them narrow the intervals."""

    samples: int = Field(default=128, ge=4)
    """Clips generated at each evaluation step."""
    denoising_clips: int = Field(default=48, ge=2)
    """Held-out clips whose one-step denoising error is measured."""
    noise_levels: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Noise levels t of the denoising error, in the baseline's latents. Other arms are denoised at the levels at which
    the best linear predictor leaves as large an error in pixels."""
    loss_levels: int = Field(default=16, gt=0)
    """Evenly spaced noise levels over which the held-out loss is averaged."""
    batch_size: int = Field(default=32, gt=0)
    """Clips that are sampled, decoded and measured together; it affects memory, not results."""
    shown_clips: int = Field(default=4, gt=0)
    """Clips that the report shows: originals, reconstructions, and samples of each step."""
    seed: int = Field(default=1234, ge=0)
    """Seed of the samples' and the denoising noise, and of the bootstrap."""


@dataclass(frozen=True)
class ArmReference:
    """An autoencoder and what its transformer is scored against."""

    decode: Callable[[Tensor], Tensor]
    """Video `B C T H W` of latents `b c t h w` as they are in `heldout`."""
    device: torch.device
    """Where it decodes and the transformer is."""
    heldout: LatentSet
    clips: Tensor
    """Held-out clips, N C T H W in [-1, 1]."""
    reconstructions: Tensor
    """The same through the autoencoder, cut to [-1, 1]."""
    features: Features
    real: dict[str, Tensor]
    """Features of the clips, by network: (N, D)."""
    own: dict[str, Tensor]
    """Features of the reconstructions, by network."""
    text: "CaptionStates | None" = None
    """Captions of the held-out clips, if the transformer is trained with text."""
    noise_levels: Mapping[float, float] = field(default_factory=dict)
    """Level at which this arm is denoised, by the level of the baseline that it corresponds to, see
    `matched_noise.py`; levels that are not in it are taken as they are."""


@torch.no_grad()
def measure_arm(
    decode: Callable[[Tensor], Tensor],
    device: torch.device,
    heldout: LatentSet,
    clips: Tensor,
    features: Features,
    config: EvaluationConfig,
    text: "CaptionStates | None" = None,
) -> ArmReference:
    """Reconstruct the held-out clips and take the features of both; see `ArmReference`."""
    videos = [decode(part.to(device)).float().cpu() for part in heldout.latents.split(config.batch_size)]
    reconstructions = torch.cat(videos).clamp(-1, 1)
    real, own = ({name: network(videos) for name, network in features.items()} for videos in (clips, reconstructions))
    return ArmReference(decode, device, heldout, clips, reconstructions, features, real, own, text)


def reconstruction_quality(arm: ArmReference, perceptual: Perceptual) -> dict[str, Tensor]:
    """PSNR, also above the mean colour's, SSIM and perceptual distance of each held-out clip, (N,) by metric."""
    scores = reconstruction_scores(arm.reconstructions, arm.clips, perceptual)
    flat = arm.clips.mean((2, 3, 4), keepdim=True).expand_as(arm.clips)
    return scores | {ABOVE_MEAN_COLOUR: scores["psnr"] - reconstruction_scores(flat, arm.clips)["psnr"]}


def distance_floors(arm: ArmReference, config: EvaluationConfig) -> dict[str, Estimate]:
    """Distances that a perfect generator on this autoencoder would reach, by metric.

    Reconstructions of one half of the held-out clips are compared with the other half of the clips: a generator's
    samples have no originals among the real clips either.
    """
    floors: dict[str, Estimate] = {}
    first, second = slice(0, None, 2), slice(1, None, 2)
    keys = arm.heldout.keys
    halves = [*keys[first], *keys[second]]
    counts = torch.cat(resample_counts((len(keys[first]), len(keys[second])), config), 1)
    for name in arm.features:
        for to, others in (("real", arm.real), ("reconstruction", arm.own)):
            floor = kernel_estimate(arm.own[name][first], others[name][second], config)
            floors[f"kernel_distance_{to}/{name}"] = over_videos(floor, counts.numpy(), halves)
    chosen = denoising_clips(arm, config)
    error = (arm.reconstructions - arm.clips)[chosen].square().flatten(1).mean(1)
    estimate = mean_over_videos(error.tolist(), [keys[clip] for clip in chosen.tolist()])
    return floors | {f"denoising_error_real/{level:g}": estimate for level in config.noise_levels}


@torch.no_grad()
def training_distances(arm: ArmReference, train: LatentSet, config: EvaluationConfig) -> dict[str, Estimate]:
    """Distances of training clips, reconstructed, to the held-out ones, by metric; none of fewer than four clips.

    A transformer that generates its training clips perfectly scores this, whatever the latents are. It is above
    `distance_floors` if the splits show different scenes.
    """
    if len(train) < MIN_VALUES:
        return {}
    chosen = train.latents[evenly_spaced(len(train), config.samples)]
    parts = [arm.decode(part.to(arm.device)).float().clamp(-1, 1).cpu() for part in chosen.split(config.batch_size)]
    videos, keys = torch.cat(parts), arm.heldout.keys
    _, of_clips = resample_counts((len(videos), len(keys)), config)
    distances = {}
    for name, network in arm.features.items():
        learnt = network(videos)
        for to, others in (("real", arm.real), ("reconstruction", arm.own)):
            distance = kernel_estimate(learnt, others[name], config)
            distances[f"kernel_distance_{to}/{name}"] = over_videos(distance, of_clips.numpy(), list(keys))
    return distances


def gaussian_loss_floor(train: LatentSet, signal_and_noise: NoiseFactors, config: EvaluationConfig) -> float:
    """Loss, mean over noise levels, that the best linear predictor leaves on Gaussian latents of these covariances."""
    eigenvalues = latent_eigenvalues(train.statistics.standardize(train.latents))
    return gaussian_floor(eigenvalues, *signal_and_noise(loss_levels(config))).mean().item()


def arm_result(
    name: str,
    arm: ArmReference,
    train: LatentSet,
    quality: Mapping[str, Tensor],
    config: EvaluationConfig,
    loss_floor: float,
) -> ArmResult:
    """What was measured on an autoencoder alone, without its description; `compared` adds what needs the baseline."""
    correlation = local_correlation(train.latents).mean
    reconstruction = {metric: mean_over_videos(values.tolist(), arm.heldout.keys) for metric, values in quality.items()}
    if correlation is not None:
        reconstruction["local correlation"] = Estimate(correlation.item())
    spectrum = spatial_spectrum(train.latents, (arm.clips.shape[-2], arm.clips.shape[-1]))
    loss_floors = {"loss": Estimate(loss_floor), "loss_above_floor": Estimate(0.0)}
    return ArmResult(
        name=name,
        vae={},
        training={},
        reconstruction=reconstruction,
        floors=distance_floors(arm, config) | loss_floors,
        training_distances=training_distances(arm, train, config),
        dct_amplitude=tuple(dct_amplitude(train.latents).tolist()),
        explained_variance=tuple(cumulative_explained_variance(channel_eigenvalues(train.latents)).tolist()),
        reconstruction_difference={},
        spatial_spectrum=tuple(zip(spectrum.frequency.tolist(), spectrum.mean.tolist(), strict=True)),
    )


def compared(
    result: ArmResult, quality: Mapping[str, Tensor], baseline: Mapping[str, Tensor], keys: Sequence[str] = ()
) -> ArmResult:
    """The arm with its reconstruction's difference to the baseline's, clip by clip; none for the baseline itself.

    keys: of the clips, `VIDEO@START`; without, they are independent.
    """
    if quality is baseline:
        return result
    names = [name for name in quality if name != ABOVE_MEAN_COLOUR]  # its difference is that of `psnr`
    videos = video_numbers(keys)
    difference = {name: paired_difference(quality[name].tolist(), baseline[name].tolist(), videos) for name in names}
    return replace(result, reconstruction_difference=difference)


def resample_counts(sizes: tuple[int, int], config: EvaluationConfig) -> tuple[Tensor, Tensor]:
    """How often each resample of a kernel distance draws each sample of its two sets."""
    return bootstrap_counts(sizes, seed=config.seed, resamples=RESAMPLES)


def kernel_estimate(x: Tensor, y: Tensor, config: EvaluationConfig) -> Estimate:
    """The kernel distance of features (n, D) and (m, D), with its interval and its bootstrap resamples."""
    resamples = bootstrap_distances(x, y, seed=config.seed, resamples=RESAMPLES).tolist()
    return Estimate(kernel_distance(x, y), *bootstrap_interval(x, y, seed=config.seed), tuple(resamples))


def denoising_clips(arm: ArmReference, config: EvaluationConfig) -> Tensor:
    """Numbers of the held-out clips that are denoised, evenly spread: neighbours show the same scene."""
    return torch.tensor(evenly_spaced(len(arm.heldout), config.denoising_clips))


def standardised(arm: ArmReference, config: EvaluationConfig) -> tuple[Tensor, Tensor]:
    """The latents to denoise as the transformer sees them, and their fixed noise."""
    clean = arm.heldout.statistics.standardize(arm.heldout.latents[denoising_clips(arm, config)])
    generator = torch.Generator().manual_seed(config.seed + 1)
    noise = torch.randn(clean.shape, generator=generator)
    device = arm.device
    return clean.to(device), noise.to(device)


def decode_standardised(arm: ArmReference, latents: Tensor) -> Tensor:
    """Videos `N C T H W` in [-1, 1], on the CPU, of latents as the transformer sees them."""
    return arm.decode(arm.heldout.statistics.unstandardize(latents)).float().clamp(-1, 1).cpu()


def loss_levels(config: EvaluationConfig) -> Tensor:
    """The noise levels over which losses are averaged."""
    return (torch.arange(config.loss_levels) + 0.5) / config.loss_levels
