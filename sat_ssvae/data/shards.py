"""Clips for training and for scoring, out of WebDataset shards or a folder of videos.

    batches = training_batches(DataConfig(path="shards"), batch_size=8, seed=0)
    clips = fixed_clips(DataConfig(path="heldout"), stride=0.5)

Which sample fills which place of which batch is computed from the meta files alone, before anything is
decoded: place p of the endless stream holds sample `order(epoch)[p mod N]` of epoch p // N, and rank r of W
takes batch after batch of places in turn. So a batch depends on its number, the seed and the rank only, not
on the number of workers, and a run continues at any batch without decoding what came before. A sample that
cannot be read is replaced by the next one of the same rank.
"""

import atexit
import hashlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..assets import cache_dir
from ..errors import UserError
from .files import VideoError
from .images import IMAGE_SUFFIXES, read_image
from .index import RecentStores, Sample, find_stores, list_samples
from .mixture import Mixture, epoch_order
from .remote import ShardCache
from .settings import DataConfig, nearest_bucket
from .skips import Skip, SkipLog, in_words
from .video_io import read_clip, to_unit_range

logger = logging.getLogger(__name__)

_ENDLESS = 1 << 62
_MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class Batch:
    """`video` uint8 `B C T H W`; `keys` name samples; a caption may be empty.

    To [-1, 1] with `to_unit_range`, on the device that trains: a quarter of the bytes to copy there, and no arithmetic
    here that takes the cores from the processes that decode.
    """

    video: Tensor
    keys: list[str]
    captions: list[str]


@dataclass(frozen=True)
class Clip:
    """`video` float32 `C T H W` in [-1, 1], from `start` seconds of the sample `key`."""

    video: Tensor
    key: str
    caption: str
    start: float


def training_batches(
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_batch: int = 0,
    skips: SkipLog | None = None,
) -> Iterator[Batch]:
    """Endless shuffled batches with a random clip of each sample, continuing at batch number `start_batch`.

    Within an epoch each sample goes to one rank.

    Args:
        config: where the samples lie and what a clip is.
        batch_size: clips in a batch of one rank, where the source has no batch size of its own.
        seed: decides order and clip positions; the same on all ranks.
        rank: number of this process.
        world_size: number of processes.
        start_batch: batches that earlier runs of this rank took.
        skips: counts and lists what cannot be used.

    Raises:
        UserError: nothing usable at `config.path`, or too many samples that cannot be read.
    """
    skips = skips if skips is not None else SkipLog(max_share=config.max_skip_share)
    streams: list[_TrainingBatches] = []
    weights: list[float] = []
    for part, weight, size in config.streams():
        readers = _open(part, skips, rank)
        total = sum(len(reader.samples) for reader in readers)
        weights += [weight * len(reader.samples) / total for reader in readers]
        streams += [_TrainingBatches(reader, size or batch_size, seed, rank, world_size) for reader in readers]
    source = streams[0] if len(streams) == 1 else _MixedBatches(streams, Mixture(weights, seed))
    for loaded in _loader(source, range(start_batch, _ENDLESS), config.num_workers):
        for skip in loaded.skips:
            skips.failed(skip)
        skips.succeeded(len(loaded.keys))
        skips.check()
        if not loaded.complete:
            place = f"{config.shown_path}: " if config.path else ""
            raise UserError(f"{place}{_MAX_ATTEMPTS} samples in a row could not be read ({in_words(skips.failures)})")
        yield Batch(loaded.video, loaded.keys, loaded.captions)


class FixedClips(Sized, Iterable[Clip]):
    """The clips of `fixed_clips`; `len` counts them before any is decoded, those that turn out unreadable included."""

    def __init__(self, reader: "_ClipReader", places: list[tuple[int, float]], skips: SkipLog) -> None:
        self._reader, self._places, self._skips = reader, places, skips

    def __len__(self) -> int:
        return len(self._places)

    def count_captions(self) -> int:
        """Clips whose sample has a caption, found out without decoding."""
        captioned = {number: bool(self._reader.caption(number)) for number in sorted({n for n, _ in self._places})}
        return sum(captioned[number] for number, _ in self._places)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clips."""
        return self._reader.config.size

    def __getitem__(self, part: slice) -> "FixedClips":
        """Some of the clips, in their order."""
        return FixedClips(self._reader, self._places[part], self._skips)

    def __iter__(self) -> Iterator[Clip]:
        skips = self._skips
        source = _FixedPlaces(self._reader, self._places)
        for loaded in _loader(source, range(len(self)), self._reader.config.num_workers):
            if isinstance(loaded, Skip):
                skips.failed(loaded)
            else:
                skips.succeeded()
                yield Clip(to_unit_range(loaded.video), loaded.key, loaded.caption, loaded.start)
            skips.check()


def fixed_clips(
    config: DataConfig, *, stride: float, limit: int | None = None, skips: SkipLog | None = None
) -> FixedClips:
    """The clips that start at 0, stride, 2 stride, ... seconds of every sample, always in the same order.

    Args:
        config: where the samples lie and what a clip is.
        stride: seconds between two starts; clips overlap where it is shorter than a clip.
        limit: at most this many clips, spread evenly over all of them.
        skips: counts and lists what cannot be used.

    Raises:
        UserError: nothing usable at `config.path`; while iterating, too many samples that cannot be read.
    """
    if config.sources or config.buckets:
        raise UserError("fixed clips come from one source and have one size: give `path` and `resolution` alone")
    skips = skips if skips is not None else SkipLog(max_share=config.max_skip_share)
    (clips,) = clips_by_size(config, stride=stride, skips=skips)
    count = min(limit, len(clips)) if limit is not None else len(clips)
    return FixedClips(clips._reader, [clips._places[i * len(clips) // count] for i in range(count)], skips)


def clips_by_size(config: DataConfig, *, stride: float, skips: SkipLog) -> list[FixedClips]:
    """As `fixed_clips`, one for each size of `config.buckets` that a sample is cut to."""
    return [FixedClips(reader, reader.starts(stride), skips) for reader in _open(config, skips)]


def _loader(source: Dataset[Any], indices: Sequence[int], num_workers: int) -> Iterator[Any]:
    ending = multiprocessing.RawValue("b", 0)
    loaded = iter(
        DataLoader(
            source,
            batch_size=None,
            sampler=indices,
            num_workers=num_workers,
            # One of its own: without it, DataLoader draws a seed from the global generator.
            generator=torch.Generator(),
            worker_init_fn=partial(_obey_sigterm, ending),
        )
    )
    # Runs before what DataLoader registered, which terminates the workers that do not end by themselves.
    atexit.register(setattr, ending, "value", 1)
    return loaded


def _obey_sigterm(ending: Any, _worker: int) -> None:
    """At the end alone: who ends all processes before means the trainer, which saves and then ends its workers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit() if ending.value else None)


def _open(config: DataConfig, skips: SkipLog, rank: int = 0) -> list["_ClipReader"]:
    """A reader for each size that has samples; the first rank lists what none of them can use."""
    before, example = skips.counts.copy(), ""

    def on_skip(skip: Skip) -> None:
        nonlocal example
        skips.filtered(skip, listed=rank == 0)
        example = example or f", such as {skip.source}: {skip.detail}"

    folder = Path(config.cache).expanduser() if config.cache else cache_dir() / "shards"
    stores = find_stores(config.path, on_skip, ShardCache(folder, int(config.cache_gib * 2**30)))
    samples = []
    for sample in list_samples(stores, config.filters, on_skip):
        problem = _unsuitable(sample, config)
        if problem is None:
            samples.append(sample)
        else:
            on_skip(Skip(sample.name, *problem))
    samples = _part(samples, config)
    left_out = in_words(skips.counts - before)
    if not samples:
        raise UserError(f"{config.shown_path}: no usable sample ({left_out or 'empty'}){example}")
    if left_out:
        logger.warning("%s: %d samples, left out: %s", config.shown_path, len(samples), left_out)
    by_size: dict[tuple[int, int], list[Sample]] = {size: [] for size in config.sizes}
    for sample in samples:
        by_size[nearest_bucket(sample.height, sample.width, config.sizes)].append(sample)
    # A block of shards that are mixed with each other, and the next one.
    recent = 2 * config.shuffle_shards
    return [
        _ClipReader(config.model_copy(update={"resolution": size}), RecentStores(stores, recent), some)
        for size, some in by_size.items()
        if some
    ]


def _part(samples: list[Sample], config: DataConfig) -> list[Sample]:
    """The samples of `config.part`, in their order; neither part of a split is empty."""
    if config.part == "all" or not samples:
        return samples
    if len(samples) < 2:
        raise UserError(
            f"{config.shown_path}: one usable sample cannot be split into training and held-out clips; "
            "cut it up with `sat-ssvae pack ... segment_seconds=5`, or give folders train/ and heldout/"
        )
    by_hash = sorted(samples, key=lambda sample: hashlib.sha256(sample.name.encode()).digest())
    held = {id(sample) for sample in by_hash[: max(1, round(len(samples) / 10))]}
    return [sample for sample in samples if (id(sample) in held) == (config.part == "heldout")]


def _unsuitable(sample: Sample, config: DataConfig) -> tuple[str, str] | None:
    """Why a sample cannot give a clip as configured: cause and detail; None when it can."""
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
    if _last_start(sample, config) < 0:
        has = f"{round(sample.duration * sample.fps)} frames at {sample.fps:.4g} per second"
        return "too short", f"{has}, wanted {config.num_frames} at {config.fps:g}"
    return None


def _last_start(sample: Sample, config: DataConfig) -> float:
    """The latest time at which a clip can start (seconds; negative: the sample is too short).

    In whole frames of the sample, with a tolerance of half a one: containers tell its duration in milliseconds.
    """
    if sample.is_image:
        return 0.0
    last_frame = (round(sample.duration * sample.fps) - 1) / sample.fps
    return last_frame + 0.5 / sample.fps - config.span


@dataclass
class _LoadedClip:
    video: Tensor
    key: str
    caption: str
    start: float


@dataclass
class _LoadedBatch:
    video: Tensor
    keys: list[str]
    captions: list[str]
    skips: list[Skip]
    complete: bool


@dataclass
class _ClipReader:
    """Decodes one clip of one sample; travels to the worker processes."""

    config: DataConfig
    stores: RecentStores
    samples: list[Sample]

    def starts(self, stride: float) -> list[tuple[int, float]]:
        """(sample number, start) of the clips `stride` seconds apart of every sample."""
        lasts = (_last_start(sample, self.config) for sample in self.samples)
        return [(number, step * stride) for number, last in enumerate(lasts) for step in range(int(last / stride) + 1)]

    def random_start(self, number: int, generator: np.random.Generator) -> float:
        """A start on one of the video's frames, so that a rate which divides its rate gives even steps."""
        sample = self.samples[number]
        if sample.is_image:
            return 0.0
        choices = int(_last_start(sample, self.config) * sample.fps) + 1
        return int(generator.integers(max(1, choices))) / sample.fps

    def caption(self, number: int) -> str:
        """The caption of a sample; empty where there is none, or its shard cannot be read."""
        sample = self.samples[number]
        try:
            return sample.caption or self.stores[sample.store].caption(sample.key)
        except VideoError:
            return ""

    def read(self, number: int, start: float) -> _LoadedClip | Skip:
        sample, config = self.samples[number], self.config
        store = self.stores[sample.store]
        try:
            suffix, source = store.media(sample.key)
            if f".{suffix}" in IMAGE_SUFFIXES:
                video = read_image(source, size=config.size)
            else:
                video = read_clip(source, start=start, num_frames=config.num_frames, fps=config.fps, size=config.size)
            if (problem := _worthless(video, config)) is not None:
                return Skip(sample.name, *problem)
            return _LoadedClip(video, sample.name, self.caption(number), start)
        except VideoError as error:
            return Skip(sample.name, error.cause, str(error))
        except OSError as error:
            return Skip(sample.name, "unreadable file", str(error))


def _worthless(video: Tensor, config: DataConfig) -> tuple[str, str] | None:
    """Why a clip, uint8 `C T H W`, teaches nothing: cause and detail; None when it does."""
    if config.drop_black and (brightest := float(video.float().mean((0, 2, 3)).max()) / 255) < config.drop_black:
        return "black", f"no frame is brighter than {brightest:.4f}"
    if config.drop_frozen and video.shape[1] > 1:
        change = float(video.float().diff(dim=1).abs().mean()) / 255
        if change < config.drop_frozen:
            return "frozen", f"frames differ by {change:.5f}"
    return None


class _TrainingBatches(Dataset[_LoadedBatch]):
    """Batch number -> batch; see the module's docstring."""

    def __init__(self, reader: _ClipReader, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        counts = np.bincount([sample.store for sample in reader.samples], minlength=len(reader.stores))
        self.shard_sizes: list[int] = counts.tolist()
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, batch: int) -> _LoadedBatch:
        clips: list[_LoadedClip] = []
        skips: list[Skip] = []
        for place in range(self.batch_size):
            clip = self._first_readable(batch * self.batch_size + place, skips)
            if clip is None:
                break
            clips.append(clip)
        video = torch.stack([clip.video for clip in clips]) if clips else torch.empty(0)
        keys, captions = [clip.key for clip in clips], [clip.caption for clip in clips]
        return _LoadedBatch(video, keys, captions, skips, complete=len(clips) == self.batch_size)

    def _first_readable(self, turn: int, skips: list[Skip]) -> _LoadedClip | None:
        for attempt in range(_MAX_ATTEMPTS):
            epoch, number = self._sample_at(turn + attempt)
            generator = np.random.default_rng((self.seed, epoch, number, attempt))
            clip = self.reader.read(number, self.reader.random_start(number, generator))
            if not isinstance(clip, Skip):
                return clip
            skips.append(clip)
        return None

    def _sample_at(self, turn: int) -> tuple[int, int]:
        """(epoch, sample number) of this rank's `turn`-th clip."""
        batch, place = divmod(turn, self.batch_size)
        slot = (batch * self.world_size + self.rank) * self.batch_size + place
        epoch, position = divmod(slot, len(self.reader.samples))
        if epoch not in self._orders:
            # A batch reaches into the next epoch at most, so two orders are all that is needed at a time.
            self._orders = {past: order for past, order in self._orders.items() if past == epoch - 1}
            self._orders[epoch] = epoch_order(self.shard_sizes, self.seed, epoch, self.reader.config.shuffle_shards)
        return epoch, int(self._orders[epoch][position])


class _MixedBatches(Dataset[_LoadedBatch]):
    """Batch number -> batch of one of several streams."""

    def __init__(self, streams: Sequence[_TrainingBatches], mixture: Mixture) -> None:
        self.streams = streams
        self.mixture = mixture

    def __getitem__(self, batch: int) -> _LoadedBatch:
        stream, number = self.mixture(batch)
        return self.streams[stream][number]


class _FixedPlaces(Dataset[_LoadedClip | Skip]):
    def __init__(self, reader: _ClipReader, places: list[tuple[int, float]]) -> None:
        self.reader = reader
        self.places = places

    def __getitem__(self, index: int) -> _LoadedClip | Skip:
        return self.reader.read(*self.places[index])
