"""Steps and clips a second of a training on N devices, from counted operations and bytes.

    python scripts/estimate_scaling.py --tflops 300 --bandwidth 100    # a GPU's sustained rate, its network's GB/s
    python scripts/estimate_scaling.py --bandwidth 100                 # the rate measured on this machine's device

    step = operations / rate + bytes / bandwidth        (--overlapped: the larger of the two)

Operations: of the forward and backward pass of one step of a packaged configuration, recomputation, perceptual network
and discriminators included, counted by torch.utils.flop_counter on fake tensors, which compute shapes and nothing else.
Only matrix products and convolutions count; a measured rate pays for the rest. Bytes: what a rank sends in a ring, as
DeepSpeed distributes: gradients are summed (2 (N - 1) / N of their size), and ZeRO 1 and 2 gather the weights that
each rank stepped ((N - 1) / N of theirs). Nothing overlaps in DeepSpeed's ZeRO 0 to 2 unless it is told to. Not in it:
Adam itself, and waiting for data. `scripts/check_scaling.py` holds it against the trainer.
"""

import argparse
import time
from typing import Any

import torch
from _bench import machine
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sat_ssvae.config import find_config, load_config, packaged
from sat_ssvae.distributed import default_device
from sat_ssvae.training.discriminator import Discriminator, critic_loss, generator_loss
from sat_ssvae.training.losses import Objective
from sat_ssvae.training.objective_config import without_encoder_terms
from sat_ssvae.training.settings import TrainConfig
from sat_ssvae.vae.autoencoder import SSVAE

CONFIGS = ("article_256p", "article_512p", "article_1080p", "published_256p")


def training(name: str, *overrides: str) -> TrainConfig:
    """A packaged configuration, as if its paths had been given."""
    path = find_config(packaged(f"{name}.yaml"))
    places = ["data.path=SHARDS", "resume_from=WEIGHTS"]
    if name.startswith("published"):  # videos alone, and the perceptual network of the same size that is at hand
        places += ["data.sources=[]", "reconstruction.perceptual=st-lpips-vgg"]
    return load_config(TrainConfig, path, [*places, *overrides])


def build(config: TrainConfig) -> tuple[Objective, Discriminator | None]:
    """What a step of it computes with, after the discriminators joined."""
    vae = SSVAE(config.model)
    vae.encoder.requires_grad_(not config.freeze_encoder)
    vae.checkpoint_activations(True)
    objective = Objective(vae, without_encoder_terms(config) if config.freeze_encoder else config)
    critic = Discriminator(config.adversarial, config.precision) if config.adversarial.weight else None
    return objective, critic


def step(objective: Objective, critic: Discriminator | None, video: torch.Tensor, weight: float) -> None:
    """The forward and backward passes of one step of one rank."""
    generator = torch.Generator().manual_seed(0)
    if critic is None:
        objective(video, generator).total.backward()
        return
    critic.requires_grad_(False)
    objective(video, generator, critic, weight).total.backward()
    critic.requires_grad_(True)
    assert objective.reconstruction is not None
    critic_loss(critic(video), critic(objective.reconstruction)).backward()


def shape(config: TrainConfig) -> tuple[int, ...]:
    """`B C T H W` of a batch of one rank, of the first size that there is."""
    return (config.batch_size, config.model.in_channels, config.data.num_frames, *config.data.sizes[0])


def operations(config: TrainConfig) -> float:
    """Operations (two a multiply-add) of one step of one rank, all its micro-batches."""

    def attention(query: Any, key: Any, value: Any, *_args: Any, **_options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_args: Any, **_options: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        objective, critic = build(config)
        video = torch.empty(shape(config))
        with torch.autocast(
            "cpu", torch.bfloat16
        ):  # no path that only float32 on a CPU takes, and the counter knows all
            rebuilt = objective.vae.decode(objective.vae.encode(video).mean)
        # The losses themselves look at numbers, which fake tensors do not have; their cost is nothing beside these.
        loss = rebuilt.float().mean()
        if objective.perceptual is not None:
            loss = (
                loss + objective.perceptual(*(x.transpose(1, 2).flatten(0, 1) for x in (rebuilt.float(), video))).mean()
            )
        if critic is not None:
            loss = loss + generator_loss(critic.requires_grad_(False)(rebuilt))
        loss.backward()
        if critic is not None:
            critic.requires_grad_(True)
            critic_loss(critic(video), critic(rebuilt.detach())).backward()
    return float(counter.get_total_flops() * config.optimizer.accumulation_steps)


def measured_rate(config: TrainConfig, device: torch.device, rounds: int = 10) -> float:
    """Operations a second that this device reaches in such a step: in the fastest of some."""
    torch.manual_seed(0)
    objective, critic = build(config)
    objective, critic = objective.to(device), None if critic is None else critic.to(device)
    video = torch.rand(shape(config), device=device) * 2 - 1
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        objective.zero_grad()
        step(objective, critic, video, config.adversarial.weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return operations(config) / config.optimizer.accumulation_steps / min(seconds[1:])


def trained_parameters(config: TrainConfig) -> list[int]:
    """Parameters that the autoencoder's engine steps, and those of the discriminators' where there are some."""
    with FakeTensorMode():
        modules = [module for module in build(config) if module is not None]
    return [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in modules]


def sent_bytes(config: TrainConfig, stage: int, ranks: int) -> float:
    """Bytes that a rank sends in a step: float32 gradients, and in ZeRO 1 and 2 weights."""
    rounds = 2 if stage == 0 else 3
    return rounds * (ranks - 1) / ranks * 4 * sum(trained_parameters(config))


def step_seconds(computing: float, sending: float, overlapped: bool = False) -> float:
    """Seconds of a step, of which so many go into computing and into sending."""
    return max(computing, sending) if overlapped else computing + sending


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, help="sustained 10^12 operations a second; without it, measured here")
    parser.add_argument("--bandwidth", type=float, required=True, help="10^9 bytes a second that a rank can send")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--overlapped", action="store_true", help="communication while gradients are computed")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="packaged configurations (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over theirs")
    options = parser.parse_intermixed_args()
    device = default_device()
    rate = options.tflops
    if rate is None:
        rate = measured_rate(training(options.configs[0], "batch_size=1", *options.overrides), device) / 1e12
        print(f"{rate:.3f} TFLOP/s measured: {machine(device)}")
    print("| configuration | TFLOP a step and rank |", " | ".join(f"{n} ranks: s, clips/s" for n in options.ranks), "|")
    print(f"|---|---|{'---|' * len(options.ranks)}")
    for name in options.configs:
        config = training(name, *options.overrides)
        counted = operations(config)
        clips = config.batch_size * config.optimizer.accumulation_steps
        cells = []
        for ranks in options.ranks:
            sending = sent_bytes(config, config.optimizer.zero_stage, ranks) / (options.bandwidth * 1e9)
            seconds = step_seconds(counted / (rate * 1e12), sending, options.overlapped)
            cells.append(f"{seconds:.3g}, {ranks * clips / seconds:.3g}")
        print(f"| {name} | {counted / 1e12:.3g} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
