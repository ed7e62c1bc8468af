"""The training loop of the autoencoder.

    sat-ssvae train --config ssvae_demo.yaml --name my_vae data.path=shards/train lcr_weight=0.05

A step: encode a batch of videos to posteriors, sample latents, hide a part of them (LMR, `spectral/masking.py`),
decode, and lower the reconstruction error, the KL divergence and the lack of local correlation of the posteriors' means
(LCR, `spectral/correlation.py`); `losses.py` adds these up. Later discriminators may join (`discriminator.py`).

A run is a folder: config.json, run.html (a page to look at), train.csv (one row per logged step), metrics.jsonl (the
same and timings), checkpoints/ while it runs, latest.pth (the weights alone, for a next stage), vae/ (see
`vae/checkpoint.py`) when it is done. Started again, it continues where it was and takes the same steps as without the
interruption: batches, posterior samples and masks are functions of seed, rank and step.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .. import distributed
from ..data.shards import Batch, training_batches
from ..data.skips import SKIPPED_FILE, Skip, SkipLog
from ..data.video_io import to_unit_range
from ..engine.average import Average
from ..engine.checkpoints import LATEST, complete_steps, save_weights
from ..engine.log import JsonLog, MetricsLog
from ..engine.optimization import build_engine
from ..engine.precision import tell_precision
from ..engine.run import Run
from ..engine.seeds import generator, seeded
from ..engine.stability import LossScale, StepOutcome
from ..errors import UserError, first_line
from ..storage import sync
from ..vae.autoencoder import SSVAE
from .discriminator import Discriminator, critic_step
from .losses import Losses, Objective
from .memory import PLANS, RESERVE, choose_plan, device_memory, in_one_line, is_small
from .monitor import Monitor
from .objective_config import without_encoder_terms
from .run_folder import claimed_folder
from .run_page import RunPage
from .settings import TrainConfig
from .timer import Timer

logger = logging.getLogger(__name__)

INITIAL_WEIGHTS, CRITIC_WEIGHTS, STEP = range(3)
"""What random numbers are for; see `engine/seeds.py`."""


def train(config: TrainConfig, output: Path, device: torch.device) -> Path:
    """Train to `config.max_steps` and return the folder of the finished autoencoder.

    An interrupted run in `output` is continued. With a launcher, `device` is this rank's.

    Raises:
        UserError: unusable data or weights, a folder with another run or one that is being trained, a loss that stays
            infinite or NaN, or another rank died.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    try:
        with claimed_folder(config, output):
            if distributed.any_rank((output / "done").exists(), device):
                logger.info("%s is finished", output)
            else:
                tell_precision(config.precision, device)
                AutoencoderTrainer(config, output, device).train()
    except RuntimeError as error:
        if not distributed.lost_rank(error):
            raise
        raise UserError(
            f"{output}: another process of this run ended (its own message says why) or cannot be reached "
            f"({first_line(error).partition('. ')[0]}); the same command continues from the last checkpoint"
        ) from error
    return output / "vae"


class AutoencoderTrainer:
    """One run: the autoencoder, the discriminators once they have joined, and the logs."""

    def __init__(self, config: TrainConfig, output: Path, device: torch.device) -> None:
        self.config, self.output, self.device = config, output, device
        with seeded(config.seed, INITIAL_WEIGHTS):
            vae = _initial_autoencoder(config, output).for_training()
        self.objective = Objective(vae, without_encoder_terms(config) if config.freeze_encoder else config)
        self._fit_memory()
        # Before the engine wraps the module, so that its hooks are not copied.
        average = Average(vae, config.ema_decay, device) if config.ema_decay else None
        self.optimizer = config.optimizer.model_copy(update={"lr": config.lr})
        engine = build_engine(
            self.objective,
            self.optimizer,
            max_steps=config.max_steps,
            micro_batch_size=config.batch_size,
            device=device,
        )
        self.run = Run(
            output / "checkpoints",
            {"autoencoder": engine},
            config.max_steps,
            clip_norm=config.optimizer.clip_norm,
            average=average,
            loss_scale=LossScale(config.precision == "float16"),
            keep=config.keep_checkpoints,
            milestone_every=config.milestone_every,
        )
        self.critic: Discriminator | None = None
        self.page = RunPage(output) if distributed.rank() == 0 else None
        self.skipped = self.skipped_in_a_row = 0
        self._resume()

    def _fit_memory(self) -> None:
        """Choose how a step is taken, and log the memory it needs."""
        cuda = self.device.type == "cuda"
        available = device_memory(self.device) - (RESERVE if cuda else 0)
        if not cuda and is_small(self.config, available):
            PLANS[-1 if self.config.memory == "small" else 0].apply(self.objective)
            return
        choice = choose_plan(self.config, available, distributed.world_size())
        choice.plan.apply(self.objective)
        if distributed.rank() == 0:
            logger.info("%s", in_one_line(self.config, choice, self.device))

    @property
    def vae(self) -> SSVAE:
        """The autoencoder that the run saves: the averaged weights if there is an average."""
        return self.objective.vae if self.run.average is None else cast(SSVAE, self.run.average.module)

    def train(self) -> None:
        """Take the remaining steps, and save the autoencoder."""
        config, start = self.config, self.run.step
        self.skips = SkipLog(self.output / SKIPPED_FILE, max_share=config.data.max_skip_share)
        self.batches = Timer(self._batches())
        self.columns = ["lr", *_loss_names(config), "lcr_weight"]
        for engine in self.run.engines.values():
            engine.train()
        self.log = MetricsLog(self.output / "train.csv", ["step", *self.columns], start)
        self.details = JsonLog(self.output / "metrics.jsonl", start)
        with contextlib.ExitStack() as opened:
            self.monitor = self._monitor(opened)
            if self.page is not None:
                opened.enter_context(self.page.following(self.run))
            description = f"training {self.output.name}"
            self.run.loop(description, self._take_step, save=self._save, due=self._checkpoint_due)
            self._finish()  # before a logger waits for its server

    def _batches(self) -> Iterator[Batch]:
        config = self.config
        return training_batches(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_batch=self.run.step * config.batches_per_step,
            skips=self.skips,
        )

    def _monitor(self, opened: contextlib.ExitStack) -> Monitor | None:
        """The monitor on the first rank, if it has anything to do."""
        config = self.config
        if distributed.rank() != 0 or not config.monitor.active:
            return None
        place = self.output, config.precision, self.device, self.run.step
        monitor = Monitor(config.monitor, config.data, *place, config.model_dump(mode="json"))
        opened.callback(monitor.close)
        return monitor

    # --- one step -----------------------------------------------------------------------------------------------------

    def _take_step(self) -> Mapping[str, float]:
        """One step of autoencoder and discriminators, logged and evaluated; returns numbers for the progress bar."""
        self._prepare_critic(self.run.step)
        alternate = self.config.adversarial.alternate
        outcome = self._turn(["autoencoder"] if alternate else list(self.run.engines))
        finite, measured = outcome.finite, outcome.measured
        if alternate and self.critic is not None:
            other = self._turn(["critic"])
            finite, measured = finite and other.finite, {**measured, **other.measured}
        elif self.config.batches_per_step > self.config.optimizer.accumulation_steps:
            self._next_batches()  # of the discriminators, which have not joined yet
        if finite:
            self.skipped_in_a_row = 0
        step = self.run.step + 1
        self._log(step, outcome._replace(measured=measured))
        if self.monitor is not None and self.config.monitor.every and step % self.config.monitor.every == 0:
            self.monitor.evaluate(step, self.vae)
            self._show(step)
        return {"loss": measured["total"], "PSNR": _psnr(measured["squared_error"])}

    def _turn(self, networks: Sequence[str]) -> StepOutcome:
        """An optimiser step of some of the engines; skipped if a loss or gradient is not finite."""
        batches = self._next_batches()
        parts = [self._backward(batch, networks, micro) for micro, batch in enumerate(batches)]
        losses, terms = zip(*parts, strict=True)
        measured = {name: torch.stack([part[name] for part in terms]).mean() for name in terms[0]}
        outcome = self.run.take_step(losses, measured, engines=networks)
        if not outcome.finite and not outcome.overflow:
            self._count_skip(outcome, batches, losses)
        return outcome

    def _next_batches(self) -> list[Batch]:
        return [next(self.batches) for _ in range(self.config.optimizer.accumulation_steps)]

    def _backward(self, batch: Batch, networks: Sequence[str], micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of a micro-batch.

        Returns:
            A scalar that is finite if the losses are, and scalars for the log.
        """
        config = self.config
        last = micro + 1 == config.optimizer.accumulation_steps
        video = to_unit_range(batch.video.to(self.device, non_blocking=True))
        turn = int("autoencoder" not in networks)
        draws = generator(config.seed, STEP, distributed.rank(), self.run.step, micro, turn)
        checked, terms = video.new_zeros(()), {}
        if "autoencoder" in networks:
            weight, scale = config.adversarial.weight, self.run.loss_scale.scale
            losses: Losses = self.run.engines["autoencoder"](video, draws, self.critic, weight, scale)
            self.run.backward("autoencoder", losses.total, last=last)
            checked, terms = losses.total.detach(), self._terms(losses)
        if "critic" in networks:
            rebuilt = self.objective.reconstruction if terms else self.objective.reconstruct(video, draws)
            assert self.critic is not None and rebuilt is not None
            loss = critic_step(self.critic, video, rebuilt, self.run.loss_scale.scale)
            self.run.backward("critic", loss, last=last)
            checked, terms["critic"] = checked + loss.detach(), loss.detach()
        return checked, terms

    def _terms(self, losses: Losses) -> dict[str, Tensor]:
        """The losses that the run uses, and LCR's weight.

        Gradient-balanced terms enter the total with their weight in the backward pass.
        """
        objective, config = self.objective, self.objective.config
        weight = objective.applied_lcr_weight.clone()
        total = losses.total.detach()
        extra = {"squared_error": losses.squared_error}
        if config.lcr_weight and config.lcr.weighting == "gradient":
            total = total + (weight - 1) * losses.lcr
        if self.critic is not None:
            extra["adversarial_weight"] = objective.applied_adversarial_weight.clone()
            total = total + (extra["adversarial_weight"] - 1) * losses.adversarial
        named = losses._replace(total=total)._asdict()
        return {**{name: named[name] for name in _loss_names(self.config)}, "lcr_weight": weight, **extra}

    def _count_skip(self, outcome: StepOutcome, batches: Sequence[Batch], losses: Sequence[Tensor]) -> None:
        """Note a skipped step and the samples that may have caused it; stop after too many in a row."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        what, step = "loss" if outcome.bad_loss else "gradient", self.run.step + 1
        suspects = batches
        if outcome.bad_loss:  # perhaps on another rank alone
            suspects = [batch for batch, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        for key in (key for batch in suspects for key in batch.keys):
            self.skips.filtered(Skip(key, f"infinite or NaN {what}", f"in the batch of step {step}"))
        logger.warning("step %d skipped: the %s is infinite or NaN", step, what)
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            latest = self.output / LATEST
            start = f" with resume_from={latest}" if latest.exists() else ""
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row without a finite {what}, the last one {step}: train "
                f"under another name{start}; lower lr (to 5e-5) and batch_size (to 4), set optimizer.clip_norm=1, and "
                f"drop broken or black samples (those of the skipped steps are listed in {self.skips.path}; "
                "data.drop_black, data.drop_frozen find more)"
            )

    def _prepare_critic(self, step: int) -> None:
        """Build the discriminators before the first step that uses them."""
        config, adversarial = self.config, self.config.adversarial
        if self.critic is not None or not adversarial.active_at(step):
            return
        with seeded(config.seed, CRITIC_WEIGHTS):
            critic = Discriminator(adversarial, config.precision)
        self.run.engines["critic"] = build_engine(
            critic,
            adversarial.optimizer(self.optimizer),
            max_steps=config.max_steps - adversarial.start_step + 1,
            micro_batch_size=config.batch_size,
            device=self.device,
        )
        # The module, not its engine: DeepSpeed would expect a backward pass of the discriminators for each use.
        self.critic = critic

    # --- checkpoints and logs -----------------------------------------------------------------------------------------

    def _log(self, step: int, outcome: StepOutcome) -> None:
        """Write a row; `lr` is the learning rate of the step to come."""
        if step % self.config.log_every and step != self.config.max_steps:
            return
        measured = {"lr": self.run.engines["autoencoder"].get_lr()[0], **outcome.measured}
        measured["psnr"] = _psnr(measured.pop("squared_error"))
        row = {name: measured[name] for name in self.columns}
        self.log.write(step, row)
        measured |= {"gradient_norm": outcome.norms[0], "loss_scale": self.run.loss_scale.scale}
        measured |= {**self.batches.lap(), "skipped_steps": self.skipped}
        self.details.write(step, measured)
        if self.monitor is not None:
            self.monitor.scalars(step, measured)

    def _checkpoint_due(self, step: int) -> bool:
        return step % self.config.checkpoint_every == 0 and step < self.config.max_steps

    def _save(self) -> None:
        self._sync_logs()  # steps before the checkpoint are not repeated, so their rows must not be lost
        self.run.save(skipped=[self.skipped, self.skipped_in_a_row])
        if distributed.rank() == 0:
            save_weights(self.vae, self.output / LATEST)
        self._show(self.run.step)

    def _show(self, step: int) -> None:
        if self.page is not None:
            self.page.write("running", step, self.run.max_steps)

    def _resume(self) -> None:
        state = self.run.resume()
        if state is None:
            return
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self._prepare_critic(self.run.step - 1)
        if self.critic is not None:
            self.run.restore("critic")

    def _finish(self) -> None:
        if distributed.rank() == 0:
            save_weights(self.vae, self.output / LATEST)
            vae = self.output / "vae"
            self.vae.save_pretrained(vae)
            self._sync_logs()
            sync(*vae.iterdir(), vae, self.output)
            (self.output / "done").touch()
        distributed.barrier()

    def _sync_logs(self) -> None:
        if distributed.rank() == 0:
            sync(*self.output.glob("*.csv"), *self.output.glob("*.jsonl"))


def _loss_names(config: TrainConfig) -> list[str]:
    """The losses that train.csv has columns for."""
    weights = {"adversarial": config.adversarial.weight, "rescaled": config.scale_weight}
    without = {"squared_error"} | {name for name, weight in weights.items() if not weight}
    return [name for name in Losses._fields if name not in without]


def _psnr(squared_error: float) -> float:
    """PSNR in dB of videos in [-1, 1]; in training, of reconstructions from masked latents."""
    return 10 * math.log10(4 / squared_error) if squared_error else math.inf


def _initial_autoencoder(config: TrainConfig, output: Path) -> SSVAE:
    """A new one, or one with the weights of `resume_from`; parameters that are not trained are frozen."""
    vae = SSVAE(config.model)
    for data in (stream.config for stream in config.data.streams()):
        for size in data.sizes:
            vae.latent_size(data.num_frames, *size)  # raises where a size does not fit
    if config.resume_from is not None and not complete_steps(output / "checkpoints"):
        loaded = SSVAE.from_pretrained(config.resume_from)
        if loaded.config != config.model:
            differing = [name for name, value in loaded.config if getattr(config.model, name) != value]
            values = ", ".join(f"model.{name}={getattr(loaded.config, name)}" for name in differing)
            raise UserError(f"{config.resume_from}: another architecture than configured; set {values}")
        vae.load_state_dict(loaded.state_dict())
        logger.info("starting from the weights of %s", config.resume_from)
    vae.encoder.requires_grad_(not config.freeze_encoder)
    return vae
