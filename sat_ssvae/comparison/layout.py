"""Where the stages of a comparison are: folders whose names have a fingerprint of everything that a stage depends on.

layout = Layout(config, output, source, trainings, given)
layout.folder("latents", layout.label(member), layout.latent_identity(member))     # OUTPUT/latents/ssvae-vae0-3f2a...
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config import fingerprint, parse_config, refuse_unknown_keys
from ..diffusion.training import DiTTrainConfig
from ..training.settings import TrainConfig
from .bookkeeping import content
from .settings import SPLITS, ClipSource, CompareConfig, Split


class Member(NamedTuple):
    """One autoencoder of an arm."""

    arm: str
    vae_seed: int


def stages_of(config: CompareConfig, member: Member, data: dict[str, Any]) -> list[TrainConfig]:
    """The configuration of each stage of an autoencoder's training on `data`.

    Raises:
        UserError: settings that do not exist or do not fit; it names the arm.
    """
    arm = config.arms[member.arm]
    shared = {**config.vae, **arm.settings, "data": data, "seed": member.vae_seed}
    stages = arm.stages or config.stages or ({},)
    return [parse_config(TrainConfig, {**shared, **stage}, source=f"arm {member.arm}") for stage in stages]


def refuse_wrong_arms(config: CompareConfig) -> None:
    """Check the settings of all arms before there are clips.

    Raises:
        UserError: as `stages_of`; a key in `vae` is named in full.
    """
    data = ClipSource.separate(Path("videos"), Path("videos")).data(config.data, "train")
    refuse_unknown_keys(TrainConfig, {**config.vae, "data": data}, "vae.")
    for arm in config.arms:
        stages_of(config, Member(arm, config.vae_seeds[0]), data)


@dataclass(frozen=True)
class Layout:
    """Folders and names of stages; given: the identity of each autoencoder that is not trained here, by arm."""

    config: CompareConfig
    output: Path
    source: ClipSource
    trainings: Mapping[Member, Sequence[TrainConfig]]
    given: Mapping[str, list[Any]]

    def folder(self, stage: str, name: str, *parts: Any) -> Path:
        """The folder of a stage that depends on `parts`."""
        return self.output / stage / f"{name}-{fingerprint(*parts)}"

    def label(self, member: Member) -> str:
        """The name of an autoencoder: its arm, and its seed if it is trained here."""
        return member.arm if member.arm in self.given else f"{member.arm}-vae{member.vae_seed}"

    def training_label(self, member: Member, number: int) -> str:
        """The name of an autoencoder's training stage, counted from 1."""
        return self.label(member) + (f"-stage{number}" if len(self.trainings[member]) > 1 else "")

    def trained(self, member: Member, number: int) -> Path:
        """The file that an autoencoder's training stage, counted from 1, writes last."""
        label = self.training_label(member, number)
        return self.folder("vae", label, self.training_identity(member, number)) / "done"

    def encoded(self, member: Member) -> Path:
        """The file of held-out latents, which is written after that of the training latents."""
        return self.folder("latents", self.label(member), self.latent_identity(member)) / "heldout.safetensors"

    def noise_levels(self, member: Member) -> Path:
        """The file with the levels at which an arm is denoised; the baseline, with the same seed, has none."""
        baseline = self.latent_identity(self.baseline(member))
        return self.encoded(member).with_name(f"noise_levels-{fingerprint(baseline, self.config.scoring)}.json")

    def linear_errors(self, member: Member) -> Path:
        """The file with the errors of the best linear predictor on the baseline of the same seed."""
        baseline = self.encoded(self.baseline(member))
        return baseline.with_name(
            f"linear_errors-{fingerprint(self.config.scoring, self.config.transformer.diffusion)}.json"
        )

    def shift(self, member: Member) -> Path:
        """The file with the timestep shift that an arm's first autoencoder, `member`, chose."""
        config, baseline = self.config, self.latent_identity(self.baseline(member))
        parts = baseline, config.shifts, config.shift_seed, config.transformer, config.scoring
        return self.encoded(member).with_name(f"shift-{fingerprint(*parts)}.json")

    def baseline(self, member: Member) -> Member:
        """The baseline's autoencoder of the same seed."""
        return Member(next(iter(self.config.arms)), member.vae_seed)

    def transformer(self, member: Member, training: DiTTrainConfig, seed: int, levels: Mapping[float, float]) -> Path:
        """A transformer's file, in a folder of its own; `levels` are the noise levels that it is scored at."""
        label = f"{self.label(member)}-seed{seed}"
        parts = self.latent_identity(member), training, self.config.scoring, sorted(levels.items())
        return self.folder("transformer", label, *parts) / "dit.safetensors"

    def known_transformer(self, member: Member, training: DiTTrainConfig, seed: int) -> Path | None:
        """The same, with the levels that an earlier run wrote; None if it wrote none."""
        if member == self.baseline(member):
            return self.transformer(member, training, seed, {})
        file = self.noise_levels(member)
        if not file.exists():
            return None
        levels = {float(level): value for level, value in json.loads(file.read_text()).items()}
        return self.transformer(member, training, seed, levels)

    def skipped(self, split: Split) -> Path:
        """The list of clips that could not be used."""
        return self.output / f"skipped_{split}.jsonl"

    def training_identity(self, member: Member, stages: int | None = None) -> list[Any]:
        """What an autoencoder depends on after `stages` trainings; the number of data workers does not count."""
        trainings = [training.model_dump(mode="json") for training in self.trainings[member][:stages]]
        for training in trainings:
            del training["data"]["path"], training["data"]["num_workers"]
        return [*trainings, content(self.source.path["train"])]

    def latent_identity(self, member: Member) -> list[Any]:
        """What an autoencoder's latents depend on."""
        weights = self.given.get(member.arm) or self.training_identity(member)
        clips = self.config.data.model_dump(mode="json", exclude={"num_workers"})
        return [weights, clips, *(content(self.source.path[split]) for split in SPLITS)]
