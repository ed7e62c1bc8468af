"""What `sat-ssvae score` measures on the clips of each video; an interrupted run continues with the kept results.

    measuring = Measuring(Networks.load(i3d=None, similarity=None, device=device), ClipSettings(), journal=path)
    measured = measuring.folder(Path("samples"), prompts, bar)
    measured.features["clip"], measured.videos["a_red_car"]["flicker"]

A result depends on the video's content, its prompt, the choice of clips and the networks, not on its folder.
"""

import base64
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config, fingerprint
from ..data.files import VideoError
from ..data.skips import Skip
from ..data.video_io import probe, read_clip, to_unit_range
from ..errors import UserError
from ..metrics.features import ClipFeatures, FrameFeatures, feature_networks
from ..metrics.frechet import I3D, ClipCollector
from ..metrics.prompt_similarity import PromptSimilarity
from ..metrics.temporal import flicker, motion, smoothness
from ..progress import already_done
from ..storage import digest_of
from ..vae.checkpoint import weights_digest
from .items import VideoItem, list_items
from .journal import append, read_journal

TEMPORAL: Mapping[str, Callable[[Tensor], Tensor]] = {"smoothness": smoothness, "flicker": flicker, "motion": motion}
"""Measures of a single clip."""


class ClipSettings(Config):
    """The clips that are compared."""

    num_frames: int = Field(default=17, ge=3)
    """Frames in a clip; FVD needs at least 10."""
    fps: float = Field(default=8.0, gt=0)
    """Frames per second of a clip; videos slower than this are left out."""
    resolution: int = Field(default=256, ge=32)
    """Pixels a side; frames are scaled to cover the square and cropped at the centre."""


@dataclass(frozen=True)
class Networks:
    """The networks that are run on each clip: features by name, and optional ones."""

    features: Mapping[str, FrameFeatures | ClipFeatures]
    i3d: I3D | None
    similarity: PromptSimilarity | None
    device: torch.device

    @classmethod
    def load(cls, i3d: Path | None, similarity: PromptSimilarity | None, device: torch.device) -> "Networks":
        """With the package's own networks and the user's I3D."""
        return cls(feature_networks(device), I3D(i3d, device) if i3d else None, similarity, device)

    @cached_property
    def identity(self) -> list[str | None]:
        """Identifies the networks that a user can exchange."""
        clip = None if self.similarity is None else weights_digest(self.similarity.network.state_dict())
        return [None if self.i3d is None else self.i3d.sha256, clip]


@dataclass(frozen=True)
class MeasuredVideo:
    """A video's features by network, float32 (`clips`, D) in base64, and the means of its values over its clips."""

    key: str
    clips: int
    features: dict[str, str]
    values: dict[str, float]

    def tensor(self, network: str) -> Tensor:
        """Features (clips, D)."""
        data = np.frombuffer(base64.b64decode(self.features[network]), np.float32)
        return torch.from_numpy(data.reshape(self.clips, -1).copy())


@dataclass
class MeasuredFolder:
    """The features (n, D) of a folder's clips by network, the values of its videos, and the unusable videos."""

    name: str
    features: dict[str, Tensor] = field(default_factory=dict)
    videos: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)


@dataclass(frozen=True)
class Measuring:
    """How videos are measured; journal: the file that keeps the results, if any."""

    networks: Networks
    clips: ClipSettings
    clips_per_video: int = 1
    journal: Path | None = None

    @cached_property
    def _known(self) -> dict[str, MeasuredVideo]:
        records = read_journal(self.journal, MeasuredVideo) if self.journal else []
        return {record.key: record for record in records}

    def folder(self, source: Path, prompts: Mapping[Path | bytes, str], bar: Any) -> MeasuredFolder:
        """All videos of a folder or of shards; `bar` counts them.

        Raises:
            UserError: fewer than two usable videos.
        """
        measured = MeasuredFolder(str(source))
        found: list[MeasuredVideo] = []
        for item in list_items(source, measured.skipped):
            prompt = prompts.get(item.source, item.caption)
            key = self._key(item, prompt)
            try:
                if key in self._known:
                    already_done(bar, 1)
                else:
                    self._known[key] = self._measure(item, prompt, key)
                    if self.journal:
                        append(self.journal, self._known[key])
                    bar.update()
            except VideoError as error:
                measured.skipped.append(Skip(item.name, error.cause, str(error)))
                bar.update()
                continue
            found.append(self._known[key])
            measured.videos[item.name] = found[-1].values
        if len(found) < 2:
            why = f"; {measured.skipped[0].source}: {measured.skipped[0].detail}" if measured.skipped else ""
            raise UserError(f"{source}: usable videos: {len(found)}, scores need 2 at least{why}")
        measured.features = {name: torch.cat([video.tensor(name) for video in found]) for name in found[0].features}
        return measured

    def _key(self, item: VideoItem, prompt: str) -> str:
        text = prompt if self.networks.similarity else ""
        return fingerprint(digest_of(item.source), text, self.clips, self.clips_per_video, *self.networks.identity)

    def _measure(self, item: VideoItem, prompt: str, key: str) -> MeasuredVideo:
        """The clips of a video through all networks."""
        features: defaultdict[str, list[Tensor]] = defaultdict(list)
        values: defaultdict[str, list[float]] = defaultdict(list)
        for clip in self._clips(item):
            video = to_unit_range(clip)[None].to(self.networks.device)
            for name, found in self._features(video).items():
                features[name].append(found)
            for name, measure in TEMPORAL.items():
                values[name].append(float(measure(video)))
            if self.networks.similarity is not None and prompt:
                values["clip_similarity"].append(self.networks.similarity(video[0], prompt))
        kept = {name: torch.cat(parts).float().numpy().tobytes() for name, parts in features.items()}
        return MeasuredVideo(
            key,
            self.clips_per_video,
            {name: base64.b64encode(data).decode("ascii") for name, data in kept.items()},
            {name: sum(some) / len(some) for name, some in values.items()},
        )

    def _clips(self, item: VideoItem) -> Iterator[Tensor]:
        """The clips of a video, uint8 `3 T H W`, each beginning on one of the video's frames."""
        info, clips = probe(item.source), self.clips
        if info.fps < 0.99 * clips.fps:
            raise VideoError("too slow", f"{info.fps:g} frames per second, data.fps is {clips.fps:g}")
        last = round(info.duration * info.fps) - 0.5 - (clips.num_frames - 1) / clips.fps * info.fps  # in frames
        if last < 0:
            needed = clips.num_frames / clips.fps
            detail = f"{info.duration:.2f} s, a clip of {clips.num_frames} frames takes {needed:.2f} s"
            raise VideoError("too short", detail)
        size = clips.resolution, clips.resolution
        for number in range(self.clips_per_video):
            start = int(last * (number + 0.5) / self.clips_per_video) / info.fps
            yield read_clip(item.source, start=start, num_frames=clips.num_frames, fps=clips.fps, size=size)

    def _features(self, video: Tensor) -> dict[str, Tensor]:
        found = {name: network(video).cpu() for name, network in self.networks.features.items()}
        if self.networks.i3d is not None:
            collector = ClipCollector(self.networks.i3d, self.clips.num_frames)
            collector.add(video)
            found["i3d"] = collector.features()
        return found
