"""A DeepSpeed engine from a small typed configuration, with checkpoints that are complete or absent.

engine = build_engine(module, OptimizerConfig(lr=1e-4), max_steps=10_000, micro_batch_size=8, device=device)
engine.backward(loss)
engine.step()
"""

import logging
import math
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .. import distributed
from ..config import Config
from ..errors import UserError
from ..storage import atomic, sync

logger = logging.getLogger(__name__)

NEWS = 70.0
"""Seconds until a host surely sees what another made: NFS remembers for up to a minute that a path does not exist."""
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

    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    bucket = min(BUCKET, sum(parameter.numel() for parameter in trainable))
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": bucket},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }
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


def save_checkpoint(
    engine: Any,
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    others: Mapping[str, Any] | None = None,
    keep: int = 1,
    milestone_every: int = 0,
) -> None:
    """Write `folder/step_N` (weights, optimiser, schedule and `state`), then drop old ones.

    It is written under another name, flushed to the disk and renamed when complete: a killed process, a dead machine or
    a full disk leaves the previous checkpoint in place.

    Args:
        engine: what to save.
        folder: the run's folder of checkpoints.
        step: its number.
        state: whatever else is needed to continue.
        others: further engines by name, saved in subfolders.
        keep: newest checkpoints that stay.
        milestone_every: checkpoints at multiples of it stay, too; 0 for none.

    Raises:
        UserError: it cannot be written.
    """
    partial, complete = folder / f"step_{step}.partial", folder / f"step_{step}"
    if distributed.rank() == 0:
        for leftover in folder.glob("step_*.partial"):  # what a killed process left takes room that this one needs
            shutil.rmtree(leftover)
    distributed.barrier()
    try:
        place = {"step": step, "world_size": distributed.world_size()}
        engine.save_checkpoint(str(folder), tag=partial.name, client_state={**state, **place}, save_latest=False)
        for name, other in (others or {}).items():
            other.save_checkpoint(str(partial), tag=name, save_latest=False)
        sync(*partial.rglob("*"), partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if distributed.lost_rank(error):
            raise
        raise UserError(
            f"{partial}: the checkpoint cannot be written ({str(error).splitlines()[0]}); make room and give "
            "the same command again, it continues from the last complete one"
        ) from error
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(complete, ignore_errors=True)
        partial.replace(complete)
        sync(folder)
        _drop_old(folder, step, keep, milestone_every)
    distributed.barrier()


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights alone as a torch file of plain tensors; what was there before stays until it is complete.

    Raises:
        UserError: it cannot be written.
    """
    weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    try:
        with atomic(path, durable=True) as partial:
            torch.save(weights, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0]}); make room") from error


def _drop_old(folder: Path, newest: int, keep: int, milestone_every: int) -> None:
    """Delete all but the `keep` newest checkpoints and the milestones."""
    steps = sorted(step for step in complete_steps(folder) if step <= newest)
    for step in steps[:-keep]:
        if not milestone_every or step % milestone_every:
            # No longer complete while it goes.
            shutil.rmtree((folder / f"step_{step}").replace(folder / f"step_{step}.partial"))


def complete_steps(folder: Path) -> list[int]:
    """Steps of which `folder` holds a whole checkpoint."""
    names = [path.name.removeprefix("step_") for path in folder.glob("step_*")]
    return [int(name) for name in names if name.isdigit()]


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Restore the newest complete checkpoint; returns its state, with the `step` it was made at, or None.

    Raises:
        UserError: the ranks do not see the same checkpoints, it was saved by another number of them, or it is damaged.
    """
    shared = _shared(folder)
    step = max(complete_steps(folder), default=0)
    seen = torch.tensor(float(step), dtype=torch.float64, device=engine.device)
    differs = float(distributed.mean_over_ranks(seen)) != step
    if distributed.any_rank(differs or not shared, engine.device):
        raise UserError(f"{folder}: not all hosts see the same folder; put the run on a file system that they share")
    if not step:
        return None
    newest = folder / f"step_{step}"
    ranks = distributed.world_size()
    shares = len(list(newest.glob("*zero_pp_rank_*_optim_states.pt")))
    if shares not in (0, ranks):
        raise UserError(
            f"{newest}: {shares} processes saved it, each its share of the optimiser (zero_stage above 0); "
            f"continue with {shares} processes instead of {ranks}"
        )
    state = _load(engine, newest, newest)
    if state.get("world_size", ranks) != ranks:
        logger.warning("%d processes instead of %d: other batches than before", ranks, state["world_size"])
    logger.info("continuing from %s", newest)
    return state


def _shared(folder: Path) -> bool:
    """Whether this rank sees what the first one writes; every rank must call it.

    Else each host would write its share of a checkpoint to a folder of its own, and none would be complete.
    """
    if distributed.world_size() == 1:
        return True
    mark = folder / "seen_by_all_ranks"
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    distributed.barrier()
    deadline = time.monotonic() + NEWS
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    distributed.barrier()
    if distributed.rank() == 0:
        mark.unlink()
    return seen


def load_other(engine: Any, folder: Path, step: int, name: str) -> None:
    """Restore one of the `others` of `save_checkpoint`.

    Raises:
        UserError: it is damaged.
    """
    checkpoint = folder / f"step_{step}"
    _load(engine, checkpoint / name, checkpoint)


def _load(engine: Any, path: Path, checkpoint: Path) -> dict[str, Any]:
    """Restore an engine from its folder `path`, a part of `checkpoint` or all of it."""
    try:
        found, state = engine.load_checkpoint(str(path.parent), tag=path.name)
        if found is None:
            raise FileNotFoundError("no weights in it")
    except torch.OutOfMemoryError:
        raise
    # A damaged file is almost any error; DeepSpeed asserts that files are there.
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, AssertionError, pickle.UnpicklingError) as error:
        if distributed.lost_rank(error):
            raise
        earlier = [step for step in complete_steps(checkpoint.parent) if f"step_{step}" != checkpoint.name]
        then = f"continues from step {max(earlier)}" if earlier else "begins anew"
        raise UserError(
            f"{path}: cannot be read ({(str(error) or 'files are missing').splitlines()[0]}); if it is damaged, delete "
            f"{checkpoint}, and the run {then}; latest.pth still has the weights, for resume_from under another name"
        ) from error
    return dict(state)
