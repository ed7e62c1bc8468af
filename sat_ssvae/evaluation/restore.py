"""Restoring videos with a comparison's transformer: SDEdit in the latents of one of its autoencoders.

    restorer = Restorer.open(Path("runs/compare"), "ssvae", None, device)
    report = restore(restorer, Path("videos"), Path("out"), RestoreConfig(strengths=(0.2, 0.4)))

A video is read like the comparison's clips, at their size and frame rate, the only ones the transformer was trained on.
It is cut into windows of a clip's length. Each is encoded, noised to the level `strength`, denoised from there, and
decoded; windows overlap and are cross-faded. The autoencoder's plain reconstruction is shown beside the restored video.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from zlib import crc32

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..assets import fetch
from ..autoencoders.protocol import VideoAutoencoder
from ..autoencoders.specification import open_autoencoder
from ..comparison.run_index import RunIndex, TrainedTransformer
from ..comparison.settings import ClipsConfig
from ..config import Config, fingerprint
from ..data.resample import read_resampled
from ..data.skips import Skip
from ..data.video_io import read_frames, to_uint8, to_unit_range
from ..data.video_write import VideoWriter
from ..diffusion.process import VPrediction, edit
from ..diffusion.training import load_dit
from ..diffusion.transformer import DiT
from ..errors import UserError
from ..metrics.fidelity import reconstruction_scores
from ..metrics.perceptual import Perceptual, PerceptualName, build_perceptual
from ..storage import digest_of
from ..vae.checkpoint import weights_digest
from ..vae.statistics import LatentStats
from .degradations import Degradation
from .items import SIDE_BY_SIDE, ItemResult, VideoItem, VideoJob, check_output, list_items, work_through
from .moments import MOMENTS, ORIGINAL, Exhibit, Moments, WorstMoment
from .side_by_side import apart, side_by_side
from .windows import Window, join, windows

if TYPE_CHECKING:
    from ..diffusion.text import TextEncoder

RESTORATION_JOURNAL = "restoration.jsonl"
INPUT, ROUND_TRIP = "degraded", "autoencoder alone"
"""Names of the views that are not restorations: the input, and the input through the autoencoder."""
_DEGRADED_AT_ONCE = 48  # frames


class RestoreConfig(Config):
    """How videos are restored and scored."""

    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.3,), min_length=1)
    """Noise levels that latents are noised to and denoised from: near 0 keeps the whole video, 1 keeps nothing of it.
    Each strength gives a video of its own."""
    degrade: str | None = None
    """Degrade the input, which is clean then, by KIND:AMOUNT: noise:SIGMA (of 255), blur:FACTOR or compress:CRF
    (H.264)."""
    transformer_seed: int | None = None
    """Which of the comparison's seeds; null takes the first."""
    steps: int = Field(default=10, gt=0)
    """Steps of the sampler from that level. One step gives the mean of what fits, more steps a sample of it."""
    overlap: int = Field(default=2, ge=0)
    """Frames that a window shares with the one before; over them the two are cross-faded."""
    seed: int = Field(default=0, ge=0)
    """Seed of the noise, in latents and degradations."""
    perceptual: PerceptualName | Literal["none"] = "st-lpips-alex"
    """Perceptual distance beside PSNR and SSIM; `none` leaves it out."""
    side_by_side: bool = False
    """Also write NAME.side_by_side.mp4: the original if it is known, the input, the autoencoder alone, and each
    strength, from left to right, with labels above."""


@dataclass(frozen=True)
class RestoredVideo(ItemResult):
    """A restored video. scores: by view, then by metric, means over frames; empty without an original."""

    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class RestorationReport:
    """All videos of a run, and those that could not be used."""

    videos: list[RestoredVideo]
    skipped: list[Skip]
    exhibits: list[Exhibit] = field(default_factory=list)
    """The worst moments of the worst restored videos; without originals, of the first ones."""


@dataclass(frozen=True)
class Restorer:
    """A comparison's autoencoder and transformer, ready to restore windows."""

    trained: TrainedTransformer
    clips: ClipsConfig
    vae: VideoAutoencoder
    stats: LatentStats
    model: DiT
    encoder: "TextEncoder | None"
    text_length: int
    device: torch.device

    @classmethod
    def open(cls, run: Path, arm: str, seed: int | None, device: torch.device) -> "Restorer":
        """The networks that a comparison trained for an arm; seed: of the transformer, None for the first one.

        Raises:
            UserError: no finished transformer, unknown arm or seed, or the autoencoder has changed since.
        """
        index = RunIndex.read(run)
        trained = index.find(arm, seed)
        place = run / trained.autoencoder  # an absolute path replaces the whole of it
        vae = open_autoencoder(str(place) if place.exists() else trained.autoencoder)
        if weights_digest(vae.state_dict()) != trained.weights:
            raise UserError(
                f"{trained.autoencoder}: not the weights that the transformer of arm {arm} was trained with; run the "
                "comparison again"
            )
        model = load_dit(run / trained.folder).to(device)
        encoder = None
        if model.config.text_dim:
            from ..diffusion.text import TextEncoder

            encoder = TextEncoder(fetch("minilm"), device)
        stats = LatentStats(torch.tensor(trained.latent_mean), torch.tensor(trained.latent_std))
        vae = vae.to(device).eval()
        return cls(trained, index.clips, vae, stats, model, encoder, index.text_length, device)

    def check(self, config: RestoreConfig) -> None:
        """Refuse settings that do not fit what was trained.

        Raises:
            UserError: they do not.
        """
        if config.overlap >= self.clips.num_frames:
            raise UserError(f"overlap={config.overlap}: must be less than a clip's {self.clips.num_frames} frames")
        process = self.trained.diffusion
        if isinstance(process, VPrediction) and config.steps > process.num_steps:
            raise UserError(f"steps={config.steps}: the transformer knows {process.num_steps} noise levels")

    def caption_states(self, caption: str) -> Tensor | None:
        """The transformer's text input for a video, (1, l, d); None if it was trained without text."""
        if self.encoder is None:
            return None
        from ..diffusion.text import encode_captions

        return encode_captions(self.encoder, [caption], length=self.text_length).states.to(self.device)

    def views(self, video: Tensor, config: RestoreConfig, text: Tensor | None, generator: torch.Generator) -> Tensor:
        """A window `C T H W` through the autoencoder alone, then restored with each strength: `n C T H W`."""
        latents = self.stats.standardize(self.vae.encode(video[None].to(self.device)).mode().float())
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        edited = [
            edit(self.trained.diffusion, lambda x, t: self.model(x, t, text), latents, noise, strength, config.steps)
            for strength in config.strengths
        ]
        decoded = [self.vae.decode(self.stats.unstandardize(z)).float() for z in (latents, *edited)]
        return torch.cat(decoded).clamp(-1, 1).cpu()


@torch.no_grad()
def restore(
    restorer: Restorer,
    source: Path,
    output: Path,
    config: RestoreConfig,
    degradation: Degradation | None = None,
    originals: Path | None = None,
) -> RestorationReport:
    """Restore a video, or all of a folder or of shards, into `output`; videos that it already has are skipped.

    With a `degradation`, the videos of `source` are clean, and degraded first, at the size and frame rate of
    restored videos; `originals` are clean videos of the same names, if `source` is already degraded. `output`
    receives NAME.mp4, with several strengths NAME.strength0.3.mp4.

    Raises:
        UserError: no videos, none that can be used, settings that do not fit, or an output folder inside that of the
            videos.
    """
    restorer.check(config)
    if degradation is not None and originals is not None:
        raise UserError("give either a degradation or the originals of degraded videos")
    skipped: list[Skip] = []
    clean = _originals(originals, source, output, skipped) if originals else {}
    perceptual = None if config.perceptual == "none" else build_perceptual(config.perceptual).to(restorer.device)
    run = _Run(restorer, output, config, degradation, clean, perceptual, Moments(output / MOMENTS))
    job = VideoJob(
        "restoring",
        RestoredVideo,
        key=run.key,
        paths=lambda item: _paths(item.name, output, config).values(),
        frames=lambda info: round(info.duration * restorer.clips.fps),
        work=run.video,
        known=lambda video: run.moments.add(video.name, quality(video, config)),
    )
    videos = work_through(source, output / RESTORATION_JOURNAL, job, skipped)
    return RestorationReport(videos, skipped, run.moments.exhibits())


@dataclass(frozen=True)
class _Run:
    """What all videos share."""

    restorer: Restorer
    output: Path
    config: RestoreConfig
    degradation: Degradation | None
    clean: Mapping[str, Path]
    """The original videos by name, if the input is already degraded."""
    perceptual: Perceptual | None
    moments: Moments

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.restorer.model.state_dict())

    def key(self, item: VideoItem) -> str:
        """Fingerprint of everything that a restored video depends on."""
        original = self.clean.get(item.name)
        inputs = [item.name, digest_of(item.source), original and digest_of(original)]
        return fingerprint(*inputs, self._weights, self.restorer.trained, str(self.degradation), self.config)

    def video(self, item: VideoItem, key: str, advance: Callable[[int], object]) -> RestoredVideo:
        """Restore, write and score a video, a few windows in memory at a time."""
        config = self.config
        names = view_names(config, self.degradation is not None or item.name in self.clean)
        sums: dict[str, defaultdict[str, float]] = {name: defaultdict(float) for name in names if name != ORIGINAL}
        count, fps = 0, self.restorer.clips.fps
        paths = _paths(item.name, self.output, config)
        restored = [strength_name(strength) for strength in config.strengths]
        moment = WorstMoment(names[0], restored, scored=names[0] == ORIGINAL)
        with ExitStack() as files:
            for path in paths.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            writers = {view: files.enter_context(VideoWriter(path, fps)) for view, path in paths.items()}
            for videos in join(self._windows(item), config.overlap):  # views x C T H W
                views = dict(zip(names, videos, strict=True))
                if ORIGINAL in views:
                    for name, total in sums.items():
                        scores = reconstruction_scores(views[name][None], views[ORIGINAL][None], self.perceptual)
                        for metric, value in scores.items():
                            total[metric] += float(value) * videos.shape[2]
                pictures = to_uint8(videos).permute(0, 2, 3, 4, 1)
                moment.add(dict(zip(names, pictures.numpy(), strict=True)))
                for number in range(videos.shape[2]):
                    time = Fraction(count + number) / Fraction(fps)
                    for view, writer in writers.items():
                        at_once = pictures[:, number].numpy()
                        writer.write(
                            side_by_side(list(at_once), names) if view == SIDE_BY_SIDE else at_once[names.index(view)],
                            time,
                        )
                count += videos.shape[2]
                advance(videos.shape[2])
        means = {name: {metric: value / count for metric, value in total.items()} for name, total in sums.items()}
        video = RestoredVideo(item.name, count, key, {name: scores for name, scores in means.items() if scores})
        self.moments.add(video.name, quality(video, config), moment)
        return video

    def _windows(self, item: VideoItem) -> Iterator[Window]:
        """All views of each window, n C T H W, in the order of `view_names`."""
        text = self.restorer.caption_states(item.caption)
        generator = self._generator(item, 0)
        for window, real in windows(self._frames(item), self.restorer.clips.num_frames, self.config.overlap):
            restored = self.restorer.views(window[-1], self.config, text, generator)
            yield Window(torch.cat([window, restored]), real)

    def _frames(self, item: VideoItem) -> Iterator[Tensor]:
        """Frames `s C H W` in [-1, 1]: the original, if it is known, and the input."""
        given = self._read(item.source)
        if item.name in self.clean:
            pairs = zip_longest(self._read(self.clean[item.name]), given)
            for original, frame in pairs:
                if original is None or frame is None:
                    break
                yield torch.stack([original, frame])
            if next(pairs, None) is not None:  # a codec may lose one frame; more means another video
                raise UserError(f"{self.clean[item.name]}: shorter or longer than what is to be restored")
            return
        if self.degradation is None:
            yield from (frame[None] for frame in given)
            return
        generator = self._generator(item, 1)  # separate, so that the degraded video is the same for every arm
        while block := list(islice(given, _DEGRADED_AT_ONCE)):
            clean = torch.stack(block, 1)
            degraded = self.degradation(clean, self.restorer.clips.fps, generator)
            yield from torch.stack([clean, degraded]).unbind(2)

    def _read(self, source: Path | bytes) -> Iterator[Tensor]:
        for picture in read_resampled(source, self.restorer.clips.fps, self.restorer.clips.size):
            yield to_unit_range(torch.from_numpy(picture.copy())).permute(2, 0, 1)

    def _generator(self, item: VideoItem, stream: int) -> torch.Generator:
        entropy = f"{self.config.seed} {stream} {item.name}"
        return torch.Generator().manual_seed(crc32(entropy.encode()))


def _originals(folder: Path, source: Path, output: Path, skipped: list[Skip]) -> dict[str, Path]:
    """The clean videos by the names of the degraded ones."""
    check_output(output, folder)
    clean: dict[str, Path] = {}
    for item in list_items(folder, skipped):
        if isinstance(item.source, bytes):
            raise UserError(f"{folder}: originals cannot be shards; give a video or a folder of videos")
        clean[item.name] = item.source
    if not any(item.name in clean for item in list_items(source, [])):
        raise UserError(f"{folder}: holds no video of the name of one in {source}")
    return clean


def view_names(config: RestoreConfig, scored: bool) -> list[str]:
    """Names of the views of a video, in side-by-side order."""
    return [*([ORIGINAL] if scored else []), INPUT, ROUND_TRIP, *map(strength_name, config.strengths)]


def quality(video: RestoredVideo, config: RestoreConfig) -> float:
    """PSNR in dB of the best restoration; 0 of a video without an original."""
    scores = [video.scores[name] for name in map(strength_name, config.strengths) if name in video.scores]
    return max((one["psnr"] for one in scores), default=0.0)


def strength_name(strength: float) -> str:
    """Name of the view that was restored with this strength."""
    return f"strength {strength:g}"


def middle_frames(output: Path, video: RestoredVideo, views: int) -> list[np.ndarray]:
    """The middle frame of each view, `H W 3`, from the video with all `views` side by side."""
    frames = read_frames(_beside_path(output, video.name))
    return apart(next(islice(frames, video.frames // 2, None)).picture, views)


def _beside_path(output: Path, name: str) -> Path:
    return output / f"{name}.{SIDE_BY_SIDE}.mp4"


def _paths(name: str, output: Path, config: RestoreConfig) -> dict[str, Path]:
    """The videos to write, by view."""
    if len(config.strengths) == 1:
        paths = {strength_name(config.strengths[0]): output / f"{name}.mp4"}
    else:
        paths = {strength_name(s): output / f"{name}.strength{s:g}.mp4" for s in config.strengths}
    return paths | ({SIDE_BY_SIDE: _beside_path(output, name)} if config.side_by_side else {})
