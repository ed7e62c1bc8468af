"""Generated videos scored against real ones, without a judge.

    report = score([Path("samples")], Path("real"), ScoreConfig(), device)
    report.folders[0].scores["motion_distance"].value

Distances between sets (kernel distances of frame and motion features, FVD with the user's I3D) need no prompts; CLIP
similarity does. All of it is measured on clips of one length, rate and size, so folders compare with each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..config import Config
from ..data.index import find_stores
from ..data.skips import Skip
from ..errors import UserError
from ..metrics.frechet import MIN_FRAMES, frechet_distance, frechet_interval
from ..metrics.intervals import MIN_VALUES, in_brackets, mean_interval
from ..metrics.kernel_distance import bootstrap_interval, kernel_distance
from ..metrics.prompt_similarity import PromptSimilarity
from ..progress import progress_bar
from .generated import list_videos
from .items import list_items
from .score_videos import TEMPORAL, ClipSettings, MeasuredFolder, Measuring, Networks

SCORE_JOURNAL = "score.jsonl"
CLIP = "openai/clip-vit-base-patch32"
"""Used if it is in the cache of transformers."""


class ScoreConfig(Config):
    """How generated videos are scored."""

    data: ClipSettings = ClipSettings()
    """The clips that are compared."""
    clips_per_video: int = Field(default=1, gt=0)
    """Clips out of each video, evenly spread over it. Intervals of the distances treat all clips as independent: with
    more than one they are too narrow."""
    i3d: Path | None = None
    """TorchScript file of FVD's I3D (`i3d_torchscript.pt`); None leaves FVD out."""
    clip: str = CLIP
    """CLIP model for the similarity to the prompts: a folder, or the name of one in the cache of transformers; none
    leaves it out. Nothing is downloaded."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap intervals."""

    @model_validator(mode="after")
    def _enough_frames(self) -> "ScoreConfig":
        if self.i3d is not None and self.data.num_frames < MIN_FRAMES:
            raise ValueError(f"FVD needs data.num_frames of at least {MIN_FRAMES}")
        return self


@dataclass(frozen=True)
class Measure:
    """A measure: its title with the unit, which values are better, and a sentence that explains it."""

    title: str
    better: str
    meaning: str


MEASURES: Mapping[str, Measure] = {
    "frame_distance": Measure(
        "frame distance",
        "lower",
        "kernel distance of frame features to the real videos: content and sharpness; near the real column, or 0, is "
        "as good as real",
    ),
    "motion_distance": Measure(
        "motion distance",
        "lower",
        "kernel distance of features over time to the real videos: freezes, shuffles and flicker count; near the real "
        "column, or 0, is as good as real",
    ),
    "fvd": Measure("FVD", "lower", "Frechet distance of I3D features; few clips raise it, so compare equal counts"),
    "clip_similarity": Measure(
        "CLIP similarity", "higher", "100 x cosine of frames and prompt: whether the video shows what the prompt says"
    ),
    "smoothness": Measure(
        "motion smoothness, dB",
        "higher",
        "PSNR of frames predicted by uniform motion of their neighbours; a frozen video has 58.9, so read it with the "
        "amount of motion",
    ),
    "flicker": Measure(
        "flicker, grey levels", "lower", "how much the brightness of regions jumps back and forth between frames"
    ),
    "motion": Measure(
        "motion, grey levels", "like real", "mean change of a pixel between frames: far below the real column is frozen"
    ),
}
"""In the order of the table."""
_DISTANCES = {"frame_distance": "frame", "motion_distance": "clip"}


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval, whose ends are None where fewer than four videos were measured."""

    value: float
    low: float | None
    high: float | None
    count: int
    """Videos behind a mean, generated clips behind a distance."""

    def __str__(self) -> str:
        return f"{self.value:.3g}{in_brackets(self.low, self.high, '{:.3g}'.format)}"


@dataclass(frozen=True)
class FolderScores:
    """A folder's scores by measure, the values of each video, and what could not be used."""

    name: str
    scores: dict[str, Score]
    videos: dict[str, dict[str, float]]
    skipped: list[Skip]


@dataclass(frozen=True)
class ScoreReport:
    """Scores of the generated folders; those of the real one, whose distances are between its own two halves."""

    folders: tuple[FolderScores, ...]
    real: FolderScores
    notes: tuple[str, ...]
    """What was left out, and caveats."""


def score(
    generated: Sequence[Path],
    real: Path,
    config: ScoreConfig,
    device: torch.device,
    prompts: Path | None = None,
    journal: Path | None = None,
) -> ScoreReport:
    """Score folders (or shards) of generated videos against real ones.

    `prompts` are as in `list_videos`. `journal` is a file of the results of each video, with which a later call
    continues; None for no file.

    Raises:
        UserError: fewer than two usable videos in a set, prompts that cannot be read or, where they were given, are
            incomplete, or a network that cannot be used.
    """
    for folder in (*generated, real):  # before any of them is measured
        if not folder.is_file():
            find_stores(str(folder), lambda _skip: None)
    notes: list[str] = []
    similarity = _similarity(config, device, notes)
    given = [_prompts(folder, prompts, notes) if similarity else {} for folder in generated]
    networks = Networks.load(config.i3d, similarity, device)
    measuring = Measuring(networks, config.data, config.clips_per_video, journal)
    total = sum(1 for folder in (real, *generated) for _ in list_items(folder, []))
    with progress_bar(total, "scoring", "video") as bar:
        reference = measuring.folder(real, {}, bar)
        sets = [measuring.folder(folder, texts, bar) for folder, texts in zip(generated, given, strict=True)]
    folders = tuple(_folder(measured, reference, config) for measured in sets)
    if config.clips_per_video > 1:
        notes.append(f"{config.clips_per_video} clips of each video count as independent: intervals are too narrow")
    notes += _fvd_notes([*sets, reference])
    return ScoreReport(folders, _folder(reference, None, config), tuple(dict.fromkeys(notes)))


def _fvd_notes(sets: Sequence[MeasuredFolder]) -> list[str]:
    """Why FVD is missing, or what is wrong with it."""
    if "i3d" not in sets[0].features:
        return ["FVD left out: give the TorchScript file of its network with i3d=FILE"]
    fewest, dimension = min(len(one.features["i3d"]) for one in sets), sets[0].features["i3d"].shape[1]
    if fewest > dimension:
        return []
    return [f"FVD of {fewest} clips, no more than {dimension} dimensions: biased upwards"]


def _similarity(config: ScoreConfig, device: torch.device, notes: list[str]) -> PromptSimilarity | None:
    """The CLIP model; None, with a note, if it is not on this machine and was not asked for."""
    if config.clip == "none":
        return None
    try:
        return PromptSimilarity(config.clip, device)
    except (UserError, ModuleNotFoundError):
        if config.clip != CLIP:
            raise
        notes.append("CLIP similarity left out: no model at hand, give the folder of one with clip=FOLDER")
        return None


def _prompts(folder: Path, prompts: Path | None, notes: list[str]) -> dict[Path | bytes, str]:
    """Prompts by the video's source; shards have only captions."""
    try:
        return {video.source: video.caption for video in list_videos(folder, prompts)}
    except UserError as error:
        if prompts is not None or not folder.is_dir():
            raise
        if not any(item.caption for item in list_items(folder, [])):
            notes.append(f"CLIP similarity of {folder} left out: {error}")
        return {}


def _folder(measured: MeasuredFolder, reference: MeasuredFolder | None, config: ScoreConfig) -> FolderScores:
    """Scores of a folder against the reference, or without one, of one half of it against the other."""
    scores: dict[str, Score] = {}
    for name, network in _DISTANCES.items():
        own = measured.features[network]
        sets = (own, reference.features[network]) if reference else (own[0::2], own[1::2])
        if min(map(len, sets)) >= 2:
            low, high = bootstrap_interval(*sets, seed=config.seed) if _enough(*sets) else (None, None)
            scores[name] = Score(kernel_distance(*sets), low, high, len(own))
    if reference and "i3d" in measured.features:
        sets = measured.features["i3d"], reference.features["i3d"]
        low, high = frechet_interval(*sets, seed=config.seed) if _enough(*sets) else (None, None)
        scores["fvd"] = Score(frechet_distance(*sets), low, high, len(sets[0]))
    for name in ("clip_similarity", *TEMPORAL):
        values = [of_video[name] for of_video in measured.videos.values() if name in of_video]
        if values:
            mean = mean_interval(values, seed=config.seed)
            scores[name] = Score(mean.mean, mean.low, mean.high, mean.count)
    ordered = {name: scores[name] for name in MEASURES if name in scores}
    return FolderScores(measured.name, ordered, measured.videos, measured.skipped)


def _enough(*sets: Tensor) -> bool:
    return min(map(len, sets)) >= MIN_VALUES
