"""A DeepSpeed engine from a small typed configuration, with checkpoints that are complete or absent.

engine = build_engine(module, OptimizerConfig(lr=1e-4), max_steps=10_000, micro_batch_size=8, device=device)
engine.backward(loss)
engine.step()
"""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .. import distributed
from ..config import Config
from ..errors import UserError

logger = logging.getLogger(__name__)


class OptimizerConfig(Config):
    """AdamW, its schedule, and what DeepSpeed does around it."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of Adam's two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0 to its peak."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After warm-up: stay at the peak, or fall to 0 at the last step along a half cosine."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Largest gradient norm; longer gradients are scaled down. 0 turns clipping off."""
    accumulation_steps: int = Field(default=1, gt=0)
    """Batches whose gradients are averaged for one optimiser step."""
    zero_stage: Literal[0, 1, 2] = 0
    """DeepSpeed ZeRO: shard nothing, the optimiser state, or gradients too, over the ranks."""


def build_engine(
    module: nn.Module,
    config: OptimizerConfig,
    *,
    max_steps: int,
    micro_batch_size: int,
    device: torch.device,
) -> Any:
    """Wrap `module` in a DeepSpeed engine that optimises its trainable parameters in float32.

    Mixed precision is the module's own business (autocast inside its forward), so that each part of a loss can have
    the precision it needs.
    """
    distributed.initialize(device)
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=module.to(device),
        optimizer=optimizer,
        lr_scheduler=lambda wrapped: LambdaLR(wrapped, lr_multiplier(config, max_steps)),
        config=settings,
    )
    return engine


def lr_multiplier(config: OptimizerConfig, max_steps: int) -> Callable[[int], float]:
    """The learning rate as a share of its peak, by step (counted from 0)."""

    def multiplier(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        if config.schedule == "constant":
            return 1.0
        progress = (step - config.warmup_steps) / max(max_steps - config.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return multiplier


def save_checkpoint(engine: Any, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `folder/step_N` (weights, optimiser, schedule and `state`), then drop the older ones.

    It is written under another name and renamed when complete: a killed process or a full disk leaves the previous
    checkpoint in place.

    Raises:
        UserError: it cannot be written.
    """
    partial, complete = f"step_{step}.partial", folder / f"step_{step}"
    if distributed.rank() == 0:
        shutil.rmtree(folder / partial, ignore_errors=True)
    distributed.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=partial, client_state={**state, "step": step}, save_latest=False)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(
            f"{folder / partial}: the checkpoint cannot be written ({str(error).splitlines()[0]}); make room and give "
            "the same command again, it continues from the last complete one"
        ) from error
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(complete, ignore_errors=True)
        (folder / partial).replace(complete)
        for other in folder.glob("step_*"):
            if other != complete:
                shutil.rmtree(other)
    distributed.barrier()


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Restore the newest complete checkpoint; returns its state, with the `step` it was made at, or None."""
    complete = [path for path in folder.glob("step_*") if path.suffix != ".partial"]
    if not complete:
        return None
    newest = max(complete, key=lambda path: int(path.name.removeprefix("step_")))
    path, state = engine.load_checkpoint(str(folder), tag=newest.name)
    if path is None:
        raise RuntimeError(f"{newest}: DeepSpeed could not load its own checkpoint")
    logger.info("continuing from %s", newest)
    return dict(state)
