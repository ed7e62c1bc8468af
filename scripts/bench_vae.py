"""Speed and memory of the autoencoder, in one run.

    python scripts/bench_vae.py                                  # the published 48-channel model, 17 frames of 64x64
    python scripts/bench_vae.py --published CHECKOUT             # beside github.com/zai-org/SSVAE (needs beartype)
    python scripts/bench_vae.py --frames 1                       # an image
    python scripts/bench_vae.py --frames 9 --size 256 --rounds 3

Weights are random: the time does not depend on them. The ratio is the median over rounds of each round's ratio, or with
`--processor-time` that of the fastest rounds. GFLOP/s are counted on the plain graph, whatever a variant really
executes; the peak is that of one large convolution.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _bench import (
    PublishedNetwork,
    add_clock,
    clock,
    faster,
    in_own_process,
    machine,
    memory_peak,
    plain_flops,
    time_in_turn,
    typical,
)

from sat_ssvae import SSVAE
from sat_ssvae.distributed import default_device

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def new_vae(dtype: torch.dtype, device: torch.device) -> SSVAE:
    """The published sizes with seeded weights, as `from_pretrained` gives them."""
    torch.manual_seed(0)
    return SSVAE().to(device, dtype).eval()


def speed(options: argparse.Namespace, device: torch.device) -> None:
    """Encode and decode a video: all variants in turn."""
    shape, rounds, published = (1, 3, options.frames, options.size, options.size), options.rounds, options.published
    now = clock(options)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    variants: dict[str, Callable[[], torch.Tensor]] = {}
    for precision, dtype in PRECISIONS.items():
        vae, video = new_vae(dtype, device), x.to(dtype)
        prepared = new_vae(dtype, device).for_inference()
        for name, model in (("this project", prepared), ("without for_inference", vae)):
            variants[f"{name}, {precision}"] = lambda vae=model, video=video: vae.decode(vae.encode(video).mode())
        if published:
            network = PublishedNetwork(published, vae).to(device, dtype).eval()
            variants[f"published code, {precision}"] = lambda network=network, video=video: network(video)
    with torch.no_grad():
        times = time_in_turn(variants, rounds, device, now)
        peaks = {precision: convolution_peak(dtype, device, now) for precision, dtype in PRECISIONS.items()}
        reference = variants["published code, float32" if published else "this project, float32"]().float()
        errors = {name: (run().float() - reference).abs().max().item() for name, run in variants.items()}
    work = plain_flops(SSVAE().config, shape) / 1e9
    base = "published code, float32" if published else "this project, float32"
    print(f"encode + decode {shape}, {work:.0f} GFLOP, {rounds} rounds")
    print("convolution peak, GFLOP/s: " + ", ".join(f"{peak:.0f} in {name}" for name, peak in peaks.items()))
    row = "{:<32}{:>10}{:>14}{:>10}{:>9}{:>10}{:>10}".format
    print("\n" + row("variant", "seconds", "times faster", "GFLOP/s", "of peak", "frames/s", "error"))
    for name, measured in times.items():
        seconds, peak = typical(measured, options), peaks[name.rpartition(" ")[2]]
        rate = work / seconds
        ratio, fps = f"{faster(measured, times[base], options):.2f}x", f"{shape[2] / seconds:.1f}"
        print(row(name, f"{seconds:.3f}", ratio, f"{rate:.0f}", f"{rate / peak:.0%}", fps, f"{errors[name]:.1e}"))


def convolution_peak(dtype: torch.dtype, device: torch.device, now: Callable[[], float]) -> float:
    """GFLOP/s of one large convolution of the kind that the autoencoder consists of."""
    channels, frames, side = 256, 18, 32
    x = torch.randn(1, channels, frames + 2, side, side, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last_3d)
    seconds = time_in_turn({"conv": lambda: F.conv3d(x, weight, padding=(0, 1, 1))}, 7, device, now)["conv"]
    return 2 * 27 * channels**2 * frames * side**2 / min(seconds) / 1e9


def memory(size: int, chunk_frames: int, device: torch.device) -> None:
    """Peak memory of decoding 17 and 161 frames, each in a process of its own, output not counted."""
    print(f"\ndecoding {size}x{size} with chunk_frames={chunk_frames}, float32; peak beside weights and output")
    peaks = {}
    for frames in (17, 161):
        peaks[frames] = in_own_process(peak_memory, frames, size, chunk_frames, str(device))
        print(f"{frames:>6} frames {peaks[frames] / 2**20:>8.0f} MiB")
    print(f"ratio        {peaks[161] / peaks[17]:>8.2f}")


def peak_memory(frames: int, size: int, chunk_frames: int, device: str) -> float:
    """Bytes at the peak of decoding, beyond what there was before and what the result takes."""
    vae = new_vae(torch.float32, torch.device(device)).for_inference()
    factor = vae.spatial_factor
    z = torch.randn(1, vae.config.latent_channels, (frames - 1) // 4 + 1, size // factor, size // factor, device=device)
    with torch.no_grad():
        vae.decode(z[:, :, :5], chunk_frames)  # makes what is made once: libraries' own memory, copies of the weights
        with memory_peak(device) as used:
            video = vae.decode(z, chunk_frames=chunk_frames)
    return used() - video.numel() * video.element_size()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=17, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each variant (default: %(default)s)")
    parser.add_argument("--published", type=Path, metavar="CHECKOUT", help="also time a checkout of the published code")
    parser.add_argument("--memory-size", type=int, default=128, help="the same, for the memory (default: %(default)s)")
    add_clock(parser)
    parser.add_argument("--chunk-frames", type=int, default=8, help="for the memory (default: %(default)s)")
    options = parser.parse_args()
    device = default_device()
    print(machine(device))
    speed(options, device)
    memory(options.memory_size, options.chunk_frames, device)


if __name__ == "__main__":
    main()
