"""Steps and clips a second of a training on N devices, from counted operations and bytes.

    python scripts/estimate_scaling.py --tflops 300 --bandwidth 100    # a GPU's sustained rate, its network's GB/s
    python scripts/estimate_scaling.py --bandwidth 100                 # the rate measured on this machine's device

    step = operations / rate + bytes / bandwidth        (--overlapped: the larger of the two)

Operations: of the step of a packaged configuration as it is taken on a GPU of --card GiB (`memory: auto`), perceptual
network, discriminators and what is computed twice to save memory included, counted by the rules of
torch.utils.flop_counter on fake tensors, which compute shapes and nothing else. Only matrix products and convolutions
count; a measured rate pays for the rest. Bytes: what a rank sends in a ring, as DeepSpeed distributes: gradients are
summed (2 (N - 1) / N of their size), and ZeRO 1 and 2 gather the weights that each rank stepped ((N - 1) / N of
theirs). Nothing overlaps in DeepSpeed's ZeRO 0 to 2 unless it is told to. Not in it: Adam itself, and waiting for data.
`scripts/check_scaling.py` holds it against the trainer.
"""

import argparse
import time
from typing import Any

import torch
from _bench import machine
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from sat_ssvae.config import find_config, load_config, packaged
from sat_ssvae.distributed import default_device
from sat_ssvae.engine.memory_tracker import MemoryTracker
from sat_ssvae.training.memory import GIB, PLANS, RESERVE, StepPlan, build_step, choose_plan, largest_batch, take_step
from sat_ssvae.training.settings import TrainConfig

CONFIGS = ("article_256p", "article_512p", "article_1080p", "published_256p")


def training(name: str, *overrides: str) -> TrainConfig:
    """A packaged configuration, as if its paths had been given."""
    path = find_config(packaged(f"{name}.yaml"))
    places = ["data.path=SHARDS", "resume_from=WEIGHTS"]
    if name.startswith("published"):  # videos alone, and the perceptual network of the same size that is at hand
        places += ["data.sources=[]", "reconstruction.perceptual=st-lpips-vgg"]
    return load_config(TrainConfig, path, [*places, *overrides])


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query: Any, key: Any, value: Any, *_args: Any, **_options: Any) -> int:
    return sdpa_flop_count(query, key, value)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_args: Any, **_options: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


class _Counter(TorchDispatchMode):
    """Adds up operations.

    Torch's FlopCounterMode also follows modules, by hooks that end in an error inside this step, which takes gradients
    while it runs.
    """

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        rule = flop_registry.get(func.overloadpacket)
        if rule is not None:
            self.operations += rule(*args, **(kwargs or {}), out_val=result)
        return result


def operations(config: TrainConfig, plan: StepPlan) -> float:
    """Operations (two a multiply-add) of one step of one rank, all its micro-batches."""
    # The tracker gives numbers in place of those that fake tensors do not have: where a block mask begins.
    with FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker(), _Counter() as counter:
        take_step(config, *build_step(config, plan), torch.empty(largest_batch(config)))
    return float(counter.operations * config.optimizer.accumulation_steps)


def measured_rate(config: TrainConfig, plan: StepPlan, device: torch.device, rounds: int = 10) -> float:
    """Operations per second that this device reaches in the fastest of several steps."""
    torch.manual_seed(0)
    objective, critic = build_step(config, plan)
    objective, critic = objective.to(device), None if critic is None else critic.to(device)
    video = torch.rand(largest_batch(config), device=device) * 2 - 1
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        objective.zero_grad()
        if critic is not None:
            critic.zero_grad()
        take_step(config, objective, critic, video)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return operations(config, plan) / config.optimizer.accumulation_steps / min(seconds[1:])


def plan(config: TrainConfig, card: float) -> StepPlan:
    """How a GPU of `card` GiB takes the configuration's step."""
    return choose_plan(config, int(card * GIB) - RESERVE).plan


def trained_parameters(config: TrainConfig) -> list[int]:
    """Parameters that the autoencoder's engine trains, and those of the discriminators' engine if there is one."""
    with FakeTensorMode():
        modules = [module for module in build_step(config, PLANS[0]) if module is not None]
    return [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in modules]


def sent_bytes(config: TrainConfig, stage: int, ranks: int) -> float:
    """Bytes that a rank sends in a step: float32 gradients, and in ZeRO 1 and 2 weights."""
    rounds = 2 if stage == 0 else 3
    return rounds * (ranks - 1) / ranks * 4 * sum(trained_parameters(config))


def step_seconds(computing: float, sending: float, overlapped: bool = False) -> float:
    """Seconds of a step with these seconds of computing and of sending."""
    return max(computing, sending) if overlapped else computing + sending


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, help="sustained 10^12 operations a second; without it, measured here")
    parser.add_argument("--bandwidth", type=float, required=True, help="10^9 bytes a second that a rank can send")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--card", type=float, default=24.0, metavar="GIB", help="a GPU's memory (default: %(default)s)")
    parser.add_argument("--overlapped", action="store_true", help="communication while gradients are computed")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="packaged configurations (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over theirs")
    options = parser.parse_intermixed_args()
    device = default_device()
    rate = options.tflops
    if rate is None:
        config = training(options.configs[0], "batch_size=1", *options.overrides)
        rate = measured_rate(config, plan(config, options.card), device) / 1e12
        print(f"{rate:.3f} TFLOP/s measured: {machine(device)}")
    print(
        "| configuration | step | TFLOP a step and rank |",
        " | ".join(f"{n} ranks: s, clips/s" for n in options.ranks),
        "|",
    )
    print(f"|---|---|---|{'---|' * len(options.ranks)}")
    for name in options.configs:
        config = training(name, *options.overrides)
        taken = plan(config, options.card)
        counted = operations(config, taken)
        clips = config.batch_size * config.optimizer.accumulation_steps
        cells = []
        for ranks in options.ranks:
            sending = sent_bytes(config, config.optimizer.zero_stage, ranks) / (options.bandwidth * 1e9)
            seconds = step_seconds(counted / (rate * 1e12), sending, options.overlapped)
            cells.append(f"{seconds:.3g}, {ranks * clips / seconds:.3g}")
        print(f"| {name} | {taken.name} | {counted / 1e12:.3g} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
