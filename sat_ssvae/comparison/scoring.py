"""What a comparison measures of a transformer at each evaluation step.

    scores, samples = score_generator(DiTGenerator(model, process, config), reference, config, loss_floor)

See `results.py` for the metrics' names, and `reference.py` for what a transformer is scored against. All of it runs on
held-out clips with draws that depend on the configuration alone, so that two arms, and two steps of one arm, differ in
the latents and the weights and in nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from ..diffusion.process import DiffusionProcess, guided
from ..diffusion.transformer import DiT
from ..metrics.intervals import QUANTILE
from ..progress import progress_bar
from .clusters import over_videos
from .reference import (
    RESAMPLES,
    ArmReference,
    EvaluationConfig,
    decode_standardised,
    denoising_clips,
    kernel_estimate,
    loss_levels,
    resample_counts,
    standardised,
)
from .results import Estimate


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
        scores[f"kernel_distance_real/{name}"] = kernel_estimate(generated, arm.real[name], config)
        scores[f"kernel_distance_reconstruction/{name}"] = kernel_estimate(generated, arm.own[name], config)
    return scores, samples[: config.shown_clips]


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of (N,) values with its 95 % interval over clips (normal approximation) and its bootstrap resamples."""
    mean, margin = values.double().mean().item(), QUANTILE * values.double().std().item() / len(values) ** 0.5
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
    of_samples, of_clips = resample_counts((config.samples, len(keys)), config)
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
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))


def _heldout_loss(generator: Generator, arm: ArmReference, config: EvaluationConfig) -> Tensor:
    """Mean loss of each held-out latent over evenly spaced noise levels, (n,)."""
    clean, noise = standardised(arm, config)
    losses = []
    for level in loss_levels(config).to(clean.device):
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


def _parts(arm: ArmReference, clips: Tensor, config: EvaluationConfig) -> Sequence[tuple[slice, Tensor | None]]:
    """Slices of at most `batch_size`, with the captions of the held-out `clips` (numbers) in them."""
    parts = []
    for start in range(0, len(clips), config.batch_size):
        part = slice(start, min(start + config.batch_size, len(clips)))
        text = None if arm.text is None else arm.text[clips[part]].to(arm.device)
        parts.append((part, text))
    return parts
