"""Training of the diffusion transformer on encoded latents, the same for every arm of a comparison.

    model = train_dit(DiTTrainConfig(max_steps=1500), LatentSet.load(path), out, seed=0,
                      device=device, on_checkpoint=evaluate)

Everything random depends on the seed and the step alone: initial weights, the order of the clips, noise
and noise levels. Arms with latents of one shape therefore see equal draws, and an interrupted run continues
exactly. Beside the checkpoints `out` gets `loss.csv`, and at the end the weights' moving average, which
`load_dit` reads.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .. import distributed
from ..config import fingerprint, load_config
from ..engine.average import Average
from ..engine.log import MetricsLog
from ..engine.optimization import OptimizerConfig, build_engine
from ..engine.run import Run
from ..engine.seeds import generator
from ..errors import UserError, first_line
from ..latents.latent_set import LatentSet
from ..storage import save_tensors, write_text
from .process import DiffusionProcess, FlowMatching
from .transformer import DiT, DiTConfig, DiTSizes, build_dit

if TYPE_CHECKING:
    from .text import CaptionStates

ORDER, NOISE = range(2)
"""What random numbers are for; see `engine/seeds.py`."""
LOSS_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm")
"""Columns of `loss.csv`; steps count from 1, the loss is the mean over the batch of all ranks."""


class DiTTrainConfig(DiTSizes):
    """The transformer and its training."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products compute in; auto is bfloat16 where the device has instructions for it (there it takes 0.4
    of the time on a CPU), and float32 elsewhere."""
    diffusion: DiffusionProcess = FlowMatching()
    """Flow matching, or CogVideoX's v-prediction."""
    batch_size: int = Field(default=16, gt=0)
    """Clips per step, over all ranks and accumulated batches."""
    max_steps: int = Field(default=1500, gt=0)
    """Optimiser steps."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="constant", clip_norm=1.0
    )
    """With a constant learning rate every point of a curve is a result in itself; decay favours the last one.
    2e-3 beat 3e-4, 1e-3 and 4e-3 at this width after 200 steps on latents of real clips."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """EMA decay per step; lower in the first steps."""
    text_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of clips trained with the empty caption, for guidance (CogVideoX: 0.1); needs captions."""
    checkpoint_interval: int = Field(default=250, gt=0)
    """Steps between checkpoints, which is what an interruption costs at most."""
    evaluation_steps: tuple[int, ...] = ()
    """Steps after which the averaged weights are handed to `on_checkpoint`; 0 is before the first step."""

    @model_validator(mode="after")
    def _check(self) -> "DiTTrainConfig":
        if any(not 0 <= step <= self.max_steps for step in self.evaluation_steps):
            raise ValueError(f"evaluation_steps must lie between 0 and max_steps = {self.max_steps}")
        if self.batch_size % self.optimizer.accumulation_steps:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation_steps")
        if self.optimizer.zero_stage:
            raise ValueError("optimizer.zero_stage must be 0: the transformer is small, each rank keeps all of it")
        return self

    def model(self, latent_shape: tuple[int, int, int, int], text_length: int = 0, text_dim: int = 0) -> DiTConfig:
        """The transformer's configuration for latents of one shape (c, t, h, w)."""
        return DiTConfig(
            **self.model_dump(include={*DiTSizes.model_fields, "precision"}),
            latent_channels=latent_shape[0],
            latent_size=latent_shape[1:],
            text_dim=text_dim,
            text_length=text_length,
        )


@dataclass(frozen=True)
class StepDraw:
    """The random numbers of one step, for the batch of all ranks."""

    clips: Tensor
    """(b,): which latents."""
    t: Tensor
    """(b,): noise levels in [0, 1]."""
    noise: Tensor
    """(b, c, t, h, w): standard normal."""
    without_text: Tensor
    """(b,) bool: which clips lose their caption."""


def draw_step(
    config: DiTTrainConfig, seed: int, step: int, clips: int, latent_shape: tuple[int, int, int, int]
) -> StepDraw:
    """The draws of one step (counted from 0): a function of the arguments alone.

    Clips come in a new order each epoch, every clip once in each.
    """
    batch = config.batch_size
    positions = range(step * batch, (step + 1) * batch)
    epochs = range(positions[0] // clips, positions[-1] // clips + 1)
    order = {epoch: torch.randperm(clips, generator=generator(seed, ORDER, epoch)) for epoch in epochs}
    draws = generator(seed, NOISE, step)
    return StepDraw(
        clips=torch.stack([order[position // clips][position % clips] for position in positions]),
        t=config.diffusion.sample_t(batch, draws),
        without_text=torch.rand(batch, generator=draws) < config.text_dropout,
        noise=torch.randn(batch, *latent_shape, generator=draws),
    )


def train_dit(
    config: DiTTrainConfig,
    latents: LatentSet,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    on_checkpoint: Callable[[int, DiT], None] | None = None,
    text: "CaptionStates | None" = None,
) -> DiT:
    """Train on standardised latents, or continue the training in `out`; returns the averaged weights.

    `on_checkpoint(step, model)` is called on every rank after each of `config.evaluation_steps`, with the
    averaged weights in evaluation mode on `device`, and once more for a step whose call did not return.

    Raises:
        UserError: `out` has another run, the loss is not finite, or sizes do not fit.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    return TransformerTrainer(config, latents, out, seed=seed, device=device, text=text).train(on_checkpoint)


class TransformerTrainer:
    """One run: the latents and the transformer that is trained on them."""

    def __init__(
        self,
        config: DiTTrainConfig,
        latents: LatentSet,
        out: Path,
        *,
        seed: int,
        device: torch.device,
        text: "CaptionStates | None",
    ) -> None:
        self.config, self.out, self.seed, self.device, self.text = config, out, seed, device, text
        self.data = latents.statistics.standardize(latents.latents)
        self.shape = latents.shape
        out.mkdir(parents=True, exist_ok=True)
        distributed.initialize(device)
        self.micro_batch = _micro_batch(config)
        model_config = config.model(self.shape, *(text.states.shape[1:] if text is not None else ()))
        module = build_dit(model_config, seed)
        # Before the engine wraps the module, so that its hooks are not copied.
        self.average = Average(module, config.ema_decay, device)
        sizes = {"max_steps": config.max_steps, "micro_batch_size": self.micro_batch}
        engine = build_engine(module, config.optimizer, **sizes, device=device)
        self.run = Run(
            out / "checkpoints",
            {"transformer": engine},
            config.max_steps,
            clip_norm=config.optimizer.clip_norm,
            average=self.average,
        )
        self.identity = _identity(config, seed, self.data)
        self._resume()

    def train(self, on_checkpoint: Callable[[int, DiT], None] | None) -> DiT:
        """Take the remaining steps; returns the averaged weights."""
        self.on_checkpoint = on_checkpoint
        self.log = MetricsLog(self.out / "loss.csv", LOSS_COLUMNS, self.run.step)
        self.run.loop("training transformer", self._take_step, save=self._save, due=self._checkpoint_due)
        self._evaluate()
        if distributed.rank() == 0:
            save_dit(self.model, self.out)
        distributed.barrier()
        return self.model

    @property
    def model(self) -> DiT:
        """The averaged weights."""
        module = self.average.module
        assert isinstance(module, DiT)
        return module

    def _take_step(self) -> Mapping[str, float]:
        """Evaluate after the last step, if that is due, and take the next one; returns numbers for the progress bar."""
        self._evaluate()
        step_draw = draw_step(self.config, self.seed, self.run.step, len(self.data), self.shape)
        learning_rate = self.run.engines["transformer"].get_lr()[0]
        parts = self.config.optimizer.accumulation_steps
        losses = []
        for part in range(parts):
            start = (distributed.rank() * parts + part) * self.micro_batch
            loss = self._loss(step_draw, slice(start, start + self.micro_batch))
            self.run.backward("transformer", loss, last=part + 1 == parts)
            losses.append(loss.detach())
        outcome = self.run.take_step(losses, {"loss": torch.stack(losses).mean()})
        step = self.run.step + 1
        if not outcome.finite:
            raise UserError(
                f"the transformer's loss or gradient is not finite at step {step}; lower the lr "
                f"(optimizer.lr, {self.config.optimizer.lr:g}) and start again in another folder"
            )
        row = {"loss": outcome.measured["loss"], "learning_rate": learning_rate, "gradient_norm": outcome.norms[0]}
        self.log.write(step, row)
        return outcome.measured

    def _loss(self, step_draw: StepDraw, part: slice) -> Tensor:
        clips, t, noise = step_draw.clips[part], step_draw.t[part], step_draw.noise[part]
        states: Tensor | None = None
        if self.text is not None:
            dropped = step_draw.without_text[part, None, None]
            states = torch.where(dropped, self.text.empty, self.text[clips]).to(self.device, non_blocking=True)
        x0, noise, t = (value.to(self.device, non_blocking=True) for value in (self.data[clips], noise, t))
        engine = self.run.engines["transformer"]
        return self.config.diffusion.loss(lambda x, t: engine(x, t, states), x0, noise, t).mean()

    def _checkpoint_due(self, step: int) -> bool:
        evaluate = self.on_checkpoint is not None and step in self.config.evaluation_steps
        return evaluate or step % self.config.checkpoint_interval == 0 or step == self.config.max_steps

    def _evaluate(self) -> None:
        """Call `on_checkpoint` if it is due and was not called before an interruption."""
        step = self.run.step
        if self.on_checkpoint is None or step not in self.config.evaluation_steps:
            return
        path = self.out / "evaluated.json"
        done: list[int] = json.loads(path.read_text()) if path.exists() else []
        distributed.barrier()  # every rank has read it
        if step in done:
            return
        self.on_checkpoint(step, self.model)
        distributed.barrier()  # no rank may need the evaluation again
        if distributed.rank() == 0:
            write_text(path, json.dumps([*done, step]))
        distributed.barrier()

    def _save(self) -> None:
        self.run.save(identity=self.identity)

    def _resume(self) -> None:
        state = self.run.resume()
        if state is not None and state["identity"] != self.identity:
            raise UserError(
                f"{self.out} holds a run with other latents, seed or configuration; delete it or choose another folder"
            )


def _micro_batch(config: DiTTrainConfig) -> int:
    """Clips of one rank in one forward pass."""
    shares = distributed.world_size() * config.optimizer.accumulation_steps
    if config.batch_size % shares:
        raise UserError(f"batch_size {config.batch_size} is not a multiple of ranks x accumulation_steps = {shares}")
    return config.batch_size // shares


def save_dit(model: DiT, folder: Path) -> None:
    """Write `dit.safetensors` and `dit.yaml` (JSON, which is YAML); a file with its final name is complete."""
    write_text(folder / "dit.yaml", model.config.model_dump_json(indent=2) + "\n")
    save_tensors(folder / "dit.safetensors", model.state_dict())


def load_dit(folder: Path) -> DiT:
    """Read what `save_dit` wrote; float32 on the CPU, in evaluation mode.

    Raises:
        UserError: the folder does not hold a transformer, or a damaged one.
    """
    model = build_dit(load_config(DiTConfig, folder / "dit.yaml"), seed=0)
    path = folder / "dit.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a transformer that dit.yaml describes ({first_line(error)}); train it again"
        ) from None
    return model.eval()


def _identity(config: DiTTrainConfig, seed: int, data: Tensor) -> str:
    """A fingerprint of everything that must be equal to continue a run."""
    irrelevant = {"checkpoint_interval", "evaluation_steps"}
    if config.optimizer.schedule == "constant":
        irrelevant |= {"max_steps"}  # a finished training may be continued
    digest = hashlib.sha256(data.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return fingerprint(config.model_dump(mode="json", exclude=irrelevant), seed, list(data.shape), digest)
