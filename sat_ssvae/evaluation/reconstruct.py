"""Videos through an autoencoder and back: written as videos, and scored.

    report = reconstruct(open_autoencoder("my_vae"), Path("videos"), Path("out"), ReconstructConfig(), device)
    report.clips[0].scores["psnr"], report.totals()

A video may be of any length and size. It is read, encoded, decoded, scored and written a few frames at a time;
OUT/NAME.mp4 keeps frame rate and sound. Scores compare the decoded pixels, before they are rounded and compressed, with
the frames as they were read.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..autoencoders.roundtrip import round_trip
from ..config import Config, fingerprint
from ..data.skips import Skip
from ..data.video_io import TimedFrame, probe, read_frames, to_uint8, to_unit_range
from ..data.video_write import VideoWriter
from ..metrics.fidelity import reconstruction_scores
from ..metrics.frechet import I3D, MIN_FRAMES, ClipCollector, frechet_distance
from ..metrics.perceptual import Perceptual, PerceptualName, build_perceptual
from ..storage import digest_of, save_tensors
from ..vae.checkpoint import weights_digest
from .items import ERROR_MAP, SIDE_BY_SIDE, ItemResult, VideoItem, VideoJob, work_through
from .moments import MOMENTS, ORIGINAL, Exhibit, Moments, WorstMoment
from .side_by_side import side_by_side

ERROR_GAIN = 4
"""Gain of the absolute difference of each channel in an error map."""
RECONSTRUCTION_JOURNAL = "reconstruction.jsonl"
OWN = "reconstruction"
"""The view that a video's original is compared with."""
_FEATURES = "i3d"
_COMPARED = ("original", "own")
"""Names of the features of a video and of its reconstruction in their file."""


class ReconstructConfig(Config):
    """How videos are reconstructed and scored."""

    chunk_frames: int = Field(default=17, gt=0)
    """Frames in memory at a time. SSVAE's result does not depend on it; other video autoencoders start over with each
    chunk."""
    tile_size: int | None = Field(default=None, gt=0)
    """Pixels a side of the tiles that large frames are worked on in, so that memory does not grow with the frame; None
    for whole frames. The result is approximate."""
    perceptual: PerceptualName | Literal["none"] = "st-lpips-alex"
    """Perceptual distance beside PSNR and SSIM; `none` leaves it out."""
    i3d: Path | None = None
    """TorchScript file of FVD's I3D (`i3d_torchscript.pt`) for rFVD; None leaves it out."""
    fvd_frames: int = Field(default=17, ge=MIN_FRAMES)
    """Frames of the clips that rFVD compares, consecutive in each video, at its own frame rate."""
    side_by_side: bool = False
    """Also write NAME.side_by_side.mp4: original left, reconstruction right, with labels above."""
    error_map: bool = False
    """Also write NAME.error_map.mp4: four times the absolute difference."""


@dataclass(frozen=True)
class ClipScores(ItemResult):
    """A reconstructed video; scores: means over its frames."""

    height: int
    width: int
    fps: float
    scores: dict[str, float]


@dataclass(frozen=True)
class VideoDistance:
    """rFVD: Frechet distance between I3D's features of the videos' clips and of their reconstructions."""

    distance: float | None
    """None if there are fewer than two clips."""
    clips: int
    frames: int
    """In each clip."""
    dimension: int
    backbone: str
    """Name of the network's file."""
    sha256: str
    """Of that file."""

    @property
    def warning(self) -> str:
        """What is wrong with the number, if anything."""
        if self.distance is None:
            return f"rFVD needs 2 clips of {self.frames} frames at least, these videos have {self.clips}"
        if self.clips <= self.dimension:
            return (
                f"rFVD of {self.clips} clips, no more than the features' {self.dimension} dimensions: biased upwards, "
                "not comparable with published values (2048 clips)"
            )
        return ""


@dataclass(frozen=True)
class ReconstructionReport:
    """All videos of a run, and those that could not be used."""

    clips: list[ClipScores]
    skipped: list[Skip]
    rfvd: VideoDistance | None = None
    exhibits: list[Exhibit] = field(default_factory=list)
    """The worst moments of the videos with the lowest PSNR."""

    def totals(self) -> dict[str, float]:
        """Means over videos, which count equally whatever their length."""
        return {name: float(np.mean([clip.scores[name] for clip in self.clips])) for name in self.clips[0].scores}


@torch.no_grad()
def reconstruct(
    vae: VideoAutoencoder, source: Path, output: Path, config: ReconstructConfig, device: torch.device
) -> ReconstructionReport:
    """Reconstruct a video, or all of a folder or of shards, into the folder `output`.

    Videos that `output` already has, from the same weights and settings, are skipped. A video that cannot be used is
    listed in the report, and the others are still processed.

    Raises:
        UserError: no videos, none that can be used, or `output` is inside the folder of videos.
    """
    perceptual = None if config.perceptual == "none" else build_perceptual(config.perceptual).to(device)
    i3d = None if config.i3d is None else I3D(config.i3d, device)
    moments = Moments(output / MOMENTS)
    run = _Run(vae.to(device).eval(), output, config, device, perceptual, i3d, moments)
    weights = [weights_digest(vae.state_dict()), *([i3d.sha256] if i3d else [])]
    skipped: list[Skip] = []
    job = VideoJob(
        "reconstructing",
        ClipScores,
        key=lambda item: fingerprint(item.name, digest_of(item.source), *weights, config),
        paths=lambda item: _paths(item.name, output, config).values(),
        frames=lambda info: info.frames,
        work=run.video,
        known=lambda clip: moments.add(clip.name, clip.scores["psnr"]),
    )
    clips = work_through(source, output / RECONSTRUCTION_JOURNAL, job, skipped)
    rfvd = None if i3d is None else _rfvd(clips, output, config, i3d)
    return ReconstructionReport(clips, skipped, rfvd, moments.exhibits())


@dataclass(frozen=True)
class _Run:
    """What all videos share."""

    vae: VideoAutoencoder
    output: Path
    config: ReconstructConfig
    device: torch.device
    perceptual: Perceptual | None
    i3d: I3D | None
    moments: Moments

    def video(self, item: VideoItem, key: str, advance: Callable[[int], object]) -> ClipScores:
        """Reconstruct, write and score a video."""
        info, paths = probe(item.source), _paths(item.name, self.output, self.config)
        sums: defaultdict[str, float] = defaultdict(float)
        count = 0
        moment = WorstMoment(ORIGINAL, [OWN])
        collectors = [] if self.i3d is None else [ClipCollector(self.i3d, self.config.fvd_frames) for _ in _COMPARED]
        with ExitStack() as files:
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            writers = {
                view: files.enter_context(VideoWriter(path, info.fps, sound=item.source))
                for view, path in paths.items()
                if view in _VIEWS
            }
            for frames, original, video in self._pairs(item.source):
                for name, value in reconstruction_scores(video, original, self.perceptual).items():
                    sums[name] += float(value) * len(frames)
                count += len(frames)
                for collector, compared in zip(collectors, (original, video), strict=False):
                    collector.add(compared)
                pictures = to_uint8(video[0]).permute(1, 2, 3, 0).cpu().numpy()
                moment.add({ORIGINAL: np.stack([frame.picture for frame in frames]), OWN: pictures})
                for frame, picture in zip(frames, pictures, strict=True):
                    for view, writer in writers.items():
                        writer.write(_VIEWS[view](frame.picture, picture), frame.time)
                advance(len(frames))
            if collectors:
                features = zip(_COMPARED, collectors, strict=True)
                save_tensors(paths[_FEATURES], {name: collector.features() for name, collector in features})
        scores = {name: total / count for name, total in sums.items()}
        self.moments.add(item.name, scores["psnr"], moment)
        return ClipScores(item.name, count, key, info.height, info.width, info.fps, scores)

    def _pairs(self, source: Path | bytes) -> Iterator[tuple[list[TimedFrame], Tensor, Tensor]]:
        """Frames, the same as `1 C T H W`, and their reconstruction, for which the frames wait here."""
        waiting: deque[TimedFrame] = deque()

        def chunks() -> Iterator[Tensor]:
            frames = read_frames(source)
            while group := list(islice(frames, self.config.chunk_frames)):
                waiting.extend(group)
                yield _to_tensor(group, self.device)

        for video in round_trip(self.vae, chunks(), self.config.tile_size):
            frames = [waiting.popleft() for _ in range(video.shape[2])]
            yield frames, _to_tensor(frames, self.device), video


def _to_tensor(frames: list[TimedFrame], device: torch.device) -> Tensor:
    pictures = torch.from_numpy(np.stack([frame.picture for frame in frames])).to(device)
    return to_unit_range(pictures).permute(3, 0, 1, 2).unsqueeze(0)


def _error_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    difference = np.abs(original.astype(int) - reconstruction)
    return np.minimum(ERROR_GAIN * difference, 255).astype(np.uint8)


_VIEWS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    OWN: lambda original, reconstruction: reconstruction,
    SIDE_BY_SIDE: lambda original, own: side_by_side([original, own], [ORIGINAL, OWN]),
    ERROR_MAP: _error_map,
}


def _paths(name: str, output: Path, config: ReconstructConfig) -> dict[str, Path]:
    """The files to write, by view; one that is not a view holds I3D's features."""
    paths = {OWN: output / f"{name}.mp4"}
    for view, wanted in ((SIDE_BY_SIDE, config.side_by_side), (ERROR_MAP, config.error_map)):
        if wanted:
            paths[view] = output / f"{name}.{view}.mp4"
    if config.i3d is not None:
        paths[_FEATURES] = output / f"{name}.{_FEATURES}.safetensors"
    return paths


def _rfvd(clips: list[ClipScores], output: Path, config: ReconstructConfig, i3d: I3D) -> VideoDistance:
    """The distance over the clips of all videos."""
    kept = [load_file(_paths(clip.name, output, config)[_FEATURES]) for clip in clips]
    kept = [features for features in kept if len(features["own"])] or kept[:1]  # some videos are shorter than a clip
    originals, own = (torch.cat([features[name] for features in kept]) for name in _COMPARED)
    count, dimension = originals.shape
    distance = frechet_distance(own, originals) if count >= 2 else None
    return VideoDistance(distance, count, config.fvd_frames, dimension, i3d.path.name, i3d.sha256)
