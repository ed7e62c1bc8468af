"""Helpers of the benchmarks: variants in turn, the published implementation as a reference, counted operations."""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.comparison import bookkeeping
from sat_ssvae.config import packaged, read_yaml
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.video_io import write_video
from sat_ssvae.vae.layers import CausalConv3d, FrameAttention, Upsample

PUBLISHED_MODULE = "ssvae/modules/autoencoding/vae/dc_3dvae.py"


Variants = dict[str, Callable[[], object]]
T = TypeVar("T")


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Add the option of `clock` and `faster`."""
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="on a busy machine: count seconds of one of its processors, and compare the fastest rounds",
    )


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """The clock; processor time is measured with one thread, of which alone it is reliable."""
    if not options.processor_time:
        return time.perf_counter
    torch.set_num_threads(1)
    return time.process_time


def time_in_turn(
    variants: Variants, rounds: int, device: torch.device, now: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every variant in every round; they take turns, so that other load on the machine affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = now()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # round 0 warms up
                times[name].append(now() - start)
    return times


def typical(times: list[float], options: argparse.Namespace) -> float:
    """The median; of processor time, which other processes can only lengthen, the minimum."""
    return min(times) if options.processor_time else statistics.median(times)


def faster(times: list[float], reference: list[float], options: argparse.Namespace) -> float:
    """How many times faster than a reference: the median over rounds of the ratios, or the ratio of the minima."""
    if options.processor_time:
        return min(reference) / min(times)
    return statistics.median(base / own for own, base in zip(times, reference, strict=True))


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """`function(*arguments)` in a separate process, so that peaks of memory do not mix."""
    # glibc would keep freed blocks of up to 32 MiB and fragment them; without that, the peak is of live memory.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def memory_peak(device: str) -> Iterator[Callable[[], float]]:
    """Yields a function that gives, after the block, the peak of the bytes needed in it."""
    peak = 0.0
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: peak
        peak = torch.cuda.max_memory_allocated() - before
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
        yield lambda: peak
        peak = _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def waves(frames: int, height: int, width: int, slant: int = 2) -> Tensor:
    """A video of moving, coloured waves, `3 T H W` in [-1, 1]."""
    y, x = torch.arange(height).view(-1, 1) / height, torch.arange(width) / width
    moving = torch.arange(frames).view(-1, 1, 1) / frames + slant * y + x
    return torch.stack([torch.sin(7 * moving + channel) for channel in range(3)])


def make_shards(folder: Path, frames: int, size: tuple[int, int], fps: float) -> Path:
    """Shards of four videos in a new folder `shards`."""
    (folder / "videos").mkdir()
    for number in range(4):
        write_video(folder / "videos" / f"{number}.mp4", waves(frames, *size, slant=number + 1), fps=fps)
    pack(folder / "videos", folder / "shards", PackConfig(workers=1, captions="none"))
    return folder / "shards"


def small_config() -> SSVAEConfig:
    """The sizes of the default comparison's autoencoders."""
    shared = read_yaml(packaged("compare_default.yaml"))["vae"]
    return SSVAEConfig(**shared["model"], latent_channels=shared["channels"])


def machine(device: torch.device) -> str:
    """One line about the machine."""
    found = bookkeeping.machine(device)
    name = found.get("gpu") or f"{found['cpu']} ({torch.backends.cpu.get_cpu_capability()})"
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads"


class PublishedNetwork(nn.Module):
    """Encoder and decoder of a checkout of the published code (github.com/zai-org/SSVAE), with the weights of `vae`."""

    def __init__(self, checkout: Path, vae: SSVAE) -> None:
        super().__init__()
        module = _load(checkout / PUBLISHED_MODULE)
        config: SSVAEConfig = vae.config
        sizes = {
            "double_z": True,
            "norm": "rmsnorm",
            "temporal_compress_times": vae.temporal_factor,
            "z_channels": config.latent_channels,
            "resolution": 256,
            "in_channels": config.in_channels,
            "out_ch": config.in_channels,
            "ch": config.base_channels,
            "ch_mult": list(config.channel_multipliers),
            "num_res_blocks": config.num_res_blocks,
            "num_mid_blocks": config.num_mid_blocks,
            "attn_resolutions": [],
            "dropout": 0.0,
        }
        levels = list(config.temporal_downsample)
        self.encoder = module.Encoder3D(**sizes, temporal_upsample=levels)
        self.decoder = module.Decoder3D(**sizes, temporal_upsample=levels[::-1])
        weights = {name: value.contiguous() for name, value in vae.state_dict().items() if name != "mask_token"}
        self.load_state_dict(weights)
        self.latent_channels = config.latent_channels

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of `B C T H W` from the posterior mean."""
        return self.decoder(self.encoder(x)[:, : self.latent_channels])


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_network", path)
    if spec is None or spec.loader is None or not path.exists():
        sys.exit(f"{path}: no such file; --published wants a checkout of github.com/zai-org/SSVAE")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_flops(config: SSVAEConfig, shape: tuple[int, ...]) -> float:
    """Operations (two per multiply-add) of encoding and decoding one video of `shape` by the plain graph.

    Plain: 27 taps everywhere, upsampled frames repeated before their convolution. Norms and activations do not count.
    """
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        positions = output.numel() // output.shape[1]
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            weights = module.weight.numel()
        elif isinstance(module, CausalConv3d):
            weights = module.conv.weight.numel()
        elif isinstance(module, Upsample):
            weights = module.conv.conv.weight.numel()
        else:  # attention: two products of every position with every other of its frame
            weights = 2 * output.shape[1] * output.shape[-1] * output.shape[-2]
        total += 2.0 * positions * weights

    with torch.device("meta"):
        vae = SSVAE(config)
        for module in vae.modules():
            if isinstance(module, nn.Conv3d | nn.Conv2d | CausalConv3d | Upsample | FrameAttention):
                module.register_forward_hook(count)
        vae.decode(vae.encode(torch.empty(shape)).mean)  # with a graph: every layer is called as a module
    return total
