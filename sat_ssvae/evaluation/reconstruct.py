"""Videos through an autoencoder and back: written as videos, and scored.

    report = reconstruct(open_autoencoder("my_vae"), Path("videos"), Path("out"), ReconstructConfig(), device)
    report.clips[0].scores["psnr"], report.totals()

A video may be of any length and size. It is read, encoded, decoded, scored and written a few frames at a time;
OUT/NAME.mp4 keeps frame rate and sound. Scores compare the decoded pixels, before they are rounded and compressed, with
the frames as they were read.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config, fingerprint
from ..data.index import find_stores, read_records
from ..data.skips import Skip, printable
from ..data.video_io import VIDEO_SUFFIXES, TimedFrame, VideoError, probe, read_frames, to_uint8, to_unit_range
from ..data.video_write import VideoWriter
from ..errors import UserError
from ..progress import progress_bar
from ..training.perceptual import Perceptual, PerceptualName, build_perceptual
from ..vae.checkpoint import weights_digest
from .autoencoders import VideoAutoencoder
from .journal import append, read_journal
from .metrics import reconstruction_scores
from .roundtrip import round_trip

ERROR_GAIN = 4
"""An error map shows so many times the absolute difference of each channel."""
JOURNAL = "reconstruction.jsonl"
_BLOCK = 1 << 20


class ReconstructConfig(Config):
    """How videos are reconstructed and scored."""

    chunk_frames: int = Field(default=17, gt=0)
    """Frames in memory at a time. SSVAE's result does not depend on it; another video autoencoder starts anew with each
    such chunk."""
    perceptual: PerceptualName | Literal["none"] = "st-lpips-alex"
    """Perceptual distance beside PSNR and SSIM; `none` leaves it out."""
    side_by_side: bool = False
    """Also write NAME.side_by_side.mp4: original left, reconstruction right."""
    error_map: bool = False
    """Also write NAME.error_map.mp4: four times the absolute difference."""


@dataclass(frozen=True)
class ClipScores:
    """A video that was reconstructed; `scores` are means over its frames, `key` is what they belong to."""

    name: str
    frames: int
    height: int
    width: int
    fps: float
    scores: dict[str, float]
    key: str


@dataclass(frozen=True)
class ReconstructionReport:
    """All videos of a run, and what could not be used."""

    clips: list[ClipScores]
    skipped: list[Skip]

    def totals(self) -> dict[str, float]:
        """Means over videos, each counting once whatever its length."""
        return {name: float(np.mean([clip.scores[name] for clip in self.clips])) for name in self.clips[0].scores}


class Item(NamedTuple):
    """A video and its place in the output folder, without the suffix."""

    name: str
    source: Path | bytes


@torch.no_grad()
def reconstruct(
    vae: VideoAutoencoder, source: Path, output: Path, config: ReconstructConfig, device: torch.device
) -> ReconstructionReport:
    """Reconstruct a video, or all of a folder or of shards, into the folder `output`.

    What `output` holds already, from the same weights and settings, is not done again. A video that cannot be used is
    listed in the report, and the others go on.

    Raises:
        UserError: nothing to reconstruct, nothing of it could be used, or `output` lies in the folder of videos.
    """
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{output} lies in {source}, so the next run would take it for input; choose another --output")
    vae = vae.to(device).eval()
    perceptual = None if config.perceptual == "none" else build_perceptual(config.perceptual).to(device)
    output.mkdir(parents=True, exist_ok=True)
    known = {clip.name: clip for clip in read_journal(output / JOURNAL, ClipScores)}  # what was written last
    weights = weights_digest(vae)
    clips: list[ClipScores] = []
    skipped: list[Skip] = []
    with progress_bar(None, "reconstructing", "frame") as bar:
        for item in list_items(source, skipped):
            key = fingerprint(item.name, _digest(item.source), weights, config)
            clip, paths = known.get(item.name), _paths(item, output, config)
            try:
                if clip is None or clip.key != key or not all(path.is_file() for path in paths.values()):
                    clip = _reconstruct_video(vae, item, key, paths, config, perceptual, device, bar.update)
                    append(output / JOURNAL, clip)
                clips.append(clip)
            except UserError as error:
                cause = error.cause if isinstance(error, VideoError) else "does not fit"
                skipped.append(Skip(item.name, cause, str(error)))
    if not clips:
        why = f"; {skipped[0].source}: {skipped[0].detail}" if skipped else ""
        raise UserError(f"{source}: nothing was reconstructed{why}")
    return ReconstructionReport(clips, skipped)


def list_items(source: Path, skipped: list[Skip]) -> Iterator[Item]:
    """The videos of a file, a folder, or shards; what is none is added to `skipped`.

    Raises:
        UserError: there is no such file or folder, or it holds neither videos nor shards.
    """
    if source.is_file() and source.suffix != ".tar":
        yield Item(source.name.removesuffix(".mp4"), source)
        return
    for store in find_stores(str(source), skipped.append):
        for record in read_records(store, skipped.append):
            name = printable(record["key"])
            try:
                suffix, media = store.media(record["key"])
            except VideoError as error:
                skipped.append(Skip(name, error.cause, str(error)))
                continue
            if f".{suffix}" in VIDEO_SUFFIXES:
                yield Item(name.removesuffix(".mp4"), media)
            else:
                skipped.append(Skip(name, "an image", f"{name}.{suffix}"))


def _reconstruct_video(
    vae: VideoAutoencoder,
    item: Item,
    key: str,
    paths: dict[str, Path],
    config: ReconstructConfig,
    perceptual: Perceptual | None,
    device: torch.device,
    advance: Callable[[int], object],
) -> ClipScores:
    info = probe(item.source)
    sums: defaultdict[str, float] = defaultdict(float)
    count = 0
    with ExitStack() as files:
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        writers = {
            view: files.enter_context(VideoWriter(path, info.fps, sound=item.source)) for view, path in paths.items()
        }
        for frames, original, video in _pairs(vae, item.source, config.chunk_frames, device):
            for name, value in reconstruction_scores(video, original, perceptual).items():
                sums[name] += float(value) * len(frames)
            count += len(frames)
            pictures = to_uint8(video[0]).permute(1, 2, 3, 0).cpu().numpy()
            for frame, picture in zip(frames, pictures, strict=True):
                for view, writer in writers.items():
                    writer.write(_VIEWS[view](frame.picture, picture), frame.time)
            advance(len(frames))
    scores = {name: total / count for name, total in sums.items()}
    return ClipScores(item.name, count, info.height, info.width, info.fps, scores, key)


def _pairs(
    vae: VideoAutoencoder, source: Path | bytes, chunk_frames: int, device: torch.device
) -> Iterator[tuple[list[TimedFrame], Tensor, Tensor]]:
    """Frames, the same as `1 C T H W`, and their reconstruction; frames wait here until theirs comes."""
    waiting: deque[TimedFrame] = deque()

    def chunks() -> Iterator[Tensor]:
        frames = read_frames(source)
        while group := list(islice(frames, chunk_frames)):
            waiting.extend(group)
            yield _to_tensor(group, device)

    for video in round_trip(vae, chunks()):
        frames = [waiting.popleft() for _ in range(video.shape[2])]
        yield frames, _to_tensor(frames, device), video


def _to_tensor(frames: list[TimedFrame], device: torch.device) -> Tensor:
    pictures = torch.from_numpy(np.stack([frame.picture for frame in frames])).to(device)
    return to_unit_range(pictures).permute(3, 0, 1, 2).unsqueeze(0)


def _error_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    difference = np.abs(original.astype(int) - reconstruction)
    return np.minimum(ERROR_GAIN * difference, 255).astype(np.uint8)


_VIEWS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "reconstruction": lambda original, reconstruction: reconstruction,
    "side_by_side": lambda original, reconstruction: np.concatenate([original, reconstruction], axis=1),
    "error_map": _error_map,
}


def _paths(item: Item, output: Path, config: ReconstructConfig) -> dict[str, Path]:
    """The videos to write, by view."""
    paths = {"reconstruction": output / f"{item.name}.mp4"}
    for view, wanted in (("side_by_side", config.side_by_side), ("error_map", config.error_map)):
        if wanted:
            paths[view] = output / f"{item.name}.{view}.mp4"
    return paths


def _digest(source: Path | bytes) -> str:
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        digest.update(source)
    else:
        with source.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
