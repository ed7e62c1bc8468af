"""The whole comparison, from clips to a report.

    bash scripts/compare_convergence.sh --preset default

Stages: clips -> one autoencoder an arm -> latents -> one transformer an arm and seed, scored as it trains -> report.
Each stage works in a folder whose name carries a fingerprint of everything that it depends on. So a finished stage is
found again, an interrupted one continues, and a changed setting makes a new folder and leaves the old one alone.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import Config, fingerprint, parse_config
from ..data.demo import prepare_demo
from ..data.shards import DataConfig, FixedClips, fixed_clips
from ..data.skips import SkipLog
from ..data.video_io import to_uint8
from ..errors import UserError
from ..evaluation.features import ClipFeatures, FrameFeatures
from ..spectral.correlation import local_correlation
from ..spectral.spectrum import channel_eigenvalues, cumulative_explained_variance, dct_amplitude
from ..training.perceptual import build_perceptual
from ..training.trainer import TrainConfig, train
from ..vae.autoencoder import SSVAE
from ..vae.checkpoint import load_pretrained
from .analysis import paired_difference
from .dit import DiT
from .dit_training import DiTTrainConfig, train_dit
from .latents import LatentSet, encode_latents
from .pictures import Pictures
from .report import write_report
from .results import ArmResult, ComparisonResults, CurvePoint, Estimate
from .scoring import (
    ArmReference,
    Features,
    ScoringConfig,
    distance_floors,
    gaussian_loss_floor,
    mean_estimate,
    measure_arm,
    reconstruction_quality,
    score_transformer,
)

logger = logging.getLogger(__name__)


class ClipsConfig(Config):
    """The clips that both arms see."""

    num_frames: int = Field(default=9, gt=0)
    """Frames in a clip, 4k + 1."""
    fps: float = Field(default=8.0, gt=0)
    """Frames per second."""
    resolution: int | tuple[int, int] = 64
    """Pixels, one number for squares or [height, width]."""
    train_stride: float = Field(default=0.25, gt=0)
    """Seconds between the starts of the clips whose latents the transformer learns."""
    heldout_stride: float = Field(default=1.0, gt=0)
    """Seconds between the starts of held-out clips."""
    max_heldout: int = Field(default=256, ge=8)
    """At most this many held-out clips."""
    num_workers: int = Field(default=1, ge=0)
    """Processes that decode video."""

    def data(self, path: Path, part: str) -> dict[str, Any]:
        """The data section of an autoencoder's training configuration."""
        return {
            "path": str(path),
            "part": part,
            **self.model_dump(include={"num_frames", "fps", "resolution", "num_workers"}),
        }


class ArmConfig(Config):
    """One autoencoder: settings over those that all arms share, and weights if it is trained already."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Keys of `sat-ssvae train`'s configuration that differ from `vae`."""
    checkpoint: Path | None = None
    """Weights to load instead of training."""


class CompareConfig(Config):
    """A comparison; the presets are sat_ssvae/configs/compare_*.yaml."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the transformer: its initial weights, order of the clips and noise. The autoencoders have one seed."""
    clips: ClipsConfig = ClipsConfig()
    """What is cut out of the videos."""
    vae: dict[str, Any]
    """Settings of `sat-ssvae train` that all arms share."""
    arms: dict[str, ArmConfig]
    """By name; the first is the baseline."""
    transformer: DiTTrainConfig
    """The transformer and its training, the same for all arms."""
    scoring: ScoringConfig = ScoringConfig()
    """How much is scored."""
    text_length: int = Field(default=32, gt=0)
    """Tokens of a caption, where clips have captions."""
    film_seconds: float = Field(default=482.0, gt=0)
    """How much of the demo's film is used, where the user gives no clips."""
    encode_batch_size: int = Field(default=16, gt=0)
    """Clips encoded together."""

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> "CompareConfig":
        if len(self.arms) < 2:
            raise ValueError("a comparison needs two arms or more, the baseline first")
        if not self.transformer.evaluation_steps:
            raise ValueError("transformer.evaluation_steps must name the steps at which samples are scored")
        return self


Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class ClipSource:
    """Where training and held-out clips lie, and whom to credit for them."""

    path: dict[Split, Path]
    part: dict[Split, str]
    """Which part of the samples at `path` the split is, see `DataConfig.part`."""
    attribution: str = ""

    @classmethod
    def separate(cls, train: Path, heldout: Path, attribution: str = "") -> "ClipSource":
        """Two folders that were split before."""
        return cls({"train": train, "heldout": heldout}, {"train": "all", "heldout": "all"}, attribution)

    @classmethod
    def of_user(cls, folder: Path) -> "ClipSource":
        """`folder`/train and `folder`/heldout where they exist; else all its samples, a tenth of them held out.

        Raises:
            UserError: there is no such folder.
        """
        if not folder.exists():
            raise UserError(f"{folder}: no such folder of videos or shards")
        train, heldout = folder / "train", folder / "heldout"
        if train.is_dir() and heldout.is_dir():
            return cls.separate(train, heldout)
        return cls({"train": folder, "heldout": folder}, {"train": "train", "heldout": "heldout"})


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
        clips: where they lie; None for the demo's.

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
        self.started = time.monotonic()
        self.minutes = _Stopwatch(output / "minutes.json")
        self.source = clips or self._demo()
        # All arms are checked before the first one is trained.
        self.trainings = {
            name: parse_config(
                TrainConfig,
                {**config.vae, **arm.settings, "data": self._data("train")},
                source=f"arm {name}",
            )
            for name, arm in config.arms.items()
        }

    def run(self) -> ComparisonResults:
        vaes = {name: self._autoencoder(name) for name in self.config.arms}
        clips = self._heldout_clips()
        features: Features = {"frame": FrameFeatures().to(self.device), "clip": ClipFeatures().to(self.device)}
        perceptual = build_perceptual("st-lpips-alex").to(self.device)
        arms: list[ArmResult] = []
        curves: list[CurvePoint] = []
        shown = self.config.scoring.shown_clips
        reconstructions: dict[str, Sequence[Tensor]] = {}
        samples: dict[str, Mapping[int, Sequence[Tensor]]] = {}
        quality: dict[str, dict[str, Tensor]] = {}
        for name, vae in vaes.items():
            train_set, heldout, text = self._latents(name, vae)
            reference = measure_arm(vae, heldout, clips, features, self.config.scoring, self._caption_states(heldout))
            quality[name] = reconstruction_quality(reference, perceptual)
            loss_floor = gaussian_loss_floor(train_set, self.config.transformer.diffusion, self.config.scoring)
            arms.append(self._arm_result(name, train_set, reference, quality, loss_floor))
            reconstructions[name] = _pictures(_spread(reference.reconstructions, shown))
            for seed in self.config.seeds:
                folder = self._transformer(name, seed, train_set, reference, loss_floor, text)
                curves += self._curves(name, seed, folder)
                samples.setdefault(name, self._shown_samples(folder))
        originals = _pictures(_spread(clips, shown))
        pictures = Pictures(self.config.clips.fps, originals, reconstructions, samples)
        return self._report(arms, curves, pictures, len(clips))

    # --- stages -------------------------------------------------------------------------------------------------------

    def _demo(self) -> ClipSource:
        resolution = self.config.clips.resolution
        short_side = resolution if isinstance(resolution, int) else min(resolution)
        with self.minutes("clips"):
            seconds = self.config.film_seconds
            folder = self.output / f"clips-{short_side}-{seconds:g}s"
            demo = prepare_demo(folder, resolution=short_side, film_seconds=seconds)
        return ClipSource.separate(demo.train, demo.heldout, demo.attribution.read_text(encoding="utf-8"))

    def _autoencoder(self, name: str) -> SSVAE:
        checkpoint = self.config.arms[name].checkpoint
        if checkpoint is not None:
            return load_pretrained(checkpoint).to(self.device).eval()
        folder = self._folder("vae", name, self._training_identity(name))
        with self.minutes(f"autoencoder {name}"):
            finished = train(self.trainings[name], folder, self.device)
        return load_pretrained(finished).to(self.device).eval()

    def _heldout_clips(self) -> Tensor:
        videos = [clip.video for clip in self._clips("heldout")]
        if len(videos) < 8:
            raise UserError(
                f"{self.source.path['heldout']}: {len(videos)} held-out clips, a comparison needs 8 at least (100 to "
                "say much); give more or longer videos, or a shorter clips.heldout_stride"
            )
        return torch.stack(videos)

    def _data(self, split: Split) -> dict[str, Any]:
        return self.config.clips.data(self.source.path[split], self.source.part[split])

    def _clips(self, split: Split) -> FixedClips:
        clips = self.config.clips
        return fixed_clips(
            parse_config(DataConfig, self._data(split)),
            stride=clips.heldout_stride if split == "heldout" else clips.train_stride,
            limit=clips.max_heldout if split == "heldout" else None,
            skips=SkipLog(self.output / f"skipped_{split}.jsonl"),
        )

    def _latents(self, name: str, vae: SSVAE) -> tuple[LatentSet, LatentSet, Any]:
        """Training latents, held-out latents standardised like them, and the training captions' states."""
        folder = self._folder("latents", name, self._latent_identity(name))
        with self.minutes(f"latents {name}"):
            for split in SPLITS:
                file = folder / f"{split}.safetensors"
                if not file.exists():
                    batch_size = self.config.encode_batch_size
                    encode_latents(vae, self._clips(split), file, batch_size=batch_size, device=self.device)
        train_set = LatentSet.load(folder / "train.safetensors")
        heldout = LatentSet.load(folder / "heldout.safetensors", statistics=train_set.statistics)
        return train_set, heldout, self._caption_states(train_set)

    def _caption_states(self, latents: LatentSet) -> Any:
        """Token states of the captions, or None where no clip has one."""
        if not any(latents.captions):
            return None
        from ..assets import fetch
        from .text import TextEncoder, encode_captions

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
        folder = self._folder(
            "transformer", f"{name}-seed{seed}", self._latent_identity(name), config.transformer, config.scoring
        )
        scores_folder = folder / "scores"
        scored = [scores_folder / f"step_{step}.json" for step in config.transformer.evaluation_steps]
        if (folder / "dit.safetensors").exists() and all(path.exists() for path in scored):
            return scores_folder
        scores_folder.mkdir(parents=True, exist_ok=True)

        def score(step: int, model: DiT) -> None:
            with self.minutes(f"scoring {name}"):
                scores, samples = score_transformer(
                    model, reference, config.scoring, config.transformer.diffusion, loss_floor
                )
            save_file({"video": to_uint8(samples).contiguous()}, scores_folder / f"step_{step}.safetensors")
            plain = {metric: asdict(estimate) for metric, estimate in scores.items()}
            _write_text(scores_folder / f"step_{step}.json", json.dumps(plain, indent=1))

        scoring_before = self.minutes.of(f"scoring {name}")
        with self.minutes(f"transformer {name}", minus=lambda: self.minutes.of(f"scoring {name}") - scoring_before):
            train_dit(
                config.transformer, train_set, folder, seed=seed, device=self.device, on_checkpoint=score, text=text
            )
        return scores_folder

    def _curves(self, name: str, seed: int, scores: Path) -> list[CurvePoint]:
        points = []
        for step in self.config.transformer.evaluation_steps:
            values = json.loads((scores / f"step_{step}.json").read_text(encoding="utf-8"))
            points += [CurvePoint(name, seed, metric, step, **estimate) for metric, estimate in values.items()]
        return points

    def _shown_samples(self, scores: Path) -> dict[int, Sequence[Tensor]]:
        steps = self.config.transformer.evaluation_steps
        return {step: _pictures(load_file(scores / f"step_{step}.safetensors")["video"]) for step in steps}

    # --- results ------------------------------------------------------------------------------------------------------

    def _arm_result(
        self,
        name: str,
        train_set: LatentSet,
        reference: ArmReference,
        quality: Mapping[str, Mapping[str, Tensor]],
        loss_floor: float,
    ) -> ArmResult:
        latents = train_set.latents
        mine, baseline = quality[name], quality[next(iter(quality))]
        correlation = local_correlation(latents).mean
        floors = distance_floors(reference, self.config.scoring) | {
            "loss": Estimate(loss_floor),
            "loss_above_floor": Estimate(0.0),
        }
        training = self.trainings[name].model_dump(mode="json", exclude={"data", "model"})
        checkpoint = self.config.arms[name].checkpoint
        return ArmResult(
            name=name,
            vae=reference.vae.config.model_dump(mode="json"),
            training={"checkpoint": str(checkpoint)} if checkpoint else training,
            reconstruction={metric: mean_estimate(values) for metric, values in mine.items()}
            | ({} if correlation is None else {"local correlation": Estimate(correlation.item())}),
            floors=floors,
            dct_amplitude=tuple(dct_amplitude(latents).tolist()),
            explained_variance=tuple(cumulative_explained_variance(channel_eigenvalues(latents)).tolist()),
            reconstruction_difference={}
            if mine is baseline
            else {m: paired_difference(v.tolist(), baseline[m].tolist()) for m, v in mine.items()},
        )

    def _report(
        self, arms: Sequence[ArmResult], curves: Sequence[CurvePoint], pictures: Pictures, heldout: int
    ) -> ComparisonResults:
        config = self.config
        results = ComparisonResults(
            arms=tuple(arms),
            curves=tuple(curves),
            seeds=config.seeds,
            budget={
                "autoencoder steps": {n: t.max_steps for n, t in self.trainings.items()},
                "transformer steps": config.transformer.max_steps,
                "minutes": {**self.minutes.rounded()},
            },
            machine=_machine(self.device),
            packages={name: metadata.version(name) for name in ("torch", "deepspeed", "numpy", "av")},
            configuration=config.model_dump(mode="json"),
            measurement={
                "held-out clips": heldout,
                "clip": config.clips.model_dump(mode="json"),
                "scoring": config.scoring.model_dump(mode="json"),
                "seeds vary": "the transformer's initial weights, clip order and noise; the autoencoders have one seed",
            },
            command=self.command,
            attribution=self.source.attribution,
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
        return [training, _content(self.source.path["train"])]

    def _latent_identity(self, name: str) -> list[Any]:
        checkpoint = self.config.arms[name].checkpoint
        weights = self._training_identity(name) if checkpoint is None else _content(checkpoint)
        clips = self.config.clips.model_dump(mode="json", exclude={"num_workers"})
        return [weights, clips, *(_content(self.source.path[split]) for split in SPLITS)]


class _Stopwatch:
    """Minutes spent in each stage, over interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._minutes: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, stage: str, minus: Any = None) -> "_Lap":
        return _Lap(self, stage, minus)

    def add(self, stage: str, minutes: float) -> None:
        self._minutes[stage] = self.of(stage) + minutes
        _write_text(self._path, json.dumps(self._minutes, indent=1))

    def of(self, stage: str) -> float:
        return self._minutes.get(stage, 0.0)

    def rounded(self) -> dict[str, float]:
        return {stage: round(minutes, 2) for stage, minutes in self._minutes.items()}


class _Lap:
    """One timed stage; `minus()` gives the minutes in it that another stage counts."""

    def __init__(self, watch: _Stopwatch, stage: str, minus: Any) -> None:
        self._watch, self._stage, self._minus = watch, stage, minus

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        minutes = (time.monotonic() - self._start) / 60
        self._watch.add(self._stage, minutes - (self._minus() if self._minus else 0.0))


def _spread(clips: Tensor, count: int) -> Tensor:
    """`count` of the clips, evenly spread: neighbours show the same scene."""
    return to_uint8(clips[torch.linspace(0, len(clips) - 1, min(count, len(clips))).long()])


def _pictures(clips: Tensor) -> list[Tensor]:
    """uint8 `N C T H W` as a list of `T H W C`."""
    return list(clips.permute(0, 2, 3, 4, 1))


def _content(path: Path) -> list[list[Any]]:
    """Names and sizes of the files in a folder (or of a file): changes when clips or weights are replaced."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        [str(file.relative_to(path)), file.stat().st_size]
        for file in files
        if file.is_file() and file.name != "skipped.jsonl"
    ]


def _machine(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"cpu": cpu, "cores": os.cpu_count() or 1, **gpu, "python": platform.python_version()}


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
