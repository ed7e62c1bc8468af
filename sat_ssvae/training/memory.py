"""How much memory a training step needs, and how to take it so that it fits.

    for plan in PLANS:
        print(plan.name, step_memory(config, plan).peak / GIB)

The step itself runs, on fake tensors (see `engine/memory_tracker.py`); the optimiser's state is calculated as DeepSpeed
allocates it. Not included: the CUDA context, workspaces of cuDNN and fragmentation, for which `RESERVE` is left free.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..engine.memory_tracker import MemoryTracker
from ..engine.optimization import BUCKET
from ..vae.autoencoder import SSVAE
from .discriminator import Discriminator, critic_step
from .losses import Objective
from .objective_config import without_encoder_terms
from .settings import TrainConfig

GIB = 2**30
RESERVE = 2 * GIB
"""Memory that the estimate leaves free on a GPU."""


_BYTES_PER_ELEMENT = 400
"""More than a step keeps for each element of the network's widest activations, float32 ones of all layers."""


class StepPlan(NamedTuple):
    """How a step trades time for memory."""

    name: str
    sample_by_sample: bool
    """See `Objective.sample_by_sample`."""
    checkpointed: bool
    """See `SSVAE.checkpoint_activations`."""

    def apply(self, objective: Objective) -> None:
        """Make an objective take its steps in this way."""
        objective.sample_by_sample = self.sample_by_sample
        objective.vae.checkpoint_activations(self.checkpointed)


PLANS = (
    StepPlan("the whole batch at once", sample_by_sample=False, checkpointed=False),
    StepPlan("sample by sample", sample_by_sample=True, checkpointed=False),
    StepPlan("the whole batch, checkpointed", sample_by_sample=False, checkpointed=True),
    StepPlan("sample by sample, checkpointed", sample_by_sample=True, checkpointed=True),
)
"""From the fastest to the smallest."""


class StepMemory(NamedTuple):
    """Bytes at the peak of a step, by use."""

    weights: int
    """Of autoencoder, perceptual network, discriminators and moving average."""
    gradients: int
    """Of everything that is trained."""
    optimizer: int
    """Adam's moments, and what ZeRO keeps: its copy of the weights, and a buffer that gradients are summed in."""
    activations: int
    """The rest at the peak: the batch, activations, converted weights, gradients on their way."""

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(self)


def step_memory(config: TrainConfig, plan: StepPlan, batch_size: int | None = None, ranks: int = 1) -> StepMemory:
    """The memory of one step of a run, with its discriminators if it has any, at its largest size of clips.

    `batch_size` takes the place of the run's. `ranks`: processes that share the optimiser's state by ZeRO.
    """
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker() as memory:
        objective, critic = build_step(config, plan)
        modules: list[nn.Module] = [objective] if critic is None else [objective, critic]
        weights = memory.live
        take_step(config, objective, critic, torch.empty(largest_batch(config, batch_size)))
    trained = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in modules]
    gradients = sum(p.grad.nbytes for module in modules for p in module.parameters() if p.grad is not None)
    optimizer = sum(_optimizer_bytes(count, config.optimizer.zero_stage, ranks) for count in trained)
    average = sum(p.nbytes for p in objective.vae.parameters()) if config.ema_decay else 0
    # Between the backward pass and the optimiser's step, several ranks have the gradients twice.
    working = max(memory.peak - weights, min(ranks, 2) * gradients) - gradients
    return StepMemory(weights + average, gradients, optimizer, working)


def build_step(config: TrainConfig, plan: StepPlan) -> tuple[Objective, Discriminator | None]:
    """New networks of a run, including the discriminators, that take their steps by a plan."""
    vae = SSVAE(config.model).for_training()
    vae.encoder.requires_grad_(not config.freeze_encoder)
    objective = Objective(vae, without_encoder_terms(config) if config.freeze_encoder else config)
    plan.apply(objective)
    critic = Discriminator(config.adversarial, config.precision) if config.adversarial.weight else None
    return objective, critic


def take_step(config: TrainConfig, objective: Objective, critic: Discriminator | None, video: Tensor) -> None:
    """The forward and backward passes of a step with one batch, `B C T H W`, all networks at once."""
    objective(video, torch.Generator().manual_seed(0), critic, config.adversarial.weight).total.backward()
    if critic is not None and objective.reconstruction is not None:
        critic_step(critic, video, objective.reconstruction).backward()


def largest_batch(config: TrainConfig, batch_size: int | None = None) -> tuple[int, ...]:
    """`B C T H W` of the run's batch with the most pixels."""
    streams = [stream.config for stream in config.data.streams()]
    shapes = [(stream.num_frames, *size) for stream in streams for size in stream.sizes]
    frames, height, width = max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2])
    return batch_size or config.batch_size, config.model.in_channels, frames, height, width


def _optimizer_bytes(trained: int, stage: int, ranks: int) -> int:
    """Bytes beside weights and gradients that a DeepSpeed engine holds for its trained parameters on one rank."""
    if stage == 0 or ranks == 1:
        return 8 * trained
    return 12 * trained // ranks + 4 * min(BUCKET, trained)


class Choice(NamedTuple):
    """The plan of a run, the memory it needs, and the largest batch that would fit."""

    plan: StepPlan
    memory: StepMemory
    largest_batch: int


def choose_plan(config: TrainConfig, available: int, ranks: int = 1) -> Choice:
    """The plan that `config.memory` asks for; for `auto` the fastest whose step fits, else the smallest.

    Memory is assumed to grow linearly with the batch, from the second sample on.

    `available`: bytes that a step may need; `ranks`: see `step_memory`.
    """
    plans = {"auto": PLANS, "fast": PLANS[:1], "small": PLANS[-1:]}[config.memory]

    @functools.cache  # a step on fake tensors takes seconds
    def measured(plan: StepPlan, clips: int) -> StepMemory:
        return step_memory(config, plan, clips, ranks)

    def growth(plan: StepPlan) -> StepMemory:  # the second sample alone finds gradients of the first
        return StepMemory(*(b - a for a, b in zip(measured(plan, 2), measured(plan, 3), strict=True)))

    def needed(plan: StepPlan) -> StepMemory:
        if config.batch_size == 1:
            return measured(plan, 1)
        pairs = zip(measured(plan, 2), growth(plan), strict=True)
        return StepMemory(*(two + (config.batch_size - 2) * more for two, more in pairs))

    def fits(plan: StepPlan) -> bool:
        few = measured(plan, min(config.batch_size, 2))  # already too much for most plans that do not fit
        return few.peak <= available and needed(plan).peak <= available

    plan = next((plan for plan in plans[:-1] if fits(plan)), plans[-1])
    if measured(plan, 2).peak <= available:
        largest = (available - measured(plan, 2).peak) // max(growth(plan).peak, 1) + 2
    else:
        largest = int(measured(plan, 1).peak <= available)
    return Choice(plan, needed(plan), largest)


def is_small(config: TrainConfig, available: int) -> bool:
    """Whether a step certainly fits, by a generous bound, so that measuring it, which takes seconds, can be skipped."""
    batch, _, frames, height, width = largest_batch(config)
    channels = config.model.base_channels * config.model.channel_multipliers[0]
    return batch * frames * height * width * channels * _BYTES_PER_ELEMENT < available


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, or of the machine's on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_one_line(config: TrainConfig, choice: Choice, device: torch.device) -> str:
    """One line for the start of a run."""
    total = device_memory(device)
    text = (
        f"memory: a step needs about {choice.memory.peak / GIB:.1f} GiB ({choice.plan.name}) of {total / GIB:.1f} GiB"
    )
    return f"{text}; the largest batch that fits has {choice.largest_batch} clips, configured are {config.batch_size}"


def inference_memory(run: Callable[[SSVAE], Tensor], vae: SSVAE) -> int:
    """Bytes at the peak of `run(vae)` without gradients, the weights included; inside a `FakeTensorMode`."""
    with MemoryTracker() as memory, torch.inference_mode(False), torch.no_grad():
        for parameter in vae.parameters():
            memory.follow(parameter)
        run(vae)
    return memory.peak
