"""The whole comparison, from clips to a report.

    bash scripts/compare_convergence.sh --preset default

Stages: clips -> one autoencoder an arm -> latents -> one transformer an arm and seed, scored as it trains -> report.
Each stage works in a folder whose name carries a fingerprint of everything that it depends on. So a finished stage is
found again, an interrupted one continues, and a changed setting makes a new folder and leaves the old one alone.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..config import fingerprint, parse_config
from ..data.demo import prepare_demo
from ..data.shards import DataConfig, FixedClips, fixed_clips
from ..data.skips import SkipLog
from ..diffusion.training import train_dit
from ..diffusion.transformer import DiT
from ..errors import UserError
from ..latents.encoder import EncoderSettings
from ..latents.latent_set import LatentSet, encode_latents
from ..metrics.features import ClipFeatures, FrameFeatures
from ..metrics.perceptual import build_perceptual
from ..training.trainer import TrainConfig, train
from ..vae.autoencoder import SSVAE
from ..vae.checkpoint import weights_digest
from .arms import absolute, common_patches, given_identity, latent_sizes, open_given, shape_warning
from .bookkeeping import Stopwatch, content, machine
from .report.page import write_report
from .report.pictures import Pictures
from .results import ArmResult, ComparisonResults, CurvePoint
from .run_index import RunIndex, TrainedTransformer
from .scores import as_pictures, is_scored, read_curves, read_samples, spread, write_scores
from .scoring import (
    ArmReference,
    DiTGenerator,
    Features,
    arm_result,
    compared,
    gaussian_loss_floor,
    measure_arm,
    reconstruction_quality,
    score_generator,
)
from .settings import SPLITS, ClipSource, CompareConfig, Split

logger = logging.getLogger(__name__)


def compare(
    config: CompareConfig,
    output: Path,
    device: torch.device,
    command: str,
    clips: ClipSource | None = None,
) -> ComparisonResults:
    """Run or continue the comparison in `output` and write its report to `output/report`.

    Args:
        config: what is compared and how.
        output: the folder for all stages.
        device: where networks run.
        command: what the user typed, for the report.
        clips: where they are; None for the demo's.

    Raises:
        UserError: unusable clips, configuration or weights, or no space left.
    """
    return _Comparison(config, output, device, command, clips).run()


class _Comparison:
    def __init__(
        self,
        config: CompareConfig,
        output: Path,
        device: torch.device,
        command: str,
        clips: ClipSource | None,
    ) -> None:
        self.config, self.output, self.device, self.command = config, output, device, command
        self.minutes = Stopwatch(output / "minutes.json")
        # All arms are checked before the first one is trained.
        self.given = open_given(config.arms)
        self.given_identities = {name: given_identity(vae) for name, vae in self.given.items()}
        self.source = clips or self._demo()
        self.trainings = {
            name: parse_config(
                TrainConfig,
                {**config.vae, **arm.settings, "data": self._data("train")},
                source=f"arm {name}",
            )
            for name, arm in config.arms.items()
        }
        self.latent_sizes = latent_sizes(self.trainings, self.given, config.data)
        self.patches = common_patches(self.latent_sizes, config.transformer.patch_size)
        self.places: dict[str, str] = {}
        self.finished: list[TrainedTransformer] = []

    def run(self) -> ComparisonResults:
        clips = self._heldout_clips()  # first: too few are noticed before anything is trained
        vaes = {name: self._autoencoder(name) for name in self.config.arms}
        features: Features = {"frame": FrameFeatures().to(self.device), "clip": ClipFeatures().to(self.device)}
        perceptual = build_perceptual("st-lpips-alex").to(self.device)
        arms: list[ArmResult] = []
        curves: list[CurvePoint] = []
        shown = self.config.scoring.shown_clips
        reconstructions: dict[str, Sequence[Tensor]] = {}
        samples: dict[str, Mapping[int, Sequence[Tensor]]] = {}
        quality: dict[str, dict[str, Tensor]] = {}
        noise_factors = self.config.transformer.diffusion.signal_and_noise
        for name, vae in vaes.items():
            train_set, heldout, text = self._latents(name, vae)
            reference = measure_arm(vae, heldout, clips, features, self.config.scoring, self._caption_states(heldout))
            quality[name] = reconstruction_quality(reference, perceptual)
            loss_floor = gaussian_loss_floor(train_set, noise_factors, self.config.scoring)
            arms.append(self._arm_result(name, vae, train_set, reference, quality, loss_floor))
            reconstructions[name] = as_pictures(spread(reference.reconstructions, shown))
            steps, weights = self.config.transformer.evaluation_steps, weights_digest(vae.state_dict())
            for seed in self.config.seeds:
                folder = self._transformer(name, seed, train_set, reference, loss_floor, text)
                self._note_finished(name, seed, weights, train_set, folder.parent)
                curves += read_curves(folder, name, seed, steps)
                if seed == self.config.seeds[0]:
                    samples[name] = read_samples(folder, steps)
        originals = as_pictures(spread(clips, shown))
        pictures = Pictures(self.config.data.fps, originals, reconstructions, samples)
        return self._report(arms, curves, pictures, len(clips))

    # --- stages -------------------------------------------------------------------------------------------------------

    def _demo(self) -> ClipSource:
        resolution = self.config.data.resolution
        short_side = resolution if isinstance(resolution, int) else min(resolution)
        with self.minutes("clips"):
            seconds = self.config.film_seconds
            folder = self.output / f"clips-{short_side}-{seconds:g}s"
            demo = prepare_demo(folder, resolution=short_side, film_seconds=seconds)
        return ClipSource.separate(demo.train, demo.heldout, demo.attribution.read_text(encoding="utf-8"))

    def _autoencoder(self, name: str) -> VideoAutoencoder:
        if name in self.given:
            self.places[name] = absolute(str(self.config.arms[name].checkpoint))
            return self.given[name].to(self.device).eval()
        folder = self._folder("vae", name, self._training_identity(name))
        with self.minutes(f"autoencoder {name}"):
            finished = train(self.trainings[name], folder, self.device)
        self.places[name] = str(finished.relative_to(self.output))
        return SSVAE.from_pretrained(finished).to(self.device).for_inference()

    def _heldout_clips(self) -> Tensor:
        videos = [clip.video for clip in self._clips("heldout")]
        if len(videos) < 8:
            raise UserError(
                f"{self.source.path['heldout']}: {len(videos)} held-out clips, a comparison needs 8 at least (100 to "
                "say much); give more or longer videos, or a shorter clips.heldout_stride"
            )
        return torch.stack(videos)

    def _data(self, split: Split) -> dict[str, Any]:
        return self.config.data.data(self.source.path[split], self.source.part[split])

    def _clips(self, split: Split) -> FixedClips:
        clips = self.config.data
        return fixed_clips(
            parse_config(DataConfig, self._data(split)),
            stride=clips.heldout_stride if split == "heldout" else clips.train_stride,
            limit=clips.max_heldout if split == "heldout" else None,
            skips=SkipLog(self.output / f"skipped_{split}.jsonl"),
        )

    def _latents(self, name: str, vae: VideoAutoencoder) -> tuple[LatentSet, LatentSet, Any]:
        """Training latents, held-out latents standardised like them, and the training captions' states."""
        folder = self._folder("latents", name, self._latent_identity(name))
        with self.minutes(f"latents {name}"):
            for split in SPLITS:
                file = folder / f"{split}.safetensors"
                if not file.exists():
                    settings = EncoderSettings(batch_size=self.config.encode_batch_size)
                    encode_latents(vae, self._clips(split), file, settings, self.device)
        train_set = LatentSet.load(folder / "train.safetensors")
        heldout = LatentSet.load(folder / "heldout.safetensors", statistics=train_set.statistics)
        return train_set, heldout, self._caption_states(train_set)

    def _caption_states(self, latents: LatentSet) -> Any:
        """Token states of the captions, or None if no clip has one."""
        if not any(latents.captions):
            return None
        from ..assets import fetch
        from ..diffusion.text import TextEncoder, encode_captions

        encoder = TextEncoder(fetch("minilm"), self.device)
        return encode_captions(encoder, latents.captions, length=self.config.text_length)

    def _transformer(
        self,
        name: str,
        seed: int,
        train_set: LatentSet,
        reference: ArmReference,
        loss_floor: float,
        text: Any,
    ) -> Path:
        """Train one transformer, scoring it at the evaluation steps; returns the folder of its scores."""
        config = self.config
        training = config.transformer.model_copy(update={"patch_size": self.patches[name]})
        folder = self._folder(
            "transformer", f"{name}-seed{seed}", self._latent_identity(name), training, config.scoring
        )
        scores_folder = folder / "scores"
        if (folder / "dit.safetensors").exists() and is_scored(scores_folder, training.evaluation_steps):
            return scores_folder
        scores_folder.mkdir(parents=True, exist_ok=True)

        def score(step: int, model: DiT) -> None:
            with self.minutes(f"scoring {name}"):
                generator = DiTGenerator(model, training.diffusion, config.scoring)
                scores, samples = score_generator(generator, reference, config.scoring, loss_floor)
            write_scores(scores_folder, step, scores, samples)

        with self.minutes(f"transformer {name}", inner=f"scoring {name}"):
            train_dit(training, train_set, folder, seed=seed, device=self.device, on_checkpoint=score, text=text)
        return scores_folder

    def _note_finished(self, name: str, seed: int, weights: str, train_set: LatentSet, transformer: Path) -> None:
        """For those who use the transformer later, `sat-ssvae restore` for one."""
        self.finished.append(
            TrainedTransformer(
                arm=name,
                seed=seed,
                folder=str(transformer.relative_to(self.output)),
                autoencoder=self.places[name],
                weights=weights,
                latent_mean=tuple(train_set.mean.tolist()),
                latent_std=tuple(train_set.std.tolist()),
            )
        )
        config = self.config
        RunIndex(
            clips=config.data,
            diffusion=config.transformer.diffusion,
            text_length=config.text_length,
            transformers=tuple(self.finished),
        ).write(self.output)

    # --- results ------------------------------------------------------------------------------------------------------

    def _arm_result(
        self,
        name: str,
        vae: VideoAutoencoder,
        train_set: LatentSet,
        reference: ArmReference,
        quality: Mapping[str, Mapping[str, Tensor]],
        loss_floor: float,
    ) -> ArmResult:
        training = self.trainings[name].model_dump(mode="json", exclude={"data", "model"})
        checkpoint = self.config.arms[name].checkpoint
        result = arm_result(
            name,
            reference,
            train_set,
            quality[name],
            self.config.scoring,
            loss_floor,
            vae=vae.describe(),
            training={"checkpoint": checkpoint} if checkpoint else training,
        )
        return compared(result, quality[name], quality[next(iter(quality))])

    def _report(
        self, arms: Sequence[ArmResult], curves: Sequence[CurvePoint], pictures: Pictures, heldout: int
    ) -> ComparisonResults:
        config = self.config
        results = ComparisonResults(
            arms=tuple(arms),
            curves=tuple(curves),
            seeds=config.seeds,
            budget={
                "autoencoder steps": {n: t.max_steps for n, t in self.trainings.items() if n not in self.given},
                "transformer steps": config.transformer.max_steps,
                "minutes": {**self.minutes.rounded()},
            },
            machine=machine(self.device),
            packages={name: metadata.version(name) for name in ("torch", "deepspeed", "numpy", "av")},
            configuration=config.model_dump(mode="json"),
            measurement={
                "held-out clips": heldout,
                "clip": config.data.model_dump(mode="json"),
                "scoring": config.scoring.model_dump(mode="json"),
                "seeds vary": "the transformer's initial weights, clip order and noise; the autoencoders have one seed",
            },
            command=self.command,
            attribution=self.source.attribution,
            warnings=(*([config.caveat] if config.caveat else []), *shape_warning(self.latent_sizes, self.patches)),
        )
        write_report(results, self.output / "report", pictures)
        return results

    # --- names --------------------------------------------------------------------------------------------------------

    def _folder(self, stage: str, name: str, *parts: Any) -> Path:
        return self.output / stage / f"{name}-{fingerprint(*parts)}"

    def _training_identity(self, name: str) -> list[Any]:
        """What an autoencoder depends on: not on how many processes decode the video."""
        training = self.trainings[name].model_dump(mode="json")
        del training["data"]["path"], training["data"]["num_workers"]
        return [training, content(self.source.path["train"])]

    def _latent_identity(self, name: str) -> list[Any]:
        weights = self.given_identities.get(name) or self._training_identity(name)
        clips = self.config.data.model_dump(mode="json", exclude={"num_workers"})
        return [weights, clips, *(content(self.source.path[split]) for split in SPLITS)]
