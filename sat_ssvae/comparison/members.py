"""What a comparison does with one autoencoder: train it, encode the clips, train transformers and score them.

    result = MemberRunner(work, heldout_clips(layout), records).run(Member("ssvae", 0))

Each stage works in a folder whose name has a fingerprint of everything that it depends on (`layout.py`), so a finished
one is found again. Members pass results to each other as files in such folders too: they may run in sequence in one
process or in parallel in several (`processes.py`).
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..diffusion.training import DiTTrainConfig, train_dit
from ..diffusion.transformer import DiT
from ..latents.encoding import EncoderSettings
from ..latents.latent_set import LatentSet, encode_latents
from ..metrics.features import feature_networks
from ..metrics.perceptual import build_perceptual
from ..storage import write_text
from ..training.trainer import train
from ..vae.autoencoder import SSVAE
from ..vae.checkpoint import weights_digest
from .arms import Grid, absolute, open_given
from .clips import split_clips
from .layout import Layout, Member
from .matched_noise import kept_levels, linear_errors
from .plan import transformer_name
from .reference import ArmReference, Features, arm_result, gaussian_loss_floor, measure_arm, reconstruction_quality
from .report.pictures import spread
from .results import ArmResult, CurvePoint
from .run_index import TrainedTransformer
from .score_files import curve_points, is_scored, read_scores, write_scores
from .scoring import DiTGenerator, score_generator, scores_over_videos
from .settings import SPLITS, Split
from .shifts import best_shift

logger = logging.getLogger(__name__)

_WATCH = 0.2
"""Seconds between checks for a file from another member."""


class Records(Protocol):
    """Receives a member's progress."""

    def begin(self, stage: str) -> None:
        """A stage of the plan begins or continues."""

    def end(self, stage: str, seconds: float | None) -> None:
        """It is done, after `seconds`; None if it did not run from start to end this time."""

    def spent(self, what: str, seconds: float) -> None:
        """Time was spent on a kind of work."""

    def finished(self, transformer: TrainedTransformer) -> None:
        """A transformer is trained and scored."""


@dataclass(frozen=True)
class Work:
    """What all members share."""

    layout: Layout
    patches: Mapping[str, Grid]
    """Of each arm's transformers."""
    device: torch.device

    def training(self, arm: str, shift: float | None) -> DiTTrainConfig:
        """The transformer's training in an arm; `shift` where that is not the configured one."""
        training = self.layout.config.transformer.model_copy(update={"patch_size": self.patches[arm]})
        if shift is None:
            return training
        return training.model_copy(update={"diffusion": training.diffusion.model_copy(update={"shift": shift})})


@dataclass(frozen=True)
class MemberResult:
    """What the report needs of an autoencoder and its transformers; no tensors, since it is sent between processes."""

    arm: ArmResult
    quality: Mapping[str, np.ndarray]
    """`reconstruction_quality`."""
    reconstructions: np.ndarray
    """Those to show, uint8 `n C T H W`."""
    scores: Mapping[int, Path]
    """Folders of the transformers' scores, by seed."""
    curves: list[CurvePoint]
    """The same scores, with intervals over the held-out videos."""
    keys: Mapping[Split, tuple[str, ...]]
    """Of the clips that were used."""
    levels: Mapping[float, float]
    """Noise levels that correspond to the baseline's; none of the baseline itself."""
    shift: float | None
    """The arm's timestep shift, where shifts were tried."""
    search: Mapping[float, list[CurvePoint]]
    """Curves by shift, if this autoencoder tried them."""


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


class MemberRunner:
    """Runs members one after the other; the networks that score them are built once.

    `heldout`: all held-out clips, `N C T H W` in [-1, 1].
    """

    def __init__(self, work: Work, heldout: Tensor, records: Records) -> None:
        self.work, self.heldout, self.records = work, heldout, records
        self.layout, self.config, self.device = work.layout, work.layout.config, work.device
        self.features: Features = feature_networks(self.device)
        self.perceptual = build_perceptual("st-lpips-alex").to(self.device)
        self._scoring = 0.0  # seconds of the current stage

    def run(self, member: Member) -> MemberResult:
        """Finish a member."""
        prepared = self._prepare(member, self._autoencoder(member))
        quality = reconstruction_quality(prepared.reference, self.perceptual)
        shift, search = self._shift(prepared)
        reference, steps = prepared.reference, self.config.transformer.evaluation_steps
        scores = self._transformers(prepared, self.work.training(member.arm, shift))
        return MemberResult(
            arm=self._arm_result(prepared, quality, shift),
            quality={metric: values.cpu().numpy() for metric, values in quality.items()},
            reconstructions=spread(reference.reconstructions, self.config.scoring.shown_clips).numpy(),
            scores=scores,
            curves=[p for seed, folder in scores.items() for p in self._curves(prepared, folder, seed, steps)],
            keys={"train": prepared.train_set.keys, "heldout": reference.heldout.keys},
            levels=reference.noise_levels,
            shift=shift,
            search=search,
        )

    @contextlib.contextmanager
    def _stage(self, name: str, result: Path, kind: str) -> Iterator[None]:
        """Record the start and end of a stage, unless its `result` exists; scoring is counted separately."""
        done, fresh = result.exists(), not result.parent.exists()
        if not done:
            self.records.begin(name)
        start, self._scoring = time.monotonic(), 0.0
        try:
            yield
            self.records.end(name, time.monotonic() - start if fresh else None)
        finally:
            self.records.spent(kind, time.monotonic() - start - self._scoring)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _autoencoder(self, member: Member) -> VideoAutoencoder:
        name = member.arm
        if name in self.layout.given:
            return open_given({name: self.config.arms[name]})[name].to(self.device).eval()
        finished: Path | None = None
        for number, stage in enumerate(self.layout.trainings[member], 1):
            done = self.layout.trained(member, number)
            start = {"resume_from": str(finished)} if finished else {}
            label = self.layout.training_label(member, number)
            with self._stage(f"autoencoder {label}", done, f"autoencoder {name}"):
                finished = train(stage.model_copy(update=start), done.parent, self.device)
        assert finished is not None, "a member has at least one stage"
        return SSVAE.from_pretrained(finished).to(self.device).for_inference()

    def _place(self, member: Member) -> str:
        """Where the autoencoder is, relative to the comparison's folder if it was trained there."""
        if member.arm in self.layout.given:
            return absolute(str(self.config.arms[member.arm].checkpoint))
        trained = self.layout.trained(member, len(self.layout.trainings[member])).with_name("vae")
        return str(trained.relative_to(self.layout.output))

    def _prepare(self, member: Member, vae: VideoAutoencoder) -> _Prepared:
        """Encode an autoencoder's latents and measure what its transformers are scored against."""
        last = self.layout.encoded(member)
        folder, name = last.parent, f"latents {self.layout.label(member)}"
        with self._stage(name, last, f"latents {member.arm}"):
            for split in SPLITS:
                file = folder / f"{split}.safetensors"
                if not file.exists():
                    settings = EncoderSettings(batch_size=self.config.encode_batch_size)
                    encode_latents(vae, split_clips(self.layout, split), file, settings, self.device)
        train_set = LatentSet.load(folder / "train.safetensors")
        heldout = LatentSet.load(folder / "heldout.safetensors", statistics=train_set.statistics)
        scoring = self.config.scoring
        text = self._caption_states(heldout)
        reference = measure_arm(vae.decode, self.device, heldout, self.heldout, self.features, scoring, text)
        reference = replace(reference, noise_levels=self._noise_levels(member, train_set, reference))
        noise_factors = self.config.transformer.diffusion.signal_and_noise
        loss_floor = gaussian_loss_floor(train_set, noise_factors, scoring)
        return _Prepared(member, vae, train_set, self._caption_states(train_set), reference, loss_floor)

    def _noise_levels(self, member: Member, train_set: LatentSet, reference: ArmReference) -> dict[float, float]:
        """Levels that correspond to those of the baseline with the same seed, which is prepared before the others."""
        scoring = self.config.scoring
        errors_file = self.layout.linear_errors(member)
        error = linear_errors(train_set, reference, self.config.transformer.diffusion.signal_and_noise, scoring)
        if member == self.layout.baseline(member):
            if not errors_file.exists():
                write_text(errors_file, json.dumps([[level, error(level)] for level in scoring.noise_levels]))
            return {}
        return kept_levels(self.layout.noise_levels(member), error, dict(_wait_for_json(errors_file)))

    def _caption_states(self, latents: LatentSet) -> Any:
        """Token states of the captions, or None if no clip has one."""
        if not any(latents.captions):
            return None
        from ..assets import fetch
        from ..diffusion.text import TextEncoder, encode_captions

        encoder = TextEncoder(fetch("minilm"), self.device)
        return encode_captions(encoder, latents.captions, length=self.config.text_length)

    def _shift(self, prepared: _Prepared) -> tuple[float | None, dict[float, list[CurvePoint]]]:
        """The shift that suits the arm's latents, see `shifts.py`, and the curves of the search for it."""
        if not self.config.shifts:
            return None, {}
        arm, seed = prepared.member.arm, self.config.shift_seed
        first = prepared.member._replace(vae_seed=self.config.vae_seeds[0])
        if prepared.member != first:
            return float(_wait_for_json(self.layout.shift(first))), {}
        curves: dict[float, list[CurvePoint]] = {}
        for shift in self.config.shifts:
            training = self.work.training(arm, shift)
            folder = self._transformer(prepared, training, seed)
            curves[shift] = self._curves(prepared, folder, seed, training.evaluation_steps)
        last = max(self.config.transformer.evaluation_steps)
        final = {shift: [point for point in points if point.step == last] for shift, points in curves.items()}
        scores = {shift: {point.metric: point.value for point in points} for shift, points in final.items()}
        shift = best_shift(scores)
        logger.info("arm %s: timestep shift %g of %s", arm, shift, list(scores))
        write_text(self.layout.shift(first), json.dumps(shift))
        return shift, curves

    def _transformers(self, prepared: _Prepared, training: DiTTrainConfig) -> dict[int, Path]:
        """Train the transformers of an autoencoder; returns the folder of their scores by seed."""
        scored = {}
        weights = weights_digest(prepared.vae.state_dict())
        for seed in self.config.seeds:
            scored[seed] = self._transformer(prepared, training, seed)
            self.records.finished(
                TrainedTransformer(
                    arm=prepared.member.arm,
                    seed=seed,
                    vae_seed=prepared.member.vae_seed,
                    folder=str(scored[seed].parent.relative_to(self.layout.output)),
                    autoencoder=self._place(prepared.member),
                    weights=weights,
                    diffusion=training.diffusion,
                    latent_mean=tuple(prepared.train_set.statistics.mean.tolist()),
                    latent_std=tuple(prepared.train_set.statistics.std.tolist()),
                )
            )
        return scored

    def _transformer(self, prepared: _Prepared, training: DiTTrainConfig, seed: int) -> Path:
        """Train one transformer, scoring it at the evaluation steps; returns the folder of its scores."""
        arm, scoring = prepared.member.arm, self.config.scoring
        file = self.layout.transformer(prepared.member, training, seed, prepared.reference.noise_levels)
        scores_folder = file.parent / "scores"
        tries = bool(self.config.shifts) and seed == self.config.shift_seed
        shift = getattr(training.diffusion, "shift", None) if tries else None
        name = transformer_name(self.layout.label(prepared.member), seed, shift)
        if file.exists() and is_scored(scores_folder, training.evaluation_steps):
            self.records.end(name, None)
            return scores_folder

        def score(step: int, model: DiT) -> None:
            start = time.monotonic()
            generator = DiTGenerator(model, training.diffusion, scoring)
            scores, samples = score_generator(generator, prepared.reference, scoring, prepared.loss_floor)
            self._scoring += time.monotonic() - start
            self.records.spent(f"scoring {arm}", time.monotonic() - start)
            write_scores(scores_folder, step, scores, samples)

        with self._stage(name, file, f"transformer {arm}"):
            run: Any = {"seed": seed, "device": self.device, "on_checkpoint": score, "text": prepared.text}
            train_dit(training, prepared.train_set, file.parent, **run)
        return scores_folder

    # --- results ------------------------------------------------------------------------------------------------------

    def _curves(self, prepared: _Prepared, folder: Path, seed: int, steps: Sequence[int]) -> list[CurvePoint]:
        """The scores of a transformer, with intervals over the held-out videos."""
        member, scoring = prepared.member, self.config.scoring
        scores = read_scores(folder, steps).items()
        over = {step: scores_over_videos(values, prepared.reference, scoring) for step, values in scores}
        return curve_points(over, member.arm, seed, member.vae_seed)

    def _arm_result(self, prepared: _Prepared, quality: Mapping[str, Tensor], shift: float | None) -> ArmResult:
        member = prepared.member
        checkpoint = self.config.arms[member.arm].checkpoint
        stages: list[JsonValue] = [
            stage.model_dump(mode="json", exclude={"data", "model"}) for stage in self.layout.trainings[member]
        ]
        training: dict[str, JsonValue] = {"checkpoint": checkpoint} if checkpoint else {"stages": stages}
        place = self._place(member)  # as a command in the same folder would name it
        training["autoencoder"] = place if checkpoint else str(self.layout.output / place)
        if shift is not None:
            training["timestep shift"] = shift
        scoring, floor = self.config.scoring, prepared.loss_floor
        result = arm_result(member.arm, prepared.reference, prepared.train_set, quality, scoring, floor)
        return replace(result, vae=prepared.vae.describe(), training=training)


def _wait_for_json(file: Path) -> Any:
    """The contents of a JSON file that another member, perhaps in another process, writes."""
    while not file.exists():
        time.sleep(_WATCH)
    return json.loads(file.read_text(encoding="utf-8"))
