"""A DeepSpeed engine from a small typed configuration.

engine = build_engine(module, OptimizerConfig(lr=1e-4), max_steps=10_000, micro_batch_size=8, device=device)
engine.backward(loss)
engine.step()
"""

import math
from collections.abc import Callable
from inspect import unwrap
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .. import distributed
from ..config import Config

BUCKET = 25_000_000
"""Gradients that ZeRO sums over the ranks at a time. DeepSpeed's own number takes 2 GB of memory an engine."""


class OptimizerConfig(Config):
    """AdamW, its schedule, and what DeepSpeed does around it."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of Adam's two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly to its peak, from `min_lr` or, where that is 0, from one step's
    share."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After warm-up: stay at the peak, or fall to `min_lr` along a half cosine."""
    decay_steps: int | None = Field(default=None, gt=0)
    """The step at which the cosine reaches `min_lr`, warm-up included; empty: the run's last one."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the start of warm-up and at the end of the cosine."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Largest gradient norm; longer gradients are scaled down. 0 turns clipping off."""
    accumulation_steps: int = Field(default=1, gt=0)
    """Batches whose gradients are averaged for one optimiser step."""
    zero_stage: Literal[0, 1, 2] = 0
    """DeepSpeed ZeRO: shard nothing, the optimiser state, or gradients too, over the ranks. Without effect on one."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW for training without `torch.compile`; the same steps and the same state.

    torch wraps these methods for its compiler, which they import even where nothing is compiled: a quarter of the time
    that a run takes to start.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def build_engine(
    module: nn.Module, config: OptimizerConfig, *, max_steps: int, micro_batch_size: int, device: torch.device
) -> Any:
    """Wrap `module` in a DeepSpeed engine that optimises its trainable parameters in float32.

    Mixed precision is left to the module (autocast inside its forward), so that each part of a loss can have the
    precision it needs. `Run.take_step` clips the gradients, since it knows their norm.
    """
    distributed.initialize(device)
    import deepspeed

    module = module.to(device)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    settings = _deepspeed_settings(config, micro_batch_size, sum(parameter.numel() for parameter in trainable))
    # ZeRO warns of classes that it does not know.
    optimizer_class = torch.optim.AdamW if settings["zero_optimization"]["stage"] else AdamW
    optimizer = optimizer_class(
        trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=lambda wrapped: LambdaLR(wrapped, lr_multiplier(config, max_steps)),
        config=settings,
    )
    if distributed.world_size() == 1:
        engine.enable_backward_allreduce = False  # a sum over one rank is two copies of every gradient
    return engine


def _deepspeed_settings(config: OptimizerConfig, micro_batch_size: int, parameters: int) -> dict[str, Any]:
    stage = config.zero_stage if distributed.world_size() > 1 else 0  # alone, ZeRO would only add copies
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(BUCKET, parameters)}
    if stage:
        zero["compute_grad_norm"] = False  # otherwise every step would wait for the device
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }


def lr_multiplier(config: OptimizerConfig, max_steps: int) -> Callable[[int], float]:
    """The learning rate as a share of its peak, by step (counted from 0)."""
    lowest = config.min_lr / config.lr
    start = lowest or 1 / (config.warmup_steps + 1)  # a first step with a learning rate of 0 would do nothing
    horizon = config.decay_steps or max_steps

    def multiplier(step: int) -> float:
        if step < config.warmup_steps:
            return start + (1 - start) * step / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = (step - config.warmup_steps) / max(horizon - config.warmup_steps, 1)
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return multiplier
