"""How close the loader comes to the limit set by decoding, and how long training waits for it.

    python scripts/bench_data.py SHARDS --workers 2 --rounds 5 [--run runs/my_vae] [num_frames=17 resolution=256 ...]

Limit: processes that only decode clips of videos in memory, at random places. Loader: the same number of worker
processes behind the training loop's iterator. Measured in turn, median of the rounds' ratios. Waiting: the mean
`data_share` of a run's metrics.jsonl.
"""

import argparse
import itertools
import multiprocessing
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sat_ssvae.config import load_config
from sat_ssvae.data.clips import last_start
from sat_ssvae.data.files import VideoError
from sat_ssvae.data.index import find_stores, list_samples
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.shards import training_batches
from sat_ssvae.data.video_io import read_clip
from sat_ssvae.storage import read_json_lines

MAX_ATTEMPTS = 100
WARM_UP = 2  # clips of a process that decodes and batches of a worker, before the clock starts


class Video(NamedTuple):
    """A video to decode clips of."""

    source: bytes | Path
    last_start: float
    """Seconds: where the last clip begins."""


def videos(config: DataConfig) -> list[Video]:
    """All videos that are long enough for a clip, those of shards in memory."""
    stores = find_stores(config.path, print)
    samples = list(list_samples(stores, config.filters, print))
    lasts = [last_start(sample, config) for sample in samples if not sample.is_image]
    sources = [stores[sample.store].media(sample.key)[1] for sample in samples if not sample.is_image]
    return [Video(source, last) for source, last in zip(sources, lasts, strict=True) if last >= 0]


def decode(known: list[Video], config: DataConfig, clips: int, rank: int, ready: Any, done: Any) -> None:
    """One process that only decodes."""
    torch.set_num_threads(1)
    draws = random.Random(rank)
    for number in range(-WARM_UP, clips):
        if number == 0:
            ready.wait()
        decode_clip(known, config, draws)
    done.wait()


def decode_clip(known: list[Video], config: DataConfig, draws: random.Random) -> None:
    """A clip at a random place; of another video where one is damaged, as the loader takes it."""
    for _ in range(MAX_ATTEMPTS):
        video = draws.choice(known)
        start = draws.uniform(0, video.last_start)
        try:
            read_clip(video.source, start=start, num_frames=config.num_frames, fps=config.fps, size=config.size)
        except VideoError:
            continue
        return


def limit(known: list[Video], config: DataConfig, options: argparse.Namespace) -> float:
    """Clips a second of processes that only decode."""
    clips = options.batches * options.batch_size // options.workers
    context = multiprocessing.get_context("fork")
    ready, done = (context.Barrier(options.workers + 1) for _ in range(2))
    processes = [
        context.Process(target=decode, args=(known, config, clips, rank, ready, done))
        for rank in range(options.workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    begin = time.monotonic()
    done.wait()
    seconds = time.monotonic() - begin
    for process in processes:
        process.join()
    return clips * options.workers / seconds


def loader(config: DataConfig, options: argparse.Namespace) -> float:
    """Clips a second that the training loop would get if it did nothing else."""
    workers = config.model_copy(update={"num_workers": options.workers})
    stream = training_batches(workers, batch_size=options.batch_size, seed=0)
    for _ in itertools.islice(stream, WARM_UP * options.workers):
        pass
    begin = time.monotonic()
    for _ in itertools.islice(stream, options.batches):
        pass
    return options.batches * options.batch_size / (time.monotonic() - begin)


def waiting_share(run: Path) -> float:
    """Share of a run's time in which it waited for data, its first logged row (start-up) left out."""
    return statistics.mean(line["data_share"] for line in read_json_lines(run / "metrics.jsonl")[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="shards, as in data.path")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=32, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="folder of a training run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of `data`")
    options = parser.parse_intermixed_args()
    config = load_config(DataConfig, None, [f"path={options.path}", *options.overrides])
    known = videos(config)
    if not known:
        sys.exit(f"{options.path}: no video of {config.span:.2f} s, which {config.num_frames} frames take")
    pairs = [(limit(known, config, options), loader(config, options)) for _ in range(options.rounds)]
    ratio = statistics.median(reached / possible for possible, reached in pairs)
    print(f"decoding alone  {statistics.median(possible for possible, _ in pairs):8.1f} clips/s")
    print(f"loader          {statistics.median(reached for _, reached in pairs):8.1f} clips/s")
    print(f"ratio           {ratio:8.2f}  (median of {options.rounds} rounds, {options.workers} processes)")
    if options.run:
        print(f"waiting         {waiting_share(options.run):8.1%} of a step in {options.run}")


if __name__ == "__main__":
    main()
