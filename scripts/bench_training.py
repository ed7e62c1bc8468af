"""Time of an autoencoder's training step: the cost of the two regularisers, with the published step as a reference.

    python scripts/bench_training.py                         # the published 48-channel model, 17 frames of 64x64
    python scripts/bench_training.py --preset small          # the comparison's model, seconds instead of minutes
    python scripts/bench_training.py --preset default        # the same at the size of the default comparison
    python scripts/bench_training.py --published CHECKOUT    # beside github.com/zai-org/SSVAE (needs beartype)

The variants take turns, step by step, so that other load on the machine affects them alike. The ratio is the median
over rounds of each round's ratio to the plain step (with `--processor-time` that of the fastest rounds). The optimiser
step and the perceptual term, which all have in common, are left out.
The last table has the ways that `memory` chooses from, against the checkpointed step; the memory is what a step needs
at its peak beside weights and gradients, each in a process of its own.
Autoencoders are prepared as the trainer prepares them, by `for_training()`, but in the variant that says so.
The published step is the published network under the loss and the gradient balance of its training: always float32,
with a second backward pass through the decoder for the balance.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _bench import (
    PublishedNetwork,
    add_clock,
    clock,
    faster,
    in_own_process,
    machine,
    memory_peak,
    small_config,
    time_in_turn,
    typical,
)

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.config import load_config, packaged, read_yaml
from sat_ssvae.distributed import default_device
from sat_ssvae.spectral.correlation import correlation_loss, local_correlation
from sat_ssvae.training.losses import Objective
from sat_ssvae.training.memory import PLANS, StepPlan
from sat_ssvae.training.objective_config import ObjectiveConfig
from sat_ssvae.vae.posterior import Posterior

PLAIN = {"lcr_weight": 0.0, "lmr_mask_ratio": 0.0}
FULL = "LCR + LMR (ssvae.yaml)"
PRESETS = {
    "published": (SSVAEConfig(), (1, 3, 17, 64, 64)),
    "small": (None, (4, 3, 9, 64, 64)),
    "default": (None, (2, 3, 9, 48, 48)),
}


def variants(precision: str) -> dict[str, ObjectiveConfig]:
    """Objectives by name, the plain one first; the perceptual term is left out, it would dilute the difference."""
    arms = {
        "plain": PLAIN,
        "LMR (block)": PLAIN | {"lmr_mask_ratio": 0.25, "lmr": {"kind": "block"}},
        "LCR (fixed weight)": PLAIN | {"lcr_weight": 0.1, "lcr": {"weighting": "fixed"}},
        "LCR (gradient-balanced)": PLAIN | {"lcr_weight": 0.002},
        FULL: read_yaml(packaged("arms/ssvae.yaml")),
        "LCR + LMR (article.yaml)": read_yaml(packaged("arms/article.yaml")),
    }
    base = {"precision": precision, "reconstruction": {"perceptual_weight": 0.0}}
    merged = {}
    for name, own in arms.items():
        settings = base | {**own, "reconstruction": base["reconstruction"] | own.get("reconstruction", {})}
        merged[name] = load_config(ObjectiveConfig, None, replace=settings)
    return merged


CHECKPOINTED = PLANS[2]
"""The usual way to save memory, with which the others are compared."""


def step(objective: Objective, video: torch.Tensor, plan: StepPlan = PLANS[0]) -> None:
    """One forward and backward pass."""
    plan.apply(objective)
    objective.zero_grad()
    objective(video, torch.Generator().manual_seed(0)).total.backward()


def published_step(network: PublishedNetwork, video: torch.Tensor) -> None:
    """The same by the published network, balanced by two more backward passes as the published training does."""
    network.zero_grad()
    posterior = Posterior.from_moments(network.encoder(video))
    error = (network.decoder(posterior.sample()) - video).abs().sum() / len(video)
    correlation = correlation_loss(local_correlation(posterior.mean, window=(2, 2, 2)), threshold=0.75)
    last = network.encoder.out[2].conv.weight
    main, regulariser = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, correlation))
    weight = (0.002 * main / (regulariser + 1e-4)).detach()
    (error + 5e-4 * posterior.kl().mean() + weight * correlation).backward()


def peak_memory(sizes: SSVAEConfig, shape: tuple[int, ...], plan: StepPlan, device: str) -> float:
    """Bytes that a step of the full objective needs at its peak, beside weights and gradients."""
    objective = Objective(SSVAE(sizes).for_training().to(device), variants("float32")[FULL]).to(device)
    video = torch.rand(shape, device=device) * 2 - 1
    step(objective, video[..., :32, :32], plan)  # makes the gradients
    with memory_peak(device) as used:
        step(objective, video, plan)
    return used()


def plans(vae: SSVAE, video: torch.Tensor, options: argparse.Namespace) -> None:
    """Time and memory of the ways to take a step, for a batch of two videos at least."""
    video = video if len(video) > 1 else torch.cat([video, video.flip(-1)])
    objective = Objective(vae, variants("float32")[FULL]).to(video.device)
    steps: dict[str, Callable[[], object]] = {plan.name: partial(step, objective, video, plan) for plan in PLANS}
    times = time_in_turn(steps, options.rounds, video.device, clock(options))
    print(f"\n{f'memory, batch of {len(video)}, float32':<36}{'seconds':>10}{'/ checkpointed':>15}{'peak MiB':>10}")
    for plan in PLANS:
        peak = in_own_process(peak_memory, vae.config, tuple(video.shape), plan, str(video.device))
        ratio = 1 / faster(times[plan.name], times[CHECKPOINTED.name], options)
        print(f"{plan.name:<36}{typical(times[plan.name], options):>10.3f}{ratio:>15.3f}{peak / 2**20:>10.0f}")


def parse_options() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="published")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant (default: %(default)s)")
    parser.add_argument("--published", type=Path, metavar="CHECKOUT", help="also time a checkout of the published code")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="variants whose name holds one of these texts, or plain"
    )
    parser.add_argument("--no-plans", action="store_true", help="leave the last table out")
    add_clock(parser)
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    options = parse_options()
    sizes, shape = PRESETS[options.preset]
    if sizes is None:
        sizes = small_config()
    device = default_device()
    torch.manual_seed(0)
    vae = SSVAE(sizes).to(device)
    as_built = copy.deepcopy(vae, {id(parameter): parameter for parameter in vae.parameters()})
    vae.for_training()
    video = torch.rand(shape, device=device) * 2 - 1
    objectives = {name: Objective(vae, config).to(device) for name, config in variants(options.precision).items()}

    steps: dict[str, Callable[[], object]] = {
        name: partial(step, objective, video) for name, objective in objectives.items()
    }
    slow = Objective(as_built, variants(options.precision)[FULL]).to(device)
    steps[f"{FULL}, no for_training()"] = partial(step, slow, video)
    if options.published:
        half = variants("bfloat16")[FULL]
        steps[f"{FULL}, bfloat16"] = partial(step, Objective(vae, half).to(device), video)
        steps["published step"] = partial(published_step, PublishedNetwork(options.published, vae).to(device), video)
    chosen = ["plain", *options.only] if options.only else [""]
    steps = {name: run for name, run in steps.items() if any(text in name for text in chosen)}
    times = time_in_turn(steps, options.rounds, device, clock(options))

    parameters = sum(parameter.numel() for parameter in vae.parameters()) / 1e6
    print(f"{parameters:.1f} M parameters, video {shape}, {options.precision}, {options.rounds} rounds")
    print(f"{machine(device)}\n")
    print(f"{'variant':<36}{'seconds':>10}{'time / plain':>15}")
    for name, measured in times.items():
        print(f"{name:<36}{typical(measured, options):>10.3f}{1 / faster(measured, times['plain'], options):>15.3f}")
    if not options.no_plans:
        plans(vae, video, options)


if __name__ == "__main__":
    main()
