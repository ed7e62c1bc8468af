"""Spatial tiling at 1080p: how far the result is from the whole pass, and what memory it saves.

    python scripts/bench_tiling.py runs/compare/vae/NAME/vae film.mp4 --output tiling.png

Reconstructs five frames of the video, scaled to cover 1088x1920, in one piece and in tiles. The picture shows the tiled
reconstruction above its difference from the whole one, 20 times enlarged. (Published weights are not in any package
registry; any checkpoint will do.)
"""

import argparse
from pathlib import Path

import imageio.v3 as imageio
import torch
from _bench import in_own_process, machine, memory_peak

from sat_ssvae import SSVAE
from sat_ssvae.data.video_io import read_clip, to_uint8, to_unit_range
from sat_ssvae.distributed import default_device
from sat_ssvae.metrics.fidelity import psnr

SIZE = (1088, 1920)
FRAMES = 5


def reconstruct(
    checkpoint: Path, x: torch.Tensor, tile_size: int | None, chunk_frames: int | None, device: str
) -> tuple[torch.Tensor, float]:
    """Reconstruction and the peak of memory, in bytes, beside weights and result."""
    vae = SSVAE.from_pretrained(checkpoint).to(device).for_inference()
    with torch.no_grad(), memory_peak(device) as used:
        z = vae.encode(x.to(device), chunk_frames, tile_size).mode()
        y = vae.decode(z, chunk_frames, tile_size)
    return y.cpu(), used() - y.numel() * y.element_size()


def main() -> None:
    """Print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--start", type=float, default=30.0, help="seconds into the video (default: %(default)s)")
    parser.add_argument("--tile-sizes", type=int, nargs="+", default=[256, 512], help="(default: %(default)s)")
    parser.add_argument("--chunk-frames", type=int, help="frames at a time (default: all)")
    parser.add_argument("--output", type=Path, default=Path("tiling.png"), help="picture (default: %(default)s)")
    options = parser.parse_args()
    device = default_device()
    clip = read_clip(options.video, start=options.start, num_frames=FRAMES, fps=8, size=SIZE)
    x = to_unit_range(clip)[None]

    print(machine(device))
    print(
        f"{FRAMES} frames of {SIZE[0]}x{SIZE[1]}\n\n{'tiles':<10}{'PSNR to whole':>15}{'max error':>11}{'memory':>12}"
    )
    results = {}
    for tile_size in (None, *options.tile_sizes):
        results[tile_size] = in_own_process(
            reconstruct, options.checkpoint, x, tile_size, options.chunk_frames, str(device)
        )
        video, used = results[tile_size]
        difference = (video - results[None][0]).abs()
        near = f"{psnr(video, results[None][0]).item():.1f} dB" if tile_size else "-"
        print(f"{tile_size or 'whole':<10}{near:>15}{difference.max():>11.3f}{used / 2**20:>8.0f} MiB")
        picture = torch.cat([video, (20 * difference - 1).clamp(-1, 1)], dim=3)
    imageio.imwrite(options.output, to_uint8(picture[0, :, -1]).permute(1, 2, 0).numpy())
    print(f"\n{options.output}: tiles of {options.tile_sizes[-1]}, above the difference from the whole pass x 20")


if __name__ == "__main__":
    main()
