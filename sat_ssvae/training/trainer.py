"""The training loop of the autoencoder.

    sat-ssvae train --config ssvae_demo.yaml --name my_vae data.path=shards/train lcr_weight=0.05

A run is a folder: config.json, train.csv (one row a logged step), checkpoints/ while it runs, vae/ (see
`vae/checkpoint.py`) when it is done. Started again, it continues where it was and takes the same steps that it
would have taken without the interruption: batches, posterior samples and masks are functions of seed, rank and step.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from .. import distributed
from ..data.shards import DataConfig, training_batches
from ..data.skips import SkipLog
from ..errors import UserError
from ..progress import progress_bar
from ..vae.autoencoder import SSVAE, SSVAEConfig
from ..vae.checkpoint import save_pretrained
from .engine import OptimizerConfig, build_engine, load_checkpoint, save_checkpoint
from .log import MetricsLog
from .losses import Losses, Objective, ObjectiveConfig

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 10
"""Steps in a row without a finite loss after which training stops."""


class TrainConfig(ObjectiveConfig):
    """One run of `sat-ssvae train`: the objective's settings and these."""

    batch_size: int = Field(default=8, gt=0)
    """Videos per step and process."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    max_steps: int = Field(default=150_000, gt=0)
    """Optimiser steps."""
    model: SSVAEConfig = SSVAEConfig()
    """Sizes of the network; `channels` at the top level is short for `model.latent_channels`."""
    data: DataConfig
    """The clips; `resolution` at the top level is short for `data.resolution`."""

    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=1000)
    """AdamW and DeepSpeed; its learning rate is `lr` above."""
    seed: int = Field(default=0, ge=0)
    """Initial weights, order of the clips, posterior samples and masks."""
    log_every: int = Field(default=50, gt=0)
    """Steps between rows of train.csv."""
    checkpoint_every: int = Field(default=1000, gt=0)
    """Steps between checkpoints."""

    @model_validator(mode="before")
    @classmethod
    def _expand_short_names(cls, values: Any) -> Any:
        """Put `channels` and `resolution` where they belong."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        places = {
            "channels": ("model", "latent_channels"),
            "resolution": ("data", "resolution"),
        }
        for short, (section, name) in places.items():
            if short in values:
                value, inner = values.pop(short), dict(values.get(section) or {})
                if inner.setdefault(name, value) != value:
                    raise ValueError(f"`{short}` and `{section}.{name}` differ; give one of them")
                values[section] = inner
        return values

    @model_validator(mode="after")
    def _values_fit(self) -> "TrainConfig":
        if "lr" in self.optimizer.model_fields_set and self.optimizer.lr != self.lr:
            raise ValueError("`lr` and `optimizer.lr` differ; give `lr` alone")
        return self


def train(config: TrainConfig, output: Path, device: torch.device) -> Path:
    """Train to `config.max_steps` and return the folder of the finished autoencoder.

    Args:
        config: the run.
        output: the run's folder; a run that was interrupted in it is continued.
        device: where to train; with a launcher, this rank's device.

    Raises:
        UserError: unusable data, a folder that holds another run, or a loss that stays infinite or NaN.
    """
    finished = output / "vae"
    _claim_folder(config, output)
    if (output / "done").exists():
        logger.info("%s is finished", output)
        return finished
    torch.manual_seed(config.seed)
    objective = Objective(SSVAE(config.model), config)
    optimizer = config.optimizer.model_copy(update={"lr": config.lr})
    engine = build_engine(
        objective, optimizer, max_steps=config.max_steps, micro_batch_size=config.batch_size, device=device
    )
    state = load_checkpoint(engine, output / "checkpoints") or {"step": 0}
    _run(config, engine, output, int(state["step"]), device)
    if distributed.rank() == 0:
        save_pretrained(objective.vae, finished)
        (output / "done").touch()
    distributed.barrier()
    return finished


def _run(config: TrainConfig, engine: Any, output: Path, start: int, device: torch.device) -> None:
    rank, world = distributed.rank(), distributed.world_size()
    accumulation = config.optimizer.accumulation_steps
    skips = SkipLog(output / "skipped.jsonl")
    batches = training_batches(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world,
        start_batch=start * accumulation,
        skips=skips,
    )
    log = MetricsLog(output / "train.csv", ["step", "lr", *Losses._fields, "lcr_weight"], start)
    bar = progress_bar(config.max_steps, f"training {output.name}", "step", initial=start)
    skipped_in_a_row = 0
    engine.train()
    with bar, log:
        for step in range(start, config.max_steps):
            finite = True
            for micro in range(accumulation):
                video = next(batches).video.to(device)
                generator = torch.Generator().manual_seed(_step_seed(config.seed, rank, step, micro))
                losses = engine(video, generator)
                finite = finite and not distributed.any_rank(not bool(losses.total.isfinite()), device)
                if finite:
                    engine.backward(losses.total)
                    engine.step()
            skipped_in_a_row = 0 if finite else _count_skip(engine, skipped_in_a_row, step)
            if (step + 1) % config.log_every == 0 or step + 1 == config.max_steps:
                row = _log_row(engine, losses)
                log.write(step + 1, row)
                bar.set_postfix(loss=f"{row['total']:.4g}", error=f"{row['error']:.4f}")
            bar.update()
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.max_steps:
                save_checkpoint(engine, output / "checkpoints", step + 1, {})


def _log_row(engine: Any, losses: Losses) -> dict[str, float]:
    """Means over ranks, LCR entering the total with the weight that it really had."""
    objective: Objective = engine.module
    weight = objective.applied_lcr_weight
    config = objective.config
    total = losses.total.detach()
    if config.lcr_weight and config.lcr.weighting == "gradient":
        total = total + (weight - 1) * losses.lcr
    values = torch.stack([total, *losses[1:], weight])
    values = distributed.mean_over_ranks(values)
    names = [*Losses._fields, "lcr_weight"]
    return {"lr": engine.get_lr()[0], **dict(zip(names, values.tolist(), strict=True))}


def _count_skip(engine: Any, in_a_row: int, step: int) -> int:
    """Note a step that was not taken because a loss was not finite on some rank; stop after too many."""
    engine.zero_grad()
    logger.warning("step %d skipped: the loss is infinite or NaN", step + 1)
    if in_a_row + 1 >= MAX_SKIPPED_STEPS:
        raise UserError(
            f"{MAX_SKIPPED_STEPS} steps in a row without a finite loss, the last one {step + 1}: lower lr (to 5e-5) "
            "and batch_size (to 4), set optimizer.clip_norm=1, and look for broken or black samples in the data"
        )
    return in_a_row + 1


def _step_seed(seed: int, rank: int, step: int, micro: int) -> int:
    """A seed of its own for each rank and micro-batch, so that an interrupted run needs no generator state.

    Python hashes integers alike in every process.
    """
    return hash((seed, rank, step, micro)) % 2**63


def _claim_folder(config: TrainConfig, output: Path) -> None:
    """Write the configuration beside the run; refuse to continue a run that was configured differently."""
    if distributed.rank() != 0:  # another rank could see the file half written
        return
    path = output / "config.json"
    wanted = json.dumps(config.model_dump(mode="json"), indent=1)
    if path.exists():
        if path.read_text(encoding="utf-8") != wanted:
            raise UserError(f"{output} holds a run with another configuration; choose another name or delete it")
    else:
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted, encoding="utf-8")
