"""Peak memory of `sat-ssvae reconstruct` for a short and a ten times longer video.

    python scripts/bench_reconstruct.py                          # a small autoencoder, 144 and 1440 frames of 128x128
    python scripts/bench_reconstruct.py --vae PATH --size 512    # an autoencoder of your own

Each run is a process of its own; the figure is its largest resident set, everything included.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from _bench import machine, small_config, waves

from sat_ssvae import SSVAE
from sat_ssvae.data.video_io import write_video


def peak_memory(vae: str, video: Path, output: Path, settings: list[str]) -> float:
    """MiB of the largest resident set of reconstructing one video."""
    command = ["reconstruct", "--checkpoint", vae, "--input", str(video), "--output", str(output), *settings]
    # The process asks for its own peak: that which its parent can ask for includes the parent's, from before the exec.
    own = f"from sat_ssvae.cli import main; main({command!r}); print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", own], stdout=subprocess.PIPE, text=True, check=True)
    return next(int(line.split()[1]) / 1024 for line in done.stdout.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", help="what `sat-ssvae reconstruct --vae` takes (default: a small one)")
    parser.add_argument("--size", type=int, default=128, help="height and width (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=144, help="of the short video (default: %(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the command")
    options = parser.parse_intermixed_args()
    print(machine(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.vae is None:
            SSVAE(small_config()).save_pretrained(folder / "vae")
        for frames in (options.frames, 10 * options.frames):
            video = folder / f"{frames}.mp4"
            write_video(video, waves(frames, options.size, options.size), fps=24)
            peak = peak_memory(options.vae or str(folder / "vae"), video, folder / f"out{frames}", options.settings)
            print(f"{frames:>6} frames of {options.size}x{options.size} {peak:>8.0f} MiB")


if __name__ == "__main__":
    main()
