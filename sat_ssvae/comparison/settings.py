"""What is compared, on which clips, and how much of it: the configuration of a comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from ..config import Config
from ..diffusion.process import FlowMatching
from ..diffusion.training import DiTTrainConfig
from ..engine.precision import resolved
from ..errors import UserError
from .scoring import ScoringConfig


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

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution


class ArmConfig(Config):
    """One autoencoder: settings over those that all arms share, and weights if it is trained already."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Keys of `sat-ssvae train`'s configuration that differ from `vae`."""
    checkpoint: str | None = None
    """An autoencoder to load instead of training one: an SSVAE's path, or KIND:PATH_OR_ID for one of diffusers."""
    stages: tuple[dict[str, Any], ...] = ()
    """Trainings one after the other instead of the comparison's `stages`."""


class CompareConfig(Config):
    """A comparison; the presets are sat_ssvae/configs/compare_*.yaml."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the transformer: its initial weights, order of the clips and noise."""
    vae_seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the autoencoders' training; every arm is trained once with each, and each result gets its transformers.
    With several, the intervals include what retraining the autoencoders would change."""
    caveat: str = ""
    """A warning at the top of the report and the summary."""
    data: ClipsConfig = ClipsConfig()
    """The clips that are cut out of the videos."""
    vae: dict[str, Any]
    """Settings of `sat-ssvae train` that all arms share."""
    stages: tuple[dict[str, Any], ...] = ()
    """Training runs of an autoencoder, one after the other: settings over `vae` and the arm's. Each starts from the
    weights of the one before, as `{max_steps: 1500, freeze_encoder: true, lmr_mask_ratio: 0}` trains the decoder on
    alone. Empty for a single run."""
    arms: dict[str, ArmConfig]
    """By name; the first is the baseline."""
    transformer: DiTTrainConfig
    """The transformer and its training, the same for all arms."""
    shifts: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Timestep shifts of flow matching that every arm tries on its first autoencoder; see `comparison/shifts.py` for
    which one it keeps. Empty keeps the transformer's own."""
    shift_seed: int = Field(default=1000, ge=0)
    """Seed of the transformers that try shifts; must not be among `seeds`."""
    scoring: ScoringConfig = ScoringConfig()
    """How much is scored."""
    text_length: int = Field(default=32, gt=0)
    """Tokens of a caption, if clips have captions."""
    film_seconds: float = Field(default=482.0, gt=0)
    """Seconds of the demo's film to use, without clips of the user's."""
    encode_batch_size: int = Field(default=16, gt=0)
    """Clips encoded together."""
    jobs: int | None = Field(default=None, gt=0)
    """Autoencoders, each with its transformers, that are worked on at a time, each in a process of its own; empty for
    as many as there are cores, or GPUs. Does not change the result; fewer need less memory."""

    def settled(self, device: torch.device) -> "CompareConfig":
        """This configuration with the precision that auto stands for on `device`.

        It is in the names of the stages' folders, so a comparison that continues on another machine does not mix two.
        """

        def settle(value: Any) -> Any:
            if not isinstance(value, dict):
                return [settle(part) for part in value] if isinstance(value, (list, tuple)) else value
            chosen = {"precision": resolved("auto", device)} if value.get("precision") == "auto" else {}
            return {key: settle(part) for key, part in value.items()} | chosen

        return type(self).model_validate(settle(self.model_dump()))

    @model_validator(mode="after")
    def _there_is_something_to_compare(self) -> "CompareConfig":
        if len(self.arms) < 2:
            raise ValueError("a comparison needs two arms or more, the baseline first")
        if not self.transformer.evaluation_steps:
            raise ValueError("transformer.evaluation_steps must name the steps at which samples are scored")
        return self

    @model_validator(mode="after")
    def _seeds_and_shifts_fit(self) -> "CompareConfig":
        parts = [self.vae, *self.stages, *(part for arm in self.arms.values() for part in (arm.settings, *arm.stages))]
        if any("seed" in part for part in parts):
            raise ValueError("an autoencoder's `seed` is given by vae_seeds, the same for all arms")
        given = [name for name, arm in self.arms.items() if arm.checkpoint is not None]
        if given and len(self.vae_seeds) > 1:
            raise ValueError(f"arm {given[0]} is not trained here, so it has no vae_seeds; give one vae_seed")
        if self.shifts and self.shift_seed in self.seeds:
            raise ValueError(f"shift_seed = {self.shift_seed} is one of `seeds`; choose one that serves nothing else")
        if self.shifts and not isinstance(self.transformer.diffusion, FlowMatching):
            raise ValueError("shifts are those of flow matching; v-prediction has transformer.diffusion.shift_scale")
        return self


Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class ClipSource:
    """Where training and held-out clips are, and their attribution."""

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

    def data(self, clips: ClipsConfig, split: Split) -> dict[str, Any]:
        """The data section of an autoencoder's training configuration."""
        own = clips.model_dump(include={"num_frames", "fps", "resolution", "num_workers"})
        return {"path": str(self.path[split]), "part": self.part[split], **own}
