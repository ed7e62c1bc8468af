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
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..jobs.isolation import Crashed, IsolatedCalls
from .clips import Clip, ClipReader, open_readers
from .mixture import Mixture, epoch_order
from .settings import DataConfig
from .skips import Skip, SkipLog, causes_in_words
from .video_io import to_unit_range

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

    `batch_size` is for sources without one of their own. `seed` decides order and clip positions, and must be the
    same on all ranks. `start_batch`: batches that earlier runs of this rank took.

    Raises:
        UserError: nothing usable at `config.path`, or too many samples that cannot be read.
    """
    skips = skips if skips is not None else SkipLog(max_share=config.max_skip_share)
    source = _batches(config, batch_size, seed, (rank, world_size), skips)
    for loaded in _loader(source, range(start_batch, _ENDLESS), config.num_workers):
        for skip in loaded.skips:
            skips.failed(skip)
        skips.succeeded(len(loaded.batch.keys))
        skips.check()
        if not loaded.complete:
            place = f"{config.shown_path}: " if config.path else ""
            raise UserError(
                f"{place}{_MAX_ATTEMPTS} samples in a row could not be read ({causes_in_words(skips.failures)})"
            )
        yield loaded.batch


def _batches(
    config: DataConfig, batch_size: int, seed: int, place: tuple[int, int], skips: SkipLog
) -> "_TrainingBatches | _MixedBatches":
    """The batches of the rank at `place` (rank, number of ranks), of all sources mixed."""
    streams: list[_TrainingBatches] = []
    weights: list[float] = []
    for part, weight, size in config.streams():
        readers = open_readers(part, skips, rank=place[0])
        total = sum(len(reader.samples) for reader in readers)
        weights += [weight * len(reader.samples) / total for reader in readers]
        streams += [_TrainingBatches(reader, size or batch_size, seed, *place) for reader in readers]
    return streams[0] if len(streams) == 1 else _MixedBatches(streams, Mixture(weights, seed))


class FixedClips(Sized, Iterable[Clip]):
    """The clips of `fixed_clips`, float32 in [-1, 1]; can be pickled, and read elsewhere.

    `len` counts them before any is decoded, those that turn out unreadable included.
    """

    def __init__(self, reader: ClipReader, places: list[tuple[int, float]], skips: SkipLog) -> None:
        self._reader, self._places, self._skips = reader, places, skips

    def __len__(self) -> int:
        return len(self._places)

    def count_captions(self) -> int:
        """The number of clips whose sample has a caption, counted without decoding."""
        captioned = {number: bool(self._reader.caption(number)) for number in sorted({n for n, _ in self._places})}
        return sum(captioned[number] for number, _ in self._places)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clips."""
        return self._reader.config.size

    def __getitem__(self, part: slice) -> "FixedClips":
        """Some of the clips, in their order."""
        return FixedClips(self._reader, self._places[part], self._skips)

    def noting(self, skips: SkipLog, num_workers: int | None = None) -> "FixedClips":
        """The same clips with another list of skips, and decoded by as many processes; None: as configured."""
        workers = self._reader.config.num_workers if num_workers is None else num_workers
        config = self._reader.config.model_copy(update={"num_workers": workers})
        return FixedClips(replace(self._reader, config=config), self._places, skips)

    def part(self, start: int, stop: int, num_workers: int | None) -> tuple["FixedClips", list[Skip]]:
        """Clips `start` to `stop` for a worker, and the list that receives those of them that it cannot read."""
        failed: list[Skip] = []
        return self.noting(SkipLog(max_share=1, note=failed.append), num_workers)[start:stop], failed

    def blocks(self, clips: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of runs of at least `clips` clips; all clips of a sample are in one run."""
        start = 0
        for stop in range(1, len(self) + 1):
            ends = stop == len(self) or (self._places[stop][0] != self._places[stop - 1][0] and stop - start >= clips)
            if ends:
                yield start, stop
                start = stop

    def __iter__(self) -> Iterator[Clip]:
        skips = self._skips
        for loaded in _in_processes(self._reader, self._places):
            if isinstance(loaded, Skip):
                skips.failed(loaded)
            else:
                skips.succeeded()
                yield replace(loaded, video=to_unit_range(loaded.video))
            skips.check()


def _in_processes(reader: ClipReader, places: Sequence[tuple[int, float]]) -> Iterator[Clip | Skip]:
    """Clips, uint8, at places (sample number, start), in order. One that ends the process that decodes it is a skip."""
    workers = reader.config.num_workers
    if not workers:
        yield from (reader.read(*place) for place in places)
        return
    with IsolatedCalls(partial(_read, reader), workers) as calls:
        for place, outcome in zip(places, calls.map(places, 2 * workers), strict=True):
            if isinstance(outcome, Crashed):
                yield Skip(reader.samples[place[0]].name, "crashed", outcome.reason)
            elif isinstance(outcome, Skip):
                yield outcome
            else:
                video, rest = outcome
                yield Clip(torch.from_numpy(video), *rest)


def _read(reader: ClipReader, place: tuple[int, float]) -> tuple[np.ndarray, tuple[str, str, float]] | Skip:
    """A clip with its video as an array, which goes through a pipe, where a tensor would need shared memory."""
    clip = reader.read(*place)
    return clip if isinstance(clip, Skip) else (clip.video.numpy(), (clip.key, clip.caption, clip.start))


def fixed_clips(
    config: DataConfig, *, stride: float, limit: int | None = None, skips: SkipLog | None = None
) -> FixedClips:
    """The clips that start at 0, stride, 2 stride, ... seconds of every sample, always in the same order.

    Clips overlap where `stride` is shorter than a clip. At most `limit` clips, spread evenly over all of them.

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
    return [FixedClips(reader, reader.starts(stride), skips) for reader in open_readers(config, skips)]


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
    # Both run before what terminates the workers: DataLoader's function at exit, which a process of multiprocessing
    # does not come to, and the end of such a process, which waits for them without a limit.
    atexit.register(setattr, ending, "value", 1)
    Finalize(None, setattr, (ending, "value", 1), exitpriority=0)
    return loaded


def _obey_sigterm(ending: Any, _worker: int) -> None:
    """Ignore SIGTERM until the end: it is meant for the trainer, which saves and then stops its workers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit() if ending.value else None)


@dataclass
class _LoadedBatch:
    batch: Batch
    skips: list[Skip]
    complete: bool


class _TrainingBatches(Dataset[_LoadedBatch]):
    """Batch number -> batch; see the module's docstring."""

    def __init__(self, reader: ClipReader, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        counts = np.bincount(reader.samples.column("store"), minlength=len(reader.stores))
        self.shard_sizes: list[int] = counts.tolist()
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, batch: int) -> _LoadedBatch:
        clips: list[Clip] = []
        skips: list[Skip] = []
        for place in range(self.batch_size):
            clip = self._first_readable(batch * self.batch_size + place, skips)
            if clip is None:
                break
            clips.append(clip)
        video = torch.stack([clip.video for clip in clips]) if clips else torch.empty(0)
        loaded = Batch(video, [clip.key for clip in clips], [clip.caption for clip in clips])
        return _LoadedBatch(loaded, skips, complete=len(clips) == self.batch_size)

    def _first_readable(self, turn: int, skips: list[Skip]) -> Clip | None:
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
