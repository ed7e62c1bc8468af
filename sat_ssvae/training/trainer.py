"""The training loop of the autoencoder.

    sat-ssvae train --config ssvae_demo.yaml --name my_vae data.path=shards/train lcr_weight=0.05

A run is a folder: config.json, train.csv (one row a logged step), metrics.jsonl (the same and timings), checkpoints/
while it runs, latest.pth (the weights alone, for a next stage), vae/ (see `vae/checkpoint.py`) when it is done. Started
again, it continues where it was and takes the same steps that it would have taken without the interruption: batches,
posterior samples and masks are functions of seed, rank and step.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from .. import distributed
from ..data.shards import Batch, training_batches
from ..data.skips import Skip, SkipLog
from ..data.video_io import to_unit_range
from ..engine.average import warmed_up_average
from ..engine.log import JsonLog, MetricsLog
from ..engine.optimization import (
    build_engine,
    complete_steps,
    load_checkpoint,
    load_other,
    save_checkpoint,
    save_weights,
)
from ..engine.stability import LossScale, StopRequest, Verdict, discard_gradients, gradient_norm, vote
from ..errors import UserError
from ..progress import progress_bar
from ..storage import sync
from ..vae.autoencoder import SSVAE
from .discriminator import Discriminator, critic_loss
from .losses import Losses, Objective
from .monitor import Monitor
from .run_folder import claimed_folder
from .settings import TrainConfig
from .timer import Timer

logger = logging.getLogger(__name__)

TERMINATED = 143
"""Exit status after SIGTERM, as shells have it."""
LATEST = "latest.pth"


def train(config: TrainConfig, output: Path, device: torch.device) -> Path:
    """Train to `config.max_steps` and return the folder of the finished autoencoder.

    Args:
        config: the run.
        output: the run's folder; a run that was interrupted in it is continued.
        device: where to train; with a launcher, this rank's device.

    Raises:
        UserError: unusable data or weights, a folder that holds another run or one that is being trained, a loss that
            stays infinite or NaN, or another rank that is no more.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    try:
        with claimed_folder(config, output):
            if distributed.any_rank((output / "done").exists(), device):
                logger.info("%s is finished", output)
            else:
                _Training(config, output, device).run()
    except RuntimeError as error:
        if not distributed.lost_rank(error):
            raise
        raise UserError(
            f"{output}: another process of this training ended, whose own message says why, or cannot be reached "
            f"({str(error).splitlines()[0].partition('. ')[0]}); the same command continues from the last checkpoint"
        ) from error
    return output / "vae"


class _Training:
    """One run: the engines, what goes with them into a checkpoint, and where it is."""

    def __init__(self, config: TrainConfig, output: Path, device: torch.device) -> None:
        self.config, self.output, self.device = config, output, device
        torch.manual_seed(config.seed)
        vae = _initial_autoencoder(config, output)
        # LCR has nothing to act on in a frozen encoder.
        objective_config = config.model_copy(update={"lcr_weight": 0.0}) if config.freeze_encoder else config
        self.objective = Objective(vae, objective_config)
        # Before the engine wraps the module: its hooks are not to be copied.
        average_of = warmed_up_average(config.ema_decay)
        self.average = AveragedModel(vae, device, multi_avg_fn=average_of) if config.ema_decay else None
        self.engine = build_engine(
            self.objective,
            config.optimizer.model_copy(update={"lr": config.lr}),
            max_steps=config.max_steps,
            micro_batch_size=config.batch_size,
            device=device,
        )
        self.critic: Any = None
        self.loss_scale = LossScale(config.precision == "float16")
        self.skipped = self.skipped_in_a_row = 0
        self.step = self._resume()

    @property
    def vae(self) -> SSVAE:
        """The autoencoder that the run hands over: the averaged weights where there is an average."""
        vae = self.objective.vae if self.average is None else self.average.module
        assert isinstance(vae, SSVAE)
        return vae

    def run(self) -> None:
        config = self.config
        skips = SkipLog(self.output / "skipped.jsonl", max_share=config.data.max_skip_share)
        batches = training_batches(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_batch=self.step * config.optimizer.accumulation_steps,
            skips=skips,
        )
        log = MetricsLog(self.output / "train.csv", ["step", "lr", *_loss_names(config), "lcr_weight"], self.step)
        details = JsonLog(self.output / "metrics.jsonl", self.step)
        bar = progress_bar(config.max_steps, f"training {self.output.name}", "step", initial=self.step)
        self.engine.train()
        with contextlib.ExitStack() as opened:
            for resource in (bar, log, details):
                opened.enter_context(resource)
            stop = opened.enter_context(StopRequest())
            monitor = self._monitor(opened)
            timer = Timer(batches)
            while self.step < config.max_steps:
                terms, verdict, extra = self._step(timer, skips, stop)
                self.step += 1
                if self.step % config.log_every == 0 or self.step == config.max_steps:
                    row = self._log_row(terms)
                    log.write(self.step, row)
                    measured = {**row, **extra, **timer.lap(), "skipped_steps": self.skipped}
                    details.write(self.step, measured)
                    if monitor is not None:
                        monitor.scalars(self.step, measured)
                    bar.set_postfix(loss=f"{row['total']:.4g}", error=f"{row['error']:.4f}")
                bar.update()
                if monitor is not None and config.monitor.every and self.step % config.monitor.every == 0:
                    monitor.look(self.step, self.vae)
                due = self.step % config.checkpoint_every == 0
                if (due or verdict.stop) and self.step < config.max_steps:
                    self._save()
                if verdict.stop and self.step < config.max_steps:
                    logger.info("SIGTERM: saved step %d; the same command continues from there", self.step)
                    raise SystemExit(TERMINATED)
            self._finish()  # before a board waits for its server

    def _monitor(self, opened: contextlib.ExitStack) -> Monitor | None:
        """The first rank's, if it has anything to look at."""
        config = self.config
        if distributed.rank() != 0 or not config.monitor.active:
            return None
        place = self.output, config.precision, self.device, self.step
        monitor = Monitor(config.monitor, config.data, *place, config.model_dump(mode="json"))
        opened.callback(monitor.close)
        return monitor

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step(
        self, batches: Iterator[Batch], skips: SkipLog, stop: StopRequest
    ) -> tuple[torch.Tensor, Verdict, dict[str, float]]:
        """One optimiser step, or none on any rank if a loss or gradient is infinite or NaN on one of them.

        Returns:
            The means of `_terms` over the micro-batches, the verdict, and what else is worth a line in the log: numbers
            of the whole step, alike on all ranks.
        """
        config, step = self.config, self.step
        self._prepare_critic(step)
        bad: list[str] = []
        keys: list[str] = []
        terms: list[torch.Tensor] = []
        critic_terms: list[torch.Tensor] = []
        accumulation = config.optimizer.accumulation_steps
        for micro in range(accumulation):
            batch = next(batches)
            for engine in self._engines():
                engine.set_gradient_accumulation_boundary(micro == accumulation - 1)
            losses, critic_total = self._backward(to_unit_range(batch.video.to(self.device)), step, micro)
            finite = bool(losses.total.isfinite()) and (critic_total is None or bool(critic_total.isfinite()))
            bad += [] if finite else batch.keys
            keys += batch.keys
            terms.append(self._terms(losses))
            if critic_total is not None:
                critic_terms.append(torch.stack([critic_total, self.objective.applied_adversarial_weight]))
        norms = []
        for engine in self._engines():
            self.loss_scale.unscale(engine)
            norms.append(gradient_norm(engine))
        bad_gradient = not all(bool(norm.isfinite()) for norm in norms)
        verdict = vote(bad_loss=bool(bad), bad_gradient=bad_gradient, stop=stop.requested, device=self.device)
        overflow = self.loss_scale.update(verdict)
        if verdict.finite:
            self._take_step()
        else:
            for engine in self._engines():
                discard_gradients(engine)
            if not overflow:
                self._count_skip(verdict, bad or ([] if verdict.bad_loss else keys), skips)
        norm = self.engine.get_global_grad_norm() if self.engine.zero_optimization() else norms[0]
        details = {"gradient_norm": float(norm), "loss_scale": self.loss_scale.scale}
        if critic_terms:
            means = distributed.mean_over_ranks(torch.stack(critic_terms).mean(0)).tolist()
            details |= zip(("critic", "adversarial_weight"), means, strict=True)
        return torch.stack(terms).mean(0), verdict, details

    def _backward(self, video: torch.Tensor, step: int, micro: int) -> tuple[Losses, torch.Tensor | None]:
        """Gradients of a micro-batch; the discriminators' loss where they take part."""
        scale = self.loss_scale.scale
        generator = torch.Generator().manual_seed(_step_seed(self.config.seed, distributed.rank(), step, micro))
        if self.critic is None:
            losses: Losses = self.engine(video, generator)
            self.engine.backward(losses.total * scale if scale != 1 else losses.total)
            return losses, None
        # Through its module, not its engine: DeepSpeed would expect a backward pass of the discriminators' own.
        critic: Discriminator = self.critic.module
        critic.requires_grad_(False)
        losses = self.engine(video, generator, critic, self.config.adversarial.weight)
        critic.requires_grad_(True)
        self.engine.backward(losses.total * scale)
        assert self.objective.reconstruction is not None
        total = critic_loss(critic(video), critic(self.objective.reconstruction))
        self.critic.backward(total * scale)
        return losses, total.detach()

    def _take_step(self) -> None:
        for engine in self._engines():
            engine.step()
        if self.average is not None:
            self.average.update_parameters(self.objective.vae)
        self.skipped_in_a_row = 0

    def _count_skip(self, verdict: Verdict, keys: list[str], skips: SkipLog) -> None:
        """Note a step that no rank took and the samples that may be why; stop after too many in a row."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        what = "loss" if verdict.bad_loss else "gradient"
        for key in keys:
            skips.filtered(Skip(key, f"infinite or NaN {what}", f"in the batch of step {self.step + 1}"))
        logger.warning("step %d skipped: the %s is infinite or NaN", self.step + 1, what)
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            latest = self.output / LATEST
            start = f" with resume_from={latest}" if latest.exists() else ""
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row without a finite {what}, the last one {self.step + 1}: train "
                f"under another name{start}; lower lr (to 5e-5) and batch_size (to 4), set optimizer.clip_norm=1, and "
                f"drop broken or black samples (those of the skipped steps are listed in {skips.path}; "
                "data.drop_black, data.drop_frozen find more)"
            )

    # --- discriminators -----------------------------------------------------------------------------------------------

    def _engines(self) -> list[Any]:
        return [self.engine] if self.critic is None else [self.engine, self.critic]

    def _prepare_critic(self, step: int) -> None:
        """Build the discriminators when the first step comes that uses them."""
        config, adversarial = self.config, self.config.adversarial
        if self.critic is not None or not adversarial.active_at(step):
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_step_seed(config.seed, 0, 0, -1))
            critic = Discriminator(adversarial, config.precision)
        optimizer = {"lr": adversarial.lr or config.lr, "betas": adversarial.betas}
        self.critic = build_engine(
            critic,
            config.optimizer.model_copy(update=optimizer),
            max_steps=config.max_steps - adversarial.start_step + 1,
            micro_batch_size=config.batch_size,
            device=self.device,
        )

    # --- checkpoints and logs -----------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._sync_logs()  # no row is lost of a step that will not be taken again
        state: dict[str, Any] = {
            "skipped": [self.skipped, self.skipped_in_a_row],
            "loss_scale": self.loss_scale.state(),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        save_checkpoint(
            self.engine,
            self.output / "checkpoints",
            self.step,
            state,
            others={"critic": self.critic} if self.critic is not None else {},
            keep=self.config.keep_checkpoints,
            milestone_every=self.config.milestone_every,
        )
        if distributed.rank() == 0:
            save_weights(self.vae, self.output / LATEST)

    def _resume(self) -> int:
        """Restore the newest checkpoint, if there is one; returns the steps done."""
        folder = self.output / "checkpoints"
        state = load_checkpoint(self.engine, folder)
        if state is None:
            return 0
        step = int(state["step"])
        self.skipped, self.skipped_in_a_row = state.get("skipped", (0, 0))
        if "loss_scale" in state:
            self.loss_scale.restore(state["loss_scale"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._prepare_critic(step - 1)
        if self.critic is not None:
            load_other(self.critic, folder, step, "critic")
        return step

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

    def _terms(self, losses: Losses) -> torch.Tensor:
        """This rank's numbers for the log, one micro-batch's: the losses that the run has, and LCR's weight.

        Gradient-balanced terms enter the total with the weight that they really had.
        """
        objective, config = self.objective, self.objective.config
        weight = objective.applied_lcr_weight
        total = losses.total.detach()
        if config.lcr_weight and config.lcr.weighting == "gradient":
            total = total + (weight - 1) * losses.lcr
        if self.critic is not None:
            total = total + (objective.applied_adversarial_weight - 1) * losses.adversarial
        named = losses._replace(total=total)._asdict()
        return torch.stack([*(named[name] for name in _loss_names(self.config)), weight])

    def _log_row(self, terms: torch.Tensor) -> dict[str, float]:
        """Means of `_terms` over the ranks, and the learning rate of the step to come."""
        values = distributed.mean_over_ranks(terms).tolist()
        named = zip([*_loss_names(self.config), "lcr_weight"], values, strict=True)
        return {"lr": self.engine.get_lr()[0], **dict(named)}


def _loss_names(config: TrainConfig) -> list[str]:
    """The losses that the run has."""
    return [name for name in Losses._fields if name != "adversarial" or config.adversarial.weight]


def _initial_autoencoder(config: TrainConfig, output: Path) -> SSVAE:
    """A new one, or `resume_from`'s weights; parameters that are not to be trained are frozen."""
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
    vae.checkpoint_activations(config.checkpoint_activations)
    return vae


def _step_seed(seed: int, rank: int, step: int, micro: int) -> int:
    """A seed of its own for each rank and micro-batch, so that an interrupted run needs no generator state.

    Python hashes integers alike in every process.
    """
    return hash((seed, rank, step, micro)) % 2**63
