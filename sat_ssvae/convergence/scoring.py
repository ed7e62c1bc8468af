"""What a comparison measures: the autoencoder once, the transformer at each evaluation step.

    reference = measure_arm(vae, clips, train, heldout, features, config, process, device)
    points = score_transformer(model, reference, config, process, device)

See `results.py` for the metrics' names. All of it runs on held-out clips with draws that depend on the configuration
alone, so that two arms, and two steps of one arm, differ in the latents and the weights and in nothing else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from ..config import Config
from ..evaluation.autoencoders import VideoAutoencoder
from ..evaluation.kernel_distance import bootstrap_distances, bootstrap_interval, kernel_distance
from ..evaluation.metrics import reconstruction_scores
from ..progress import progress_bar
from ..spectral.spectrum import latent_eigenvalues
from ..training.perceptual import Perceptual
from .diffusion import DiffusionProcess, guided
from .dit import DiT
from .latents import LatentSet
from .results import Estimate

if TYPE_CHECKING:
    from .text import CaptionStates

logger = logging.getLogger(__name__)

_RESAMPLES = 200
"""Bootstrap resamples of the clips kept with each score: the same clips for every arm, seed and step."""

Features = Mapping[str, nn.Module]
"""Feature networks by the name that their metrics carry."""


class ScoringConfig(Config):
    """How many clips and samples are scored. More of them narrow the intervals."""

    samples: int = Field(default=128, ge=4)
    """Clips generated at each evaluation step."""
    sampler_steps: int = Field(default=20, gt=0)
    """Steps of the sampler."""
    denoising_clips: int = Field(default=48, ge=2)
    """Held-out clips whose one-step denoising error is measured."""
    noise_levels: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Noise levels t of the denoising error."""
    loss_levels: int = Field(default=16, gt=0)
    """Evenly spaced noise levels over which the held-out loss is averaged."""
    batch_size: int = Field(default=32, gt=0)
    """Clips that are sampled, decoded and looked at together; memory, not results, depends on it."""
    guidance: float = Field(default=1.0, ge=1)
    """Classifier-free guidance of the samples, where clips have captions; 1 is none."""
    shown_clips: int = Field(default=4, gt=0)
    """Clips that the report shows: originals, reconstructions, and samples of each step."""
    seed: int = Field(default=1234, ge=0)
    """Noise of samples and of denoising, and the bootstrap."""


@dataclass(frozen=True)
class ArmReference:
    """An autoencoder and what its transformer is scored against."""

    vae: VideoAutoencoder
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
    """Captions of the held-out clips, where the transformer is trained with text."""


@torch.no_grad()
def measure_arm(
    vae: VideoAutoencoder,
    heldout: LatentSet,
    clips: Tensor,
    features: Features,
    config: ScoringConfig,
    text: "CaptionStates | None" = None,
) -> ArmReference:
    """Reconstruct the held-out clips and take the features of both."""
    decoded = [vae.decode(part.to(_device(vae))).float().cpu() for part in heldout.latents.split(config.batch_size)]
    reconstructions = torch.cat(decoded).clamp(-1, 1)
    real, own = ({name: network(videos) for name, network in features.items()} for videos in (clips, reconstructions))
    return ArmReference(vae, heldout, clips, reconstructions, features, real, own, text)


def reconstruction_quality(arm: ArmReference, perceptual: Perceptual) -> dict[str, Tensor]:
    """PSNR, SSIM and perceptual distance of each held-out clip, (N,) by metric."""
    return reconstruction_scores(arm.reconstructions, arm.clips, perceptual)


def distance_floors(arm: ArmReference, config: ScoringConfig) -> dict[str, Estimate]:
    """Distances that a perfect generator on this autoencoder would reach, by metric.

    Reconstructions of one half of the held-out clips are compared with the other half of the clips: a generator's
    samples have no originals among the real clips either.
    """
    floors = {}
    first, second = slice(0, None, 2), slice(1, None, 2)
    for name in arm.features:
        floors[f"kernel_distance_real/{name}"] = _distance(arm.own[name][first], arm.real[name][second], config)
        floors[f"kernel_distance_reconstruction/{name}"] = _distance(
            arm.own[name][first], arm.own[name][second], config
        )
    chosen = _denoising_clips(arm, config)
    error = (arm.reconstructions - arm.clips)[chosen].square().flatten(1).mean(1)
    for level in config.noise_levels:
        floors[f"denoising_error_real/{level:g}"] = mean_estimate(error)
    return floors


def gaussian_loss_floor(train: LatentSet, process: DiffusionProcess, config: ScoringConfig) -> float:
    """Loss that the best linear predictor leaves on Gaussian latents with these latents' covariance.

    For x_t = a x_0 + s e, an eigenvalue l leaves l / (a^2 l + s^2): of the velocity e - x_0 when a + s = 1 (flow
    matching, `measuring_convergence` item 3) it is the same expression as of v = a e - s x_0 when a^2 + s^2 = 1.
    """
    eigenvalues = latent_eigenvalues(train.standardize(train.latents)).clamp_min(0)
    signal, noise = process.signal_and_noise(_loss_levels(config))
    signal, noise = signal.double()[:, None], noise.double()[:, None]
    return (eigenvalues / (signal.square() * eigenvalues + noise.square())).mean().item()


@torch.no_grad()
def score_transformer(
    model: DiT, arm: ArmReference, config: ScoringConfig, process: DiffusionProcess, loss_floor: float
) -> tuple[dict[str, Estimate], Tensor]:
    """All metrics of one evaluation step, and the first generated clips, `shown_clips C T H W` in [-1, 1]."""
    scores: dict[str, Estimate] = {}
    loss = _heldout_loss(model, arm, config, process)
    scores["loss"] = mean_estimate(loss)
    scores["loss_above_floor"] = mean_estimate(loss - loss_floor)
    for level in config.noise_levels:
        original, own = _denoising_errors(model, arm, config, process, level)
        scores[f"denoising_error_real/{level:g}"] = mean_estimate(original)
        scores[f"denoising_error_reconstruction/{level:g}"] = mean_estimate(own)
    samples = _samples(model, arm, config, process)
    for name, network in arm.features.items():
        generated = network(samples)
        scores[f"kernel_distance_real/{name}"] = _distance(generated, arm.real[name], config)
        scores[f"kernel_distance_reconstruction/{name}"] = _distance(generated, arm.own[name], config)
    return scores, samples[: config.shown_clips]


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of (N,) values with its 95 % interval (normal approximation) and its bootstrap resamples."""
    mean, margin = values.double().mean().item(), 1.96 * values.double().std().item() / len(values) ** 0.5
    drawn = torch.randint(len(values), (_RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    resamples = values.double().cpu()[drawn].mean(1).tolist()
    return Estimate(mean, mean - margin, mean + margin, tuple(resamples))


def _distance(x: Tensor, y: Tensor, config: ScoringConfig) -> Estimate:
    resamples = bootstrap_distances(x, y, seed=config.seed, resamples=_RESAMPLES).tolist()
    return Estimate(kernel_distance(x, y), *bootstrap_interval(x, y, seed=config.seed), tuple(resamples))


def _heldout_loss(model: DiT, arm: ArmReference, config: ScoringConfig, process: DiffusionProcess) -> Tensor:
    """Mean loss of each held-out latent over evenly spaced noise levels, (n,)."""
    clean, noise = _standardised(arm, config)
    losses = []
    for level in _loss_levels(config):
        parts = _parts(arm, _denoising_clips(arm, config), config)
        losses.append(
            torch.cat(
                [
                    process.loss(_predictor(model, text), clean[part], noise[part], level.expand(len(clean[part])))
                    for part, text in parts
                ]
            )
        )
    return torch.stack(losses).mean(0).cpu()


def _denoising_errors(
    model: DiT, arm: ArmReference, config: ScoringConfig, process: DiffusionProcess, level: float
) -> tuple[Tensor, Tensor]:
    """Mean squared pixel error of the decoded one-step estimate to original and reconstruction, (n,) each."""
    clean, noise = _standardised(arm, config)
    chosen = _denoising_clips(arm, config)
    to_original, to_own = [], []
    for part, text in _parts(arm, chosen, config):
        t = torch.full((len(clean[part]),), level, device=clean.device)
        estimate = process.denoise(_predictor(model, text), process.corrupt(clean[part], noise[part], t), t)
        video = _decode(arm, estimate)
        to_original.append((video - arm.clips[chosen[part]]).square().flatten(1).mean(1))
        to_own.append((video - arm.reconstructions[chosen[part]]).square().flatten(1).mean(1))
    return torch.cat(to_original), torch.cat(to_own)


def _samples(model: DiT, arm: ArmReference, config: ScoringConfig, process: DiffusionProcess) -> Tensor:
    """Generated clips, N C T H W in [-1, 1], on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(config.samples, *arm.heldout.shape, generator=generator).to(_device(model))
    videos = []
    with progress_bar(config.samples, "sampling", "clip") as bar:
        for part, text in _parts(arm, torch.arange(config.samples) % len(arm.heldout), config):
            predict = _predictor(model, text)
            if arm.text is not None and text is not None and config.guidance > 1:
                empty = arm.text.empty.to(text).expand_as(text)
                predict = guided(predict, _predictor(model, empty), config.guidance)
            latents = process.sample(predict, noise[part], config.sampler_steps)
            videos.append(_decode(arm, latents))
            bar.update(len(latents))
    return torch.cat(videos)


def _denoising_clips(arm: ArmReference, config: ScoringConfig) -> Tensor:
    """Numbers of the held-out clips that are denoised, evenly spread: neighbours show the same scene."""
    count = min(config.denoising_clips, len(arm.heldout))
    return torch.linspace(0, len(arm.heldout) - 1, count).round().long()


def _standardised(arm: ArmReference, config: ScoringConfig) -> tuple[Tensor, Tensor]:
    """The latents to denoise as the transformer sees them, and their fixed noise."""
    clean = arm.heldout.standardize(arm.heldout.latents[_denoising_clips(arm, config)])
    generator = torch.Generator().manual_seed(config.seed + 1)
    noise = torch.randn(clean.shape, generator=generator)
    device = _device(arm.vae)
    return clean.to(device), noise.to(device)


def _parts(arm: ArmReference, clips: Tensor, config: ScoringConfig) -> Sequence[tuple[slice, Tensor | None]]:
    """Slices of at most `batch_size`, with the captions of the held-out `clips` (numbers) in them."""
    parts = []
    for start in range(0, len(clips), config.batch_size):
        part = slice(start, min(start + config.batch_size, len(clips)))
        text = None if arm.text is None else arm.text[clips[part]].to(_device(arm.vae))
        parts.append((part, text))
    return parts


def _predictor(model: DiT, text: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: model(x, t) if text is None else model(x, t, text)


def _decode(arm: ArmReference, standardised: Tensor) -> Tensor:
    return arm.vae.decode(arm.heldout.unstandardize(standardised)).float().clamp(-1, 1).cpu()


def _loss_levels(config: ScoringConfig) -> Tensor:
    return (torch.arange(config.loss_levels) + 0.5) / config.loss_levels


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
