"""How long, and in how much memory, a million samples in a thousand shards are listed.

    python scripts/bench_index.py [--old COMMIT] [--samples 1000000] [--shards 1000]

Each line is a process of its own: listing anew, out of the cache of this machine, out of the index that `pack` writes
beside the shards, and with --old as that commit's code does it. Seconds of the processor, and what the process's peak
memory grows by while it lists. Shards hold no videos: meta files alone decide.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = """
import resource, sys, time
from sat_ssvae.data import shards
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.skips import SkipLog
import torch
try:
    from sat_ssvae.data.clips import open_readers
except ImportError:
    open_readers = shards._open
config = DataConfig(path=sys.argv[1], num_frames=17, fps=8, resolution=64)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
(reader,) = open_readers(config, SkipLog())
seconds = time.process_time() - start
print(len(reader.samples), seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) / 1024)
"""
INDEX = """
import sys
from pathlib import Path
from sat_ssvae.data.samples import write_index
write_index(sorted(Path(sys.argv[1]).glob("*.tar")))
"""


def write_shards(folder: Path, samples: int, shards: int) -> None:
    """Meta files like the packer's, beside tars without members."""
    each = samples // shards
    for shard in range(shards):
        (folder / f"clips-{shard:06d}.tar").write_bytes(bytes(10240))
        with (folder / f"clips-{shard:06d}.meta.jsonl").open("w", encoding="utf-8") as meta:
            for number in range(shard * each, (shard + 1) * each):
                record = {"key": f"{number:08d}", "duration": 6.0 + number % 7, "fps": 24.0, "frames": 144}
                record |= {"width": 640, "height": 360, "source": f"films/{number // 50:05d}.mp4@{number % 50 * 6}.000"}
                meta.write(json.dumps({**record, "caption": f"a film of scene {number}, told in a sentence"}) + "\n")


def listing(tree: Path, folder: Path, cache: Path) -> tuple[int, float, float]:
    """Samples, seconds and MiB."""
    count, seconds, mebibytes = run(LIST, tree, folder, cache).split()
    return int(count), float(seconds), float(mebibytes)


def run(program: str, tree: Path, folder: Path, cache: Path) -> str:
    """What a program prints: a process of its own, since a process's peak memory begins with that of its parent."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "SAT_SSVAE_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=environment,
        cwd=cache.parent,  # else Python takes the package of the current folder
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", help="a commit to compare with")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache, old = (Path(scratch) / name for name in ("shards", "cache", "old"))
        folder.mkdir()
        write_shards(folder, options.samples, options.shards)
        trees = [("anew", ROOT, cache), ("cached", ROOT, cache), ("beside the shards", ROOT, Path(scratch) / "empty")]
        if options.old:
            old.mkdir()
            archive = subprocess.run(
                ["git", "archive", options.old, "sat_ssvae"], cwd=ROOT, check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
            trees.insert(0, (f"commit {options.old}", old, Path(scratch) / "old-cache"))
        first: tuple[float, float] | None = None
        print(f"{'listing':24s}{'samples':>10s}{'CPU s':>10s}{'MiB':>8s}{'time':>8s}{'memory':>8s}")
        for name, tree, own_cache in trees:
            if name == "beside the shards":
                run(INDEX, tree, folder, own_cache)
            count, seconds, mebibytes = listing(tree, folder, own_cache)
            first = first or (seconds, mebibytes)
            shares = f"{seconds / first[0]:8.2f}{mebibytes / first[1]:8.2f}"
            print(f"{name:24s}{count:10d}{seconds:10.2f}{mebibytes:8.0f}{shares}", flush=True)


if __name__ == "__main__":
    main()
