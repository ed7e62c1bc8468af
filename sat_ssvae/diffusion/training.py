"""Training of the diffusion transformer on encoded latents, the same for every arm of a comparison.

    model = train_dit(DiTTrainConfig(max_steps=1500), LatentSet.load(path), out, seed=0,
                      device=device, on_checkpoint=evaluate)

Everything random is a function of the seed and the step alone: initial weights, the order of the clips, noise
and noise levels. Arms with latents of one shape therefore see equal draws, and a run that was interrupted
continues as if it had not been. Beside the checkpoints `out` gets `loss.csv`, and at the end the weights'
moving average, which `load_dit` reads.
"""

import csv
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from .. import distributed
from ..config import Config, fingerprint, load_config
from ..engine.average import warmed_up_average
from ..engine.optimization import OptimizerConfig, build_engine, load_checkpoint, save_checkpoint
from ..errors import UserError
from ..latents.latent_set import LatentSet
from ..progress import progress_bar
from ..storage import save_tensors, write_text
from .process import DiffusionProcess, FlowMatching
from .transformer import DiT, DiTConfig, build_dit

if TYPE_CHECKING:
    from .text import CaptionStates

logger = logging.getLogger(__name__)

LOSS_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm")
"""Columns of `loss.csv`; steps count from 1, the loss is the mean over the batch of all ranks."""


class DiTTrainConfig(Config):
    """The transformer and its training."""

    patch_size: tuple[int, int, int] = (1, 1, 1)
    """Latent positions that one token covers, (frames, height, width)."""
    width: int = Field(default=192, gt=0)
    """Width of a token."""
    depth: int = Field(default=6, gt=0)
    """Transformer blocks."""
    heads: int = Field(default=3, gt=0)
    """Attention heads; `width` must be a multiple of 16 * heads."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the feed-forward network over `width`."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """What matrix products compute in; bf16 takes 0.4 of the time on a CPU with bfloat16 instructions."""
    diffusion: DiffusionProcess = FlowMatching()
    """Flow matching, or CogVideoX's v-prediction."""
    batch_size: int = Field(default=16, gt=0)
    """Clips per step, over all ranks and accumulated batches."""
    max_steps: int = Field(default=1500, gt=0)
    """Optimiser steps."""
    optimizer: OptimizerConfig = OptimizerConfig(
        lr=2e-3, betas=(0.9, 0.99), warmup_steps=50, schedule="constant", clip_norm=1.0
    )
    """A constant learning rate makes each step of a curve a result by itself; a decay favours the last one.
    2e-3 beat 3e-4, 1e-3 and 4e-3 at this width after 200 steps on latents of real clips."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Most of the moving average of the weights that is kept per step; in the first steps it keeps less."""
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
            latent_channels=latent_shape[0],
            latent_size=latent_shape[1:],
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            precision=self.precision,
            text_dim=text_dim,
            text_length=text_length,
        )


@dataclass(frozen=True)
class Draw:
    """What one step takes at random, for the batch of all ranks."""

    clips: Tensor
    """(b,): which latents."""
    t: Tensor
    """(b,): noise levels in [0, 1]."""
    noise: Tensor
    """(b, c, t, h, w): standard normal."""
    without_text: Tensor
    """(b,) bool: which clips lose their caption."""


def draw(config: DiTTrainConfig, seed: int, step: int, clips: int, latent_shape: tuple[int, int, int, int]) -> Draw:
    """The draws of one step (counted from 0): a function of the arguments alone.

    Clips come in a new order each epoch, every clip once in each.
    """
    batch = config.batch_size
    positions = range(step * batch, (step + 1) * batch)
    epochs = range(positions[0] // clips, positions[-1] // clips + 1)
    order = {epoch: torch.randperm(clips, generator=_generator(seed, 0, epoch)) for epoch in epochs}
    generator = _generator(seed, 1, step)
    return Draw(
        clips=torch.stack([order[position // clips][position % clips] for position in positions]),
        t=config.diffusion.sample_t(batch, generator),
        without_text=torch.rand(batch, generator=generator) < config.text_dropout,
        noise=torch.randn(batch, *latent_shape, generator=generator),
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
    """Train on standardised latents, or continue the training that `out` holds; returns the averaged weights.

    `on_checkpoint(step, model)` is called on every rank after each of `config.evaluation_steps`, with the
    averaged weights in evaluation mode on `device`, and once more for a step whose call did not return.

    Raises:
        UserError: `out` holds another training, the loss is not finite, or sizes do not fit.
    """
    return _Training(config, latents, out, seed=seed, device=device, text=text).run(on_checkpoint)


class _Training:
    """One run: the engine, the averaged weights, and where they are."""

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
        self.data = latents.standardize(latents.latents)
        self.shape = latents.shape
        out.mkdir(parents=True, exist_ok=True)
        distributed.initialize(device)
        shares = distributed.world_size() * config.optimizer.accumulation_steps
        if config.batch_size % shares:
            raise UserError(
                f"batch_size {config.batch_size} is not a multiple of ranks x accumulation_steps = {shares}"
            )
        self.micro_batch = config.batch_size // shares
        model_config = config.model(self.shape, *(text.states.shape[1:] if text is not None else ()))
        module = build_dit(model_config, seed)
        # Before the engine wraps the module: its hooks are not to be copied.
        self.average = AveragedModel(module, device, multi_avg_fn=warmed_up_average(config.ema_decay))
        self.average.requires_grad_(False).eval()
        self.engine = build_engine(
            module,
            config.optimizer,
            max_steps=config.max_steps,
            micro_batch_size=self.micro_batch,
            device=device,
        )
        self.identity = _identity(config, seed, self.data)
        self.step = self._resume()

    def run(self, on_checkpoint: Callable[[int, DiT], None] | None) -> DiT:
        config = self.config
        loss_log = _LossLog(self.out / "loss.csv", self.step) if distributed.rank() == 0 else None
        if on_checkpoint is not None:
            self._evaluate(on_checkpoint)
        with progress_bar(config.max_steps, "training transformer", "step", initial=self.step) as bar:
            while self.step < config.max_steps:
                row = self._train_step()
                if loss_log is not None:
                    loss_log.append(row)
                bar.set_postfix(loss=f"{row[1]:.4f}", refresh=False)
                bar.update()
                evaluate = on_checkpoint is not None and self.step in config.evaluation_steps
                if evaluate or self.step % config.checkpoint_interval == 0 or self.step == config.max_steps:
                    self._save()
                if on_checkpoint is not None and evaluate:
                    self._evaluate(on_checkpoint)
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

    def _train_step(self) -> tuple[int, float, float, float]:
        """One optimiser step; returns a row of `loss.csv`."""
        step_draw = draw(self.config, self.seed, self.step, len(self.data), self.shape)
        learning_rate = self.engine.get_lr()[0]
        total = torch.zeros((), device=self.device)
        parts = self.config.optimizer.accumulation_steps
        for part in range(parts):
            start = (distributed.rank() * parts + part) * self.micro_batch
            loss = self._loss(step_draw, slice(start, start + self.micro_batch))
            self.engine.backward(loss)
            total += loss.detach() / parts
            if part + 1 == parts:
                norm = self._gradient_norm()
                self._check_finite(total + norm)
            self.engine.step()
        self.step += 1
        self.average.update_parameters(self.engine.module)
        return self.step, distributed.mean_over_ranks(total).item(), learning_rate, norm.item()

    def _loss(self, step_draw: Draw, part: slice) -> Tensor:
        clips, t, noise = step_draw.clips[part], step_draw.t[part], step_draw.noise[part]
        condition: tuple[Tensor, ...] = ()
        if self.text is not None:
            dropped = step_draw.without_text[part, None, None]
            condition = (torch.where(dropped, self.text.empty, self.text[clips]).to(self.device),)
        x0, noise, t = (value.to(self.device) for value in (self.data[clips], noise, t))
        return self.config.diffusion.loss(lambda x, t: self.engine(x, t, *condition), x0, noise, t).mean()

    def _gradient_norm(self) -> Tensor:
        """Length of the gradient before clipping."""
        gradients = (parameter.grad for parameter in self.engine.module.parameters())
        return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])

    def _check_finite(self, value: Tensor) -> None:
        """Ends the run on all ranks together, before the weights take harm."""
        if distributed.any_rank(not bool(value.isfinite()), self.device):
            raise UserError(
                f"the transformer's loss or gradient is not finite at step {self.step + 1}; lower the lr "
                f"(optimizer.lr, {self.config.optimizer.lr:g}) and start again in another folder"
            )

    def _evaluate(self, on_checkpoint: Callable[[int, DiT], None]) -> None:
        """Hand out the averaged weights, unless that was done for this step before an interruption."""
        path = self.out / "evaluated.json"
        done: list[int] = json.loads(path.read_text()) if path.exists() else []
        distributed.barrier()  # every rank has read it
        if self.step in done or self.step not in self.config.evaluation_steps:
            return
        on_checkpoint(self.step, self.model)
        distributed.barrier()  # no rank may need the evaluation again
        if distributed.rank() == 0:
            write_text(path, json.dumps([*done, self.step]))
        distributed.barrier()

    def _save(self) -> None:
        state = {"identity": self.identity, "average": self.average.state_dict()}
        save_checkpoint(self.engine, self.out / "checkpoints", self.step, state)

    def _resume(self) -> int:
        """Restore the newest checkpoint, if there is one; returns the steps done."""
        state = load_checkpoint(self.engine, self.out / "checkpoints")
        if state is None:
            return 0
        if state["identity"] != self.identity:
            raise UserError(
                f"{self.out} holds a training with other latents, seed or configuration; "
                "delete it or choose another folder"
            )
        self.average.load_state_dict(state["average"])
        return int(state["step"])


class _LossLog:
    """Append-only CSV of LOSS_COLUMNS; rows past the checkpoint that is continued from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows: Iterable[Sequence[Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                complete = [row for row in csv.reader(file) if len(row) == len(LOSS_COLUMNS)]
            rows = [row for row in complete[1:] if int(row[0]) <= step]
        lines = [",".join(map(str, row)) for row in (LOSS_COLUMNS, *rows)]
        write_text(path, "\n".join(lines) + "\n")

    def append(self, row: Sequence[float]) -> None:
        with self._path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)


def save_dit(model: DiT, folder: Path) -> None:
    """Write `dit.safetensors` and `dit.yaml` (JSON, which is YAML); what has its final name is complete."""
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
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a transformer that dit.yaml describes ({reason}); train it again") from None
    return model.eval()


def _identity(config: DiTTrainConfig, seed: int, data: Tensor) -> str:
    """What must be equal for a training to be continued."""
    irrelevant = {"checkpoint_interval", "evaluation_steps"}
    if config.optimizer.schedule == "constant":
        irrelevant |= {"max_steps"}  # a finished training may go on
    digest = hashlib.sha256(data.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return fingerprint(config.model_dump(mode="json", exclude=irrelevant), seed, list(data.shape), digest)


def _generator(*entropy: int) -> torch.Generator:
    """A CPU generator whose seed mixes all the numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
