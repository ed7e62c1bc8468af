"""How close `pack` comes to bare ffmpeg where it encodes again, and to tar where it copies.

    python scripts/bench_pack.py VIDEOS [--only copying] [--workers 1] [--rounds 5] [--short-side 256] [--copies 20]

VIDEOS is a folder of mp4 files. Both sides of a line take turns on the same files, with the same number of processes:
encoding with the same codec settings, size and key frames, one thread per process; copying from files in memory.
Rates are medians over the rounds, ratios the medians of the rounds' ratios: of the time that passed, and of the CPU
time, which other work on the machine changes less.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sat_ssvae.data.convert import PackConfig
from sat_ssvae.data.pack import pack
from sat_ssvae.data.video_io import probe


def find_ffmpeg(given: str | None) -> str:
    """The binary: what was given, the system's, or that of the package imageio-ffmpeg."""
    found = given or shutil.which("ffmpeg")
    if found is None:
        try:
            import imageio_ffmpeg
        except ModuleNotFoundError:
            sys.exit("no ffmpeg: apt install ffmpeg, or pip install imageio-ffmpeg, or give --ffmpeg PATH")
        found = imageio_ffmpeg.get_ffmpeg_exe()
    return str(found)


def bare_ffmpeg(binary: str, videos: list[Path], output: Path, options: argparse.Namespace) -> None:
    """Encode all videos as `pack` does, each in a process of its own."""
    config = PackConfig()

    def encode(video: Path) -> None:
        info = probe(video)
        scale = min(1.0, options.short_side / min(info.height, info.width))
        height, width = (2 * -(-max(1, round(side * scale)) // 2) for side in (info.height, info.width))
        command = [binary, "-v", "error", "-y", "-threads", "1", "-i", str(video), "-an", "-filter_threads", "1"]
        command += ["-vf", f"scale={width}:{height}", "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "fast"]
        command += ["-crf", str(config.crf), "-bf", "0", "-x264-params", "mbtree=0", "-threads", "1"]
        command += ["-g", str(round(info.fps * config.keyframe_seconds)), str(output / video.name)]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(encode, videos))


def tar(videos: list[Path], output: Path, parts: int) -> None:
    """As many processes of tar as `pack` has."""
    output.mkdir(exist_ok=True)
    shares = [videos[number::parts] for number in range(parts)]
    started = [
        subprocess.Popen(
            ["tar", "-cf", str(output / f"{number}.tar"), "-C", str(share[0].parent), *[v.name for v in share]]
        )
        for number, share in enumerate(shares)
        if share
    ]
    if sum(process.wait() for process in started):
        sys.exit("tar failed")


class Cost(NamedTuple):
    """What a round took."""

    seconds: float
    cpu: float
    """CPU seconds of all processes together."""


Costs = dict[str, list[Cost]]


def in_turn(variants: dict[str, Callable[[Path], None]], rounds: int, scratch: Path) -> Costs:
    """The cost of each variant in each round; the first round warms up."""
    costs: Costs = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            folder = scratch / "out"
            folder.mkdir()
            began, used = time.perf_counter(), sum(os.times()[:4])
            run(folder)
            if number:
                costs[name].append(Cost(time.perf_counter() - began, sum(os.times()[:4]) - used))
            shutil.rmtree(folder)
    return costs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--ffmpeg", help="the binary to compare with")
    parser.add_argument("--only", choices=["encoding", "copying"], help="leave the other out")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of either side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--copies", type=int, default=20, help="copies of each video to pack when files are copied")
    options = parser.parse_args()
    videos = sorted(options.videos.glob("*.mp4"))
    if not videos:
        sys.exit(f"{options.videos}: no mp4 file there")
    print(f"{options.workers} processes of either side, {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "copying":
            compare_encoding(videos, Path(folder), options)
        if options.only != "encoding":
            compare_copying(videos, Path(folder), options)


def compare_encoding(videos: list[Path], scratch: Path, options: argparse.Namespace) -> None:
    """Scaled down, against ffmpeg."""
    binary = find_ffmpeg(options.ffmpeg)
    version = subprocess.run([binary, "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    print(f"ffmpeg {version}")
    smaller = PackConfig(workers=options.workers, captions="none", max_short_side=options.short_side)
    times = in_turn(
        {
            "pack": lambda output: pack(videos, output / "shards", smaller),
            "ffmpeg": lambda output: bare_ffmpeg(binary, videos, output, options),
        },
        options.rounds,
        scratch,
    )
    seconds = sum(probe(video).duration for video in videos)
    show(f"encoding, {options.short_side} px", "s", seconds, times["pack"], times["ffmpeg"])


def compare_copying(videos: list[Path], scratch: Path, options: argparse.Namespace) -> None:
    """As they are, against tar."""
    (scratch / "many").mkdir()
    copies = [scratch / "many" / f"{number:04d}{video.name}" for number in range(options.copies) for video in videos]
    for copy, video in zip(copies, itertools.cycle(videos), strict=False):
        shutil.copy(video, copy)
    each = max(1, len(copies) // options.workers)
    plain = PackConfig(workers=options.workers, captions="none", samples_per_shard=each)
    times = in_turn(
        {
            "pack": lambda output: pack(copies, output / "shards", plain),
            "tar": lambda output: tar(copies, output, options.workers),
        },
        options.rounds,
        scratch,
    )
    size = sum(copy.stat().st_size for copy in copies) / 1e6
    show(f"copying, {size / len(copies):.1f} MB each", "MB", size, times["pack"], times["tar"])


def show(name: str, unit: str, amount: float, ours: list[Cost], others: list[Cost]) -> None:
    """Three lines: rate and CPU time of both sides, and the ratios."""
    ratios = [
        statistics.median(other[field] / own[field] for own, other in zip(ours, others, strict=True))
        for field in range(2)
    ]
    for side, costs in (("pack", ours), ("other", others)):
        rate = amount / statistics.median(cost.seconds for cost in costs)
        cpu = statistics.median(cost.cpu for cost in costs) / amount
        print(f"{f'{name}, {side}':32s}{rate:10.2f} {unit}/s{cpu:10.4f} CPU s/{unit}", flush=True)
    print(f"{f'{name}, ratio':32s}{ratios[0]:10.2f}{ratios[1]:14.2f}", flush=True)


if __name__ == "__main__":
    main()
