"""What a comparison measures: the autoencoder once, the transformer at each evaluation step.

    reference = measure_arm(vae.decode, device, heldout, clips, features, config)
    scores, samples = score_generator(DiTGenerator(model, process, config), reference, config, loss_floor)

See `results.py` for the metrics' names. All of it runs on held-out clips with draws that depend on the configuration
alone, so that two arms, and two steps of one arm, differ in the latents and the weights and in nothing else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Config
from ..diffusion.process import DiffusionProcess, guided
from ..diffusion.transformer import DiT
from ..latents.latent_set import LatentSet
from ..metrics.fidelity import reconstruction_scores
from ..metrics.intervals import MIN_VALUES
from ..metrics.kernel_distance import bootstrap_counts, bootstrap_distances, bootstrap_interval, kernel_distance
from ..metrics.perceptual import Perceptual
from ..progress import progress_bar
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

logger = logging.getLogger(__name__)

_RESAMPLES = 200
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
    """Clips that are sampled, decoded and looked at together; it affects memory, not results."""
    shown_clips: int = Field(default=4, gt=0)
    """Clips that the report shows: originals, reconstructions, and samples of each step."""
    seed: int = Field(default=1234, ge=0)
    """Seed of the samples' and the denoising noise, and of the bootstrap."""


class ScoringConfig(EvaluationConfig):
    """The same, and how the comparison's own transformer is sampled."""

    sampler_steps: int = Field(default=20, gt=0)
    """Steps of the sampler."""
    guidance: float = Field(default=1.0, ge=1)
    """Classifier-free guidance of the samples, if clips have captions; 1 is none."""


class Generator(Protocol):
    """A diffusion model as it is scored: of standardised latents `b c t h w`, t (b,) from 0, data, to 1, noise.

    text: states of the captions `b l d`, None without captions; empty: those of no caption `l d`.
    """

    def loss(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """What training minimises, of each latent (b,)."""

    def denoise(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """The estimate of `clean` in one step from its noisy form at t."""

    def sample(self, noise: Tensor, text: Tensor | None, empty: Tensor | None) -> Tensor:
        """Latents generated from noise."""


@dataclass(frozen=True)
class DiTGenerator:
    """The comparison's own transformer, see `Generator`."""

    model: DiT
    process: DiffusionProcess
    config: ScoringConfig

    def loss(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """See `Generator`."""
        return self.process.loss(self._predictor(text), clean, noise, t)

    def denoise(self, clean: Tensor, noise: Tensor, t: Tensor, text: Tensor | None) -> Tensor:
        """See `Generator`."""
        return self.process.denoise(self._predictor(text), self.process.corrupt(clean, noise, t), t)

    def sample(self, noise: Tensor, text: Tensor | None, empty: Tensor | None) -> Tensor:
        """See `Generator`."""
        predict = self._predictor(text)
        if text is not None and empty is not None and self.config.guidance > 1:
            predict = guided(predict, self._predictor(empty.to(text).expand_as(text)), self.config.guidance)
        return self.process.sample(predict, noise, self.config.sampler_steps)

    def _predictor(self, text: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: self.model(x, t, text)


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
    counts = torch.cat(_counts((len(keys[first]), len(keys[second])), config), 1)
    for name in arm.features:
        for to, others in (("real", arm.real), ("reconstruction", arm.own)):
            floor = _distance(arm.own[name][first], others[name][second], config)
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
    _, of_clips = _counts((len(videos), len(keys)), config)
    distances = {}
    for name, network in arm.features.items():
        learnt = network(videos)
        for to, others in (("real", arm.real), ("reconstruction", arm.own)):
            distance = _distance(learnt, others[name], config)
            distances[f"kernel_distance_{to}/{name}"] = over_videos(distance, of_clips.numpy(), list(keys))
    return distances


def gaussian_loss_floor(train: LatentSet, signal_and_noise: NoiseFactors, config: EvaluationConfig) -> float:
    """Loss, mean over noise levels, that the best linear predictor leaves on Gaussian latents of these covariances."""
    eigenvalues = latent_eigenvalues(train.statistics.standardize(train.latents))
    return gaussian_floor(eigenvalues, *signal_and_noise(_loss_levels(config))).mean().item()


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


@torch.no_grad()
def score_generator(
    generator: Generator, arm: ArmReference, config: EvaluationConfig, loss_floor: float
) -> tuple[dict[str, Estimate], Tensor]:
    """All metrics of one evaluation step, and the first generated clips, `shown_clips C T H W` in [-1, 1]."""
    scores: dict[str, Estimate] = {}
    loss = _heldout_loss(generator, arm, config)
    scores["loss"] = mean_estimate(loss)
    scores["loss_above_floor"] = mean_estimate(loss - loss_floor)
    for level in config.noise_levels:
        original, own = _denoising_errors(generator, arm, config, level)
        scores[f"denoising_error_real/{level:g}"] = mean_estimate(original)
        scores[f"denoising_error_reconstruction/{level:g}"] = mean_estimate(own)
    samples = _samples(generator, arm, config)
    for name, network in arm.features.items():
        generated = network(samples)
        scores[f"kernel_distance_real/{name}"] = _distance(generated, arm.real[name], config)
        scores[f"kernel_distance_reconstruction/{name}"] = _distance(generated, arm.own[name], config)
    return scores, samples[: config.shown_clips]


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of (N,) values with its 95 % interval over clips (normal approximation) and its bootstrap resamples."""
    mean, margin = values.double().mean().item(), 1.96 * values.double().std().item() / len(values) ** 0.5
    resamples = values.double().cpu()[_mean_draws(len(values))].mean(1).tolist()
    return Estimate(mean, mean - margin, mean + margin, tuple(resamples))


def scores_over_videos(
    scores: Mapping[str, Estimate], arm: ArmReference, config: EvaluationConfig
) -> dict[str, Estimate]:
    """What `score_generator` measured, with resamples and intervals over videos in place of clips (`clusters.py`).

    Samples are independent draws; with captions, those of a video's captions belong to that video.
    """
    keys = arm.heldout.keys
    chosen = denoising_clips(arm, config)
    of_means = nn.functional.one_hot(_mean_draws(len(chosen)), len(chosen)).sum(1).double()
    of_samples, of_clips = _counts((config.samples, len(keys)), config)
    of_distances, compared_clips = of_clips, list(keys)
    if arm.text is not None:
        of_distances = torch.cat([of_samples, of_clips], 1)
        compared_clips = [*(keys[i % len(keys)] for i in range(config.samples)), *keys]
    denoised = [keys[clip] for clip in chosen.tolist()]
    again = {}
    for metric, estimate in scores.items():
        distance = metric.startswith("kernel_distance")
        counts, clips = (of_distances, compared_clips) if distance else (of_means, denoised)
        again[metric] = over_videos(estimate, counts.numpy(), clips)
    return again


def _mean_draws(count: int) -> Tensor:
    """The clips that each resample of a mean draws, (resamples, count)."""
    return torch.randint(count, (_RESAMPLES, count), generator=torch.Generator().manual_seed(0))


def _counts(sizes: tuple[int, int], config: EvaluationConfig) -> tuple[Tensor, Tensor]:
    """How often each resample of a kernel distance draws each sample of its two sets."""
    return bootstrap_counts(sizes, seed=config.seed, resamples=_RESAMPLES)


def _distance(x: Tensor, y: Tensor, config: EvaluationConfig) -> Estimate:
    resamples = bootstrap_distances(x, y, seed=config.seed, resamples=_RESAMPLES).tolist()
    return Estimate(kernel_distance(x, y), *bootstrap_interval(x, y, seed=config.seed), tuple(resamples))


def _heldout_loss(generator: Generator, arm: ArmReference, config: EvaluationConfig) -> Tensor:
    """Mean loss of each held-out latent over evenly spaced noise levels, (n,)."""
    clean, noise = standardised(arm, config)
    losses = []
    for level in _loss_levels(config).to(clean.device):
        parts = _parts(arm, denoising_clips(arm, config), config)
        losses.append(
            torch.cat(
                [generator.loss(clean[part], noise[part], level.expand(len(clean[part])), text) for part, text in parts]
            )
        )
    return torch.stack(losses).mean(0).cpu()


def _denoising_errors(
    generator: Generator, arm: ArmReference, config: EvaluationConfig, level: float
) -> tuple[Tensor, Tensor]:
    """Mean squared pixel error of the decoded one-step estimate to original and reconstruction, (n,) each.

    level: of the baseline; see `ArmReference.noise_levels`.
    """
    clean, noise = standardised(arm, config)
    chosen = denoising_clips(arm, config)
    to_original, to_own = [], []
    for part, text in _parts(arm, chosen, config):
        t = torch.full((len(clean[part]),), arm.noise_levels.get(level, level), device=clean.device)
        video = decode_standardised(arm, generator.denoise(clean[part], noise[part], t, text))
        to_original.append((video - arm.clips[chosen[part]]).square().flatten(1).mean(1))
        to_own.append((video - arm.reconstructions[chosen[part]]).square().flatten(1).mean(1))
    return torch.cat(to_original), torch.cat(to_own)


def _samples(generator: Generator, arm: ArmReference, config: EvaluationConfig) -> Tensor:
    """Generated clips, N C T H W in [-1, 1], on the CPU."""
    draws = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.samples, *arm.heldout.shape, generator=draws).to(arm.device)
    empty = None if arm.text is None else arm.text.empty
    videos = []
    with progress_bar(config.samples, "sampling", "clip") as bar:
        for part, text in _parts(arm, torch.arange(config.samples) % len(arm.heldout), config):
            latents = generator.sample(noise[part], text, empty)
            videos.append(decode_standardised(arm, latents))
            bar.update(len(latents))
    return torch.cat(videos)


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


def _parts(arm: ArmReference, clips: Tensor, config: EvaluationConfig) -> Sequence[tuple[slice, Tensor | None]]:
    """Slices of at most `batch_size`, with the captions of the held-out `clips` (numbers) in them."""
    parts = []
    for start in range(0, len(clips), config.batch_size):
        part = slice(start, min(start + config.batch_size, len(clips)))
        text = None if arm.text is None else arm.text[clips[part]].to(arm.device)
        parts.append((part, text))
    return parts


def decode_standardised(arm: ArmReference, latents: Tensor) -> Tensor:
    """Videos `N C T H W` in [-1, 1], on the CPU, of latents as the transformer sees them."""
    return arm.decode(arm.heldout.statistics.unstandardize(latents)).float().clamp(-1, 1).cpu()


def _loss_levels(config: EvaluationConfig) -> Tensor:
    return (torch.arange(config.loss_levels) + 0.5) / config.loss_levels
