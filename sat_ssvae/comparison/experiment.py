"""The whole comparison, from clips to a report.

    bash scripts/compare_convergence.sh --preset default

Stages: clips -> autoencoders, one an arm and `vae_seed` -> latents -> transformers, one an autoencoder and seed, scored
as they train -> report.
Each stage works in a folder whose name carries a fingerprint of everything that it depends on. So a finished stage is
found again, an interrupted one continues, and a changed setting makes a new folder and leaves the old one alone.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from .. import distributed
from ..autoencoders.protocol import VideoAutoencoder
from ..diffusion.training import DiTTrainConfig, train_dit
from ..diffusion.transformer import DiT
from ..latents.encoding import EncoderSettings
from ..latents.latent_set import LatentSet, encode_latents
from ..metrics.features import ClipFeatures, FrameFeatures
from ..metrics.perceptual import build_perceptual
from ..storage import write_text
from ..training.run_folder import alone
from ..training.trainer import train
from ..vae.autoencoder import SSVAE
from ..vae.checkpoint import weights_digest
from .answer import answer, commit
from .arms import absolute, common_patches, given_identity, latent_sizes, open_given, shape_warning
from .bookkeeping import Stopwatch, machine
from .clips import SplitClips, demo_source, split_data
from .layout import Layout, Member, stages_of
from .matched_noise import kept_levels, linear_errors
from .plan import Plan, planned, transformer_name
from .pooling import pooled
from .provenance import Provenance, few_warnings
from .report.page import write_report
from .report.pictures import Pictures, as_pictures, spread, spread_places
from .results import ArmResult, ComparisonResults, CurvePoint
from .run_index import RunIndex, TrainedTransformer
from .score_files import curve_points, is_scored, read_samples, read_scores, write_scores
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
    scores_over_videos,
)
from .settings import SPLITS, ClipSource, CompareConfig
from .shifts import best_shift, shift_comparison
from .verdict import Verdict, judge

logger = logging.getLogger(__name__)


def compare(
    config: CompareConfig,
    output: Path,
    device: torch.device,
    command: str,
    clips: ClipSource | None = None,
) -> tuple[ComparisonResults, list[Verdict]]:
    """Run or continue the comparison in `output` and write its report to `output/report`.

    Args:
        config: what is compared and how.
        output: the folder for all stages.
        device: where networks run.
        command: what the user typed, for the report.
        clips: where they are; None for the demo's.

    Raises:
        UserError: unusable clips, configuration or weights, another process that works in `output`, or no space left.
    """
    with contextlib.ExitStack() as held:
        if distributed.rank() == 0:
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(output))  # `sat-ssvae runs` shows that it runs, and cleans nothing
        return _Comparison(config, output, device, command, clips).run()


@dataclass(frozen=True)
class _Prepared:
    """An autoencoder of an arm and all that its transformers are trained and scored on."""

    member: Member
    vae: VideoAutoencoder
    train_set: LatentSet
    text: Any
    """States of the training captions; None without captions."""
    reference: ArmReference
    loss_floor: float


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
        if clips is None:
            with self.minutes("clips"):
                clips = demo_source(config, output)
        self.source = clips
        self.members = [Member(name, seed) for seed in config.vae_seeds for name in config.arms]
        data = split_data(config.data, self.source, "train")
        self.trainings = {member: stages_of(config, member, data) for member in self.members}
        identities = {name: given_identity(vae) for name, vae in self.given.items()}
        self.layout = Layout(config, output, self.source, self.trainings, identities)
        self.clips = SplitClips(config.data, self.source, self.layout.skipped)
        firsts = {member.arm: stages[0] for member, stages in self.trainings.items()}
        self.latent_sizes = latent_sizes(firsts, self.given, config.data)
        self.patches = common_patches(self.latent_sizes, config.transformer.patch_size)
        stages = planned(self.layout, self.given, lambda arm: self._training(arm, None))
        self.plan = Plan(output / "stages.json", stages)
        self.places: dict[Member, str] = {}
        self.linear_errors: dict[float, float] = {}
        self.matched: dict[str, JsonValue] = {}
        self.shifts: dict[str, float] = {}
        self.searches: dict[str, dict[float, list[CurvePoint]]] = {}
        self.finished: list[TrainedTransformer] = []

    def run(self) -> tuple[ComparisonResults, list[Verdict]]:
        clips = self.clips.heldout()  # first: too few are noticed before anything is trained
        features: Features = {"frame": FrameFeatures().to(self.device), "clip": ClipFeatures().to(self.device)}
        perceptual = build_perceptual("st-lpips-alex").to(self.device)
        arms: dict[str, list[ArmResult]] = {name: [] for name in self.config.arms}
        curves: list[CurvePoint] = []
        steps, shown = self.config.transformer.evaluation_steps, self.config.scoring.shown_clips
        reconstructions: dict[str, Sequence[Tensor]] = {}
        samples: dict[str, Mapping[int, Sequence[Tensor]]] = {}
        quality: dict[Member, dict[str, Tensor]] = {}
        psnr: dict[str, Sequence[float]] = {}
        for member in self.members:
            prepared = self._prepare(member, self._autoencoder(member), clips, features)
            quality[member] = reconstruction_quality(prepared.reference, perceptual)
            if self.config.shifts and member.arm not in self.shifts:
                self.shifts[member.arm] = self._search_shift(prepared)
            baseline = quality[self.layout.baseline(member)]
            arms[member.arm].append(self._arm_result(prepared, quality[member], baseline))
            scored = self._transformers(prepared)
            for seed, folder in scored.items():
                curves += self._curves(prepared, folder, seed, steps)
            if member.vae_seed == self.config.vae_seeds[0]:
                reconstructions[member.arm] = as_pictures(spread(prepared.reference.reconstructions, shown))
                samples[member.arm] = read_samples(scored[self.config.seeds[0]], steps)
                psnr[member.arm] = quality[member]["psnr"][spread_places(len(clips), shown)].tolist()
        names = [prepared.reference.heldout.keys[place] for place in spread_places(len(clips), shown)]
        originals = as_pictures(spread(clips, shown))
        pictures = Pictures(self.config.data.fps, originals, reconstructions, samples, names, psnr)
        skipped: dict[str, Path] = {split: self.layout.skipped(split) for split in SPLITS}
        provenance = Provenance.of_clips(prepared.train_set.keys, prepared.reference.heldout.keys, skipped)
        return self._report([pooled(results) for results in arms.values()], curves, pictures, provenance)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _autoencoder(self, member: Member) -> VideoAutoencoder:
        name = member.arm
        if name in self.given:
            self.places[member] = absolute(str(self.config.arms[name].checkpoint))
            return self.given[name].to(self.device).eval()
        finished: Path | None = None
        stages = self.trainings[member]
        for number, stage in enumerate(stages, 1):
            done = self.layout.trained(member, number)
            start = {"resume_from": str(finished)} if finished else {}
            label = self.layout.training_label(member, number)
            with self.plan.stage(f"autoencoder {label}", done), self.minutes(f"autoencoder {name}"):
                finished = train(stage.model_copy(update=start), done.parent, self.device)
        assert finished is not None, "there is a stage at least"
        self.places[member] = str(finished.relative_to(self.output))
        return SSVAE.from_pretrained(finished).to(self.device).for_inference()

    def _prepare(self, member: Member, vae: VideoAutoencoder, clips: Tensor, features: Features) -> _Prepared:
        """Encode an autoencoder's latents and measure what its transformers are scored against."""
        last = self.layout.encoded(member)
        folder, name = last.parent, f"latents {self.layout.label(member)}"
        with self.plan.stage(name, last), self.minutes(f"latents {member.arm}"):
            for split in SPLITS:
                file = folder / f"{split}.safetensors"
                if not file.exists():
                    settings = EncoderSettings(batch_size=self.config.encode_batch_size)
                    encode_latents(vae, self.clips(split), file, settings, self.device)
        train_set = LatentSet.load(folder / "train.safetensors")
        heldout = LatentSet.load(folder / "heldout.safetensors", statistics=train_set.statistics)
        scoring = self.config.scoring
        text = self._caption_states(heldout)
        reference = measure_arm(vae.decode, self.device, heldout, clips, features, scoring, text)
        reference = replace(reference, noise_levels=self._noise_levels(member, train_set, reference))
        noise_factors = self.config.transformer.diffusion.signal_and_noise
        loss_floor = gaussian_loss_floor(train_set, noise_factors, scoring)
        return _Prepared(member, vae, train_set, self._caption_states(train_set), reference, loss_floor)

    def _noise_levels(self, member: Member, train_set: LatentSet, reference: ArmReference) -> dict[float, float]:
        """Levels that correspond to those of the baseline with the same seed, which is prepared before the others."""
        scoring = self.config.scoring
        error = linear_errors(train_set, reference, self.config.transformer.diffusion.signal_and_noise, scoring)
        if member == self.layout.baseline(member):
            self.linear_errors = {level: error(level) for level in scoring.noise_levels}
            return {}
        levels = kept_levels(self.layout.noise_levels(member), error, self.linear_errors)
        self.matched[self.layout.label(member)] = {f"{level:g}": own for level, own in levels.items()}
        return levels

    def _caption_states(self, latents: LatentSet) -> Any:
        """Token states of the captions, or None if no clip has one."""
        if not any(latents.captions):
            return None
        from ..assets import fetch
        from ..diffusion.text import TextEncoder, encode_captions

        encoder = TextEncoder(fetch("minilm"), self.device)
        return encode_captions(encoder, latents.captions, length=self.config.text_length)

    def _search_shift(self, prepared: _Prepared) -> float:
        """The shift that suits the arm's latents, see `shifts.py`."""
        arm, seed = prepared.member.arm, self.config.shift_seed
        curves: dict[float, list[CurvePoint]] = {}
        for shift in self.config.shifts:
            training = self._training(arm, shift)
            folder = self._transformer(prepared, training, seed)
            curves[shift] = self._curves(prepared, folder, seed, training.evaluation_steps)
        self.searches[arm] = curves
        last = max(self.config.transformer.evaluation_steps)
        final = {shift: [point for point in points if point.step == last] for shift, points in curves.items()}
        scores = {shift: {point.metric: point.value for point in points} for shift, points in final.items()}
        shift = best_shift(scores)
        logger.info("arm %s: timestep shift %g of %s", arm, shift, list(scores))
        return shift

    def _training(self, arm: str, shift: float | None) -> DiTTrainConfig:
        """The transformer's training in an arm."""
        training = self.config.transformer.model_copy(update={"patch_size": self.patches[arm]})
        if shift is None:
            return training
        return training.model_copy(update={"diffusion": training.diffusion.model_copy(update={"shift": shift})})

    def _transformers(self, prepared: _Prepared) -> dict[int, Path]:
        """Train the transformers of an autoencoder; returns the folder of their scores by seed."""
        training = self._training(prepared.member.arm, self.shifts.get(prepared.member.arm))
        weights = weights_digest(prepared.vae.state_dict())
        scored = {}
        for seed in self.config.seeds:
            scored[seed] = self._transformer(prepared, training, seed)
            self._note_finished(prepared, training, seed, weights, scored[seed].parent)
        return scored

    def _transformer(self, prepared: _Prepared, training: DiTTrainConfig, seed: int) -> Path:
        """Train one transformer, scoring it at the evaluation steps; returns the folder of its scores."""
        arm, scoring = prepared.member.arm, self.config.scoring
        file = self.layout.transformer(prepared.member, training, seed, prepared.reference.noise_levels)
        scores_folder = file.parent / "scores"
        if file.exists() and is_scored(scores_folder, training.evaluation_steps):
            return scores_folder

        def score(step: int, model: DiT) -> None:
            with self.minutes(f"scoring {arm}"):
                generator = DiTGenerator(model, training.diffusion, scoring)
                scores, samples = score_generator(generator, prepared.reference, scoring, prepared.loss_floor)
            write_scores(scores_folder, step, scores, samples)

        tries = bool(self.config.shifts) and seed == self.config.shift_seed
        shift = getattr(training.diffusion, "shift", None) if tries else None
        name = transformer_name(self.layout.label(prepared.member), seed, shift)
        with self.plan.stage(name, file), self.minutes(f"transformer {arm}", inner=f"scoring {arm}"):
            run: Any = {"seed": seed, "device": self.device, "on_checkpoint": score, "text": prepared.text}
            train_dit(training, prepared.train_set, file.parent, **run)
        return scores_folder

    def _note_finished(
        self, prepared: _Prepared, training: DiTTrainConfig, seed: int, weights: str, transformer: Path
    ) -> None:
        """Record the transformer for later commands, such as `sat-ssvae restore`."""
        self.finished.append(
            TrainedTransformer(
                arm=prepared.member.arm,
                seed=seed,
                vae_seed=prepared.member.vae_seed,
                folder=str(transformer.relative_to(self.output)),
                autoencoder=self.places[prepared.member],
                weights=weights,
                diffusion=training.diffusion,
                latent_mean=tuple(prepared.train_set.mean.tolist()),
                latent_std=tuple(prepared.train_set.std.tolist()),
            )
        )
        config = self.config
        finished = tuple(self.finished)
        RunIndex(clips=config.data, text_length=config.text_length, transformers=finished).write(self.output)

    def _curves(self, prepared: _Prepared, folder: Path, seed: int, steps: Sequence[int]) -> list[CurvePoint]:
        """The scores of a transformer, with intervals over the held-out videos."""
        member, scoring = prepared.member, self.config.scoring
        scores = read_scores(folder, steps).items()
        over = {step: scores_over_videos(values, prepared.reference, scoring) for step, values in scores}
        return curve_points(over, member.arm, seed, member.vae_seed)

    # --- results ------------------------------------------------------------------------------------------------------

    def _arm_result(
        self, prepared: _Prepared, quality: Mapping[str, Tensor], baseline: Mapping[str, Tensor]
    ) -> ArmResult:
        name = prepared.member.arm
        checkpoint = self.config.arms[name].checkpoint
        stages: list[JsonValue] = [
            stage.model_dump(mode="json", exclude={"data", "model"}) for stage in self.trainings[prepared.member]
        ]
        training: dict[str, JsonValue] = {"checkpoint": checkpoint} if checkpoint else {"stages": stages}
        training["autoencoder"] = self._weights(prepared.member)
        if name in self.shifts:
            training["timestep shift"] = self.shifts[name]
        scoring, floor = self.config.scoring, prepared.loss_floor
        result = arm_result(name, prepared.reference, prepared.train_set, quality, scoring, floor)
        result = replace(result, vae=prepared.vae.describe(), training=training)
        return compared(result, quality, baseline, prepared.reference.heldout.keys)

    def _weights(self, member: Member) -> str:
        """Where the autoencoder is, as a command in the same folder would name it."""
        place = self.places[member]
        return place if member.arm in self.given else str(self.output / place)

    def _report(
        self, arms: Sequence[ArmResult], curves: Sequence[CurvePoint], pictures: Pictures, provenance: Provenance
    ) -> tuple[ComparisonResults, list[Verdict]]:
        config, heldout = self.config, sum(provenance.heldout.values())
        results = ComparisonResults(
            arms=tuple(arms),
            curves=tuple(curves),
            seeds=config.seeds,
            vae_seeds=config.vae_seeds,
            budget={
                "autoencoder steps": self._vae_steps(),
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
                "seeds vary": "the transformer's initial weights, clip order and noise",
                "autoencoders": f"one an arm for each of the seeds {', '.join(map(str, config.vae_seeds))}",
                "denoised at, by the baseline's level": {**self.matched},
                **({"timestep shifts": {**self.shifts}} if self.shifts else {}),
            },
            command=self.command,
            attribution=self.source.attribution,
            warnings=(*self._warnings(), *few_warnings(heldout, len(provenance.heldout))),
            provenance=provenance,
        )
        verdicts = judge(results)
        with self.plan.stage("report"):
            report = write_report(results, verdicts, self.output / "report", pictures)
        write_text(report.with_name("summary.json"), json.dumps(answer(results, verdicts, commit()), indent=1))
        for arm, search in self.searches.items():
            if len(search) > 1:
                shown = shift_comparison(results, arm, search, config.shift_seed)
                write_report(shown, judge(shown), self.output / "report" / f"shifts-{arm}")
        return results, verdicts

    def _vae_steps(self) -> dict[str, JsonValue]:
        """Steps of all stages of an arm's autoencoder, for arms that are trained here."""
        totals = {member.arm: sum(stage.max_steps for stage in stages) for member, stages in self.trainings.items()}
        return {name: total for name, total in totals.items() if name not in self.given}

    def _warnings(self) -> tuple[str, ...]:
        steps = self._vae_steps()
        unequal = ", ".join(f"{name} {total}" for name, total in steps.items()) if len(set(steps.values())) > 1 else ""
        return (
            *([self.config.caveat] if self.config.caveat else []),
            *([f"The arms' autoencoders are trained for unequal numbers of steps: {unequal}."] if unequal else []),
            *shape_warning(self.latent_sizes, self.patches),
        )
