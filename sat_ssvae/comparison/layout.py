"""Where the stages of a comparison are: folders whose names carry a fingerprint of everything that a stage depends on.

layout = Layout(config, output, source, trainings, given)
layout.folder("latents", layout.label(member), layout.latent_identity(member))     # OUTPUT/latents/ssvae-3f2a...
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config import fingerprint, parse_config
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


@dataclass(frozen=True)
class Layout:
    """Names of stages; `given` has the identity of each autoencoder that is not trained here, by arm."""

    config: CompareConfig
    output: Path
    source: ClipSource
    trainings: Mapping[Member, Sequence[TrainConfig]]
    given: Mapping[str, list[Any]]

    def folder(self, stage: str, name: str, *parts: Any) -> Path:
        """The folder of a stage that depends on `parts`."""
        return self.output / stage / f"{name}-{fingerprint(*parts)}"

    def label(self, member: Member) -> str:
        """The name of an autoencoder: its arm, and its seed where there are several."""
        return member.arm if len(self.config.vae_seeds) == 1 else f"{member.arm}-vae{member.vae_seed}"

    def training_label(self, member: Member, number: int) -> str:
        """The name of an autoencoder's training stage, counted from 1."""
        return self.label(member) + (f"-stage{number}" if len(self.trainings[member]) > 1 else "")

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
