"""The clips of one data set: which samples provide some, where they start, and how one is decoded.

for reader in open_readers(config, skips):
    loaded = reader.read(0, start=0.0)
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..assets import cache_dir
from ..errors import UserError
from .files import VideoError
from .images import is_image, read_image
from .index import OnSkip, RecentStores, Sample, find_stores
from .remote import ShardCache
from .samples import Samples, cached_samples
from .settings import DataConfig, nearest_bucket
from .skips import Skip, SkipLog, causes_in_words
from .video_io import read_clip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """A clip `C T H W`, uint8 or float32 in [-1, 1], from `start` seconds of the sample `key`."""

    video: Tensor
    key: str
    caption: str
    start: float


@dataclass
class ClipReader:
    """Decodes clips of samples; pickled to the worker processes."""

    config: DataConfig
    stores: RecentStores
    samples: Samples

    def starts(self, stride: float) -> list[tuple[int, float]]:
        """(sample number, start) of the clips `stride` seconds apart of every sample."""
        lasts = (last_start(sample, self.config) for sample in self.samples)
        return [(number, step * stride) for number, last in enumerate(lasts) for step in range(int(last / stride) + 1)]

    def random_start(self, number: int, generator: np.random.Generator) -> float:
        """A start on one of the video's frames, so that a rate which divides its rate gives even steps."""
        sample = self.samples[number]
        if sample.is_image:
            return 0.0
        choices = int(last_start(sample, self.config) * sample.fps) + 1
        return int(generator.integers(max(1, choices))) / sample.fps

    def caption(self, number: int) -> str:
        """The caption of a sample; empty if there is none, or its shard cannot be read."""
        sample = self.samples[number]
        try:
            return sample.caption or self.stores[sample.store].caption(sample.key)
        except VideoError:
            return ""

    def read(self, number: int, start: float) -> Clip | Skip:
        """The clip of a sample that begins at `start` seconds, uint8, or why there is none."""
        sample, config = self.samples[number], self.config
        store = self.stores[sample.store]
        try:
            suffix, source = store.media(sample.key)
            if is_image(suffix, source):
                video = read_image(source, size=config.size)
            else:
                video = read_clip(source, start=start, num_frames=config.num_frames, fps=config.fps, size=config.size)
            if (problem := _worthless(video, config)) is not None:
                return Skip(sample.name, *problem)
            return Clip(video, sample.name, self.caption(number), start)
        except VideoError as error:
            return Skip(sample.name, error.cause, str(error))
        except OSError as error:
            return Skip(sample.name, "unreadable file", str(error))


def _worthless(video: Tensor, config: DataConfig) -> tuple[str, str] | None:
    """Why a clip, uint8 `C T H W`, is useless for training: cause and detail; None if it is not."""
    if config.drop_black and (brightest := float(video.float().mean((0, 2, 3)).max()) / 255) < config.drop_black:
        return "black", f"no frame is brighter than {brightest:.4f}"
    if config.drop_frozen and video.shape[1] > 1:
        change = float(video.float().diff(dim=1).abs().mean()) / 255
        if change < config.drop_frozen:
            return "frozen", f"frames differ by {change:.5f}"
    return None


def open_readers(config: DataConfig, skips: SkipLog, rank: int = 0) -> list[ClipReader]:
    """A reader for each size that has samples; the first rank lists what none of them can use."""
    before, example = skips.counts.copy(), ""

    def on_skip(skip: Skip) -> None:
        nonlocal example
        skips.filtered(skip, listed=rank == 0)
        example = example or f", such as {skip.source}: {skip.detail}"

    folder = Path(config.cache).expanduser() if config.cache else cache_dir() / "shards"
    stores = find_stores(config.path, on_skip, ShardCache(folder, int(config.cache_gib * 2**30)))
    samples = _part(suitable(cached_samples(stores, config.filters, on_skip, write=rank == 0), config, on_skip), config)
    left_out = causes_in_words(skips.counts - before)
    if not samples:
        raise UserError(f"{config.shown_path}: no usable sample ({left_out or 'empty'}){example}")
    if left_out:
        logger.warning("%s: %d samples, left out: %s", config.shown_path, len(samples), left_out)
    bucket = _buckets(samples, config)
    # A block of shards that are mixed with each other, and the next one.
    recent = 2 * config.shuffle_shards
    return [
        ClipReader(config.model_copy(update={"resolution": size}), RecentStores(stores, recent), samples.select(some))
        for number, size in enumerate(config.sizes)
        if len(some := np.flatnonzero(bucket == number))
    ]


def suitable(samples: Samples, config: DataConfig, on_skip: OnSkip) -> Samples:
    """The samples that can give a clip; `unsuitable` is called only for the doubtful ones."""
    height, width = np.array(config.sizes)[_buckets(samples, config)].T
    good = (samples.column("height") >= height) & (samples.column("width") >= width) | config.enlarge
    if config.num_frames > 1:
        fps = np.maximum(samples.column("fps"), 1e-9)
        last = (np.round(samples.column("duration") * fps) - 0.5) / fps - config.span
        good &= (samples.column("duration") > 0) & (fps >= config.fps * 0.99) & (last >= 0)
    for number in np.flatnonzero(~good).tolist():
        problem = unsuitable(samples[number], config)
        if problem is None:
            good[number] = True
        else:
            on_skip(Skip(samples[number].name, *problem))
    return samples.select(np.flatnonzero(good))


def _buckets(samples: Samples, config: DataConfig) -> np.ndarray:
    """For each sample, the index in `config.sizes` of the size that it is cut to."""
    both = samples.column("height") * np.int64(1 << 32) + samples.column("width")
    kinds, kind_of = np.unique(both, return_inverse=True)
    nearest = [nearest_bucket(int(kind) >> 32, int(kind) % (1 << 32), config.sizes) for kind in kinds]
    return np.array([config.sizes.index(size) for size in nearest], dtype=int)[kind_of]


def _part(samples: Samples, config: DataConfig) -> Samples:
    """The samples of `config.part`, in their order; neither part of a split is empty."""
    if config.part == "all" or not samples:
        return samples
    if len(samples) < 2:
        raise UserError(
            f"{config.shown_path}: one usable sample cannot be split into training and held-out clips; "
            "cut it up with `sat-ssvae pack ... segment_seconds=5`, or give folders train/ and heldout/"
        )
    hashes = [hashlib.sha256(sample.name.encode()).digest() for sample in samples]
    by_hash = sorted(range(len(samples)), key=hashes.__getitem__)
    held = np.isin(np.arange(len(samples)), by_hash[: max(1, round(len(samples) / 10))])
    return samples.select(np.flatnonzero(held == (config.part == "heldout")))


def unsuitable(sample: Sample, config: DataConfig) -> tuple[str, str] | None:
    """Why a sample cannot give a clip as configured: cause and detail; None if it can."""
    height, width = nearest_bucket(sample.height, sample.width, config.sizes)
    if not config.enlarge and (sample.height < height or sample.width < width):
        found = f"{sample.height}x{sample.width}, wanted at least {height}x{width}"
        return "too small", f"{found}; data.enlarge=true scales such videos up"
    if config.num_frames == 1:
        return None
    if sample.is_image:
        return "an image", "clips have several frames"
    if sample.fps < config.fps * 0.99:
        return "fps too low", f"{sample.fps:.3g} frames per second, wanted {config.fps:g}"
    if last_start(sample, config) < 0:
        has = f"{round(sample.duration * sample.fps)} frames at {sample.fps:.4g} per second"
        return "too short", f"{has}, wanted {config.num_frames} at {config.fps:g}"
    return None


def last_start(sample: Sample, config: DataConfig) -> float:
    """The latest time at which a clip can start (seconds; negative: the sample is too short).

    Counted in whole frames of the sample, with half a frame of tolerance: containers round durations to milliseconds.
    """
    if sample.is_image:
        return 0.0
    last_frame = (round(sample.duration * sample.fps) - 1) / sample.fps
    return last_frame + 0.5 / sample.fps - config.span
