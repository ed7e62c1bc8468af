"""What the two regularisers cost: time of an autoencoder's training step with and without them, in one run.

    python scripts/bench_training.py                         # the published 48-channel model, 17 frames of 64x64
    python scripts/bench_training.py --preset small          # the comparison's model, seconds instead of minutes

The variants take turns, step by step, so that whatever else the machine does hits them alike. The ratio is the median
over rounds of each round's ratio to the plain step. No optimiser step: it is the same for all.
"""

import argparse
import platform
import statistics
import time

import torch

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.config import load_config, packaged, read_yaml
from sat_ssvae.distributed import default_device
from sat_ssvae.training.losses import Objective, ObjectiveConfig

PLAIN = {"lcr_weight": 0.0, "lmr_mask_ratio": 0.0}
PRESETS = {"published": (SSVAEConfig(), (1, 3, 17, 64, 64)), "small": (None, (4, 3, 9, 64, 64))}


def variants(precision: str) -> dict[str, ObjectiveConfig]:
    """Objectives by name, the plain one first; the perceptual term is left out, it would dilute the difference."""
    arms = {
        "plain": PLAIN,
        "LMR (block)": PLAIN | {"lmr_mask_ratio": 0.25, "lmr": {"kind": "block"}},
        "LCR (fixed weight)": PLAIN | {"lcr_weight": 0.1, "lcr": {"weighting": "fixed"}},
        "LCR (gradient-balanced)": PLAIN | {"lcr_weight": 0.002},
        "LCR + LMR (ssvae.yaml)": read_yaml(packaged("arms/ssvae.yaml")),
        "LCR + LMR (article.yaml)": read_yaml(packaged("arms/article.yaml")),
    }
    base = {"precision": precision, "reconstruction": {"perceptual_weight": 0.0}}
    merged = {}
    for name, own in arms.items():
        settings = base | {**own, "reconstruction": base["reconstruction"] | own.get("reconstruction", {})}
        merged[name] = load_config(ObjectiveConfig, None, replace=settings)
    return merged


def step(objective: Objective, video: torch.Tensor, number: int) -> float:
    """Seconds of one forward and backward pass."""
    objective.zero_grad()
    start = time.perf_counter()
    objective(video, torch.Generator().manual_seed(number)).total.backward()
    if video.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="published")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant (default: %(default)s)")
    options = parser.parse_args()

    sizes, shape = PRESETS[options.preset]
    if sizes is None:
        shared = read_yaml(packaged("compare_default.yaml"))["vae"]
        sizes = SSVAEConfig(**shared["model"], latent_channels=shared["channels"])
    device = default_device()
    torch.manual_seed(0)
    vae = SSVAE(sizes).to(device)
    video = torch.rand(shape, device=device) * 2 - 1
    objectives = {name: Objective(vae, config).to(device) for name, config in variants(options.precision).items()}

    for objective in objectives.values():  # warm up
        step(objective, video, 0)
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for number in range(options.rounds):
        for name, objective in objectives.items():
            times[name].append(step(objective, video, number))

    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    parameters = sum(parameter.numel() for parameter in vae.parameters()) / 1e6
    print(f"{parameters:.1f} M parameters, video {shape}, {options.precision}, {options.rounds} rounds")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads{gpu}, {platform.machine()}\n")
    print(f"{'variant':<28}{'median s':>10}{'ratio to plain':>17}")
    for name, measured in times.items():
        ratios = [ours / plain for ours, plain in zip(measured, times["plain"], strict=True)]
        print(f"{name:<28}{statistics.median(measured):>10.3f}{statistics.median(ratios):>17.3f}")


if __name__ == "__main__":
    main()
