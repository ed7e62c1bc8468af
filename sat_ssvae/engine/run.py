"""The part that all trainers share: their engines step, are saved and resume together.

    run = Run(folder, {"model": engine}, max_steps=1000, average=average)
    state = run.resume()                                    # None at the start

    def step():
        loss = engine(batch)
        run.backward("model", loss)
        outcome = run.take_step([loss], {"loss": loss})     # all ranks or none; the one wait for the device
        return {"loss": outcome.measured["loss"]}

    run.loop("training", step, save=run.save, due=lambda step: step % 100 == 0)

A loss or gradient that is infinite or NaN on one rank discards the step on all of them, before it can harm the weights.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..progress import progress_bar
from .average import Average
from .checkpoints import load_checkpoint, load_other, save_checkpoint
from .stability import LossScale, StepOutcome, StopRequest, Vote, discard_gradients, scale_gradients, squared_norm_share

logger = logging.getLogger(__name__)

TERMINATED = 143
"""Exit status after SIGTERM, as shells have it."""
CLIP_EPSILON = 1e-6
"""Keeps the clipping factor finite; as in `torch.nn.utils.clip_grad_norm_`."""


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Leave by SystemExit when SIGTERM comes; only the main thread can catch signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass
class Run:
    """The engines of a run, the number of steps they took, and the rest of what is checkpointed with them."""

    folder: Path
    """Where its checkpoints are."""
    engines: dict[str, Any]
    """DeepSpeed engines by name; the first one exists from the start, others may join later."""
    max_steps: int
    """Steps of the whole run."""
    clip_norm: float = 0.0
    """Largest gradient norm of an engine; longer gradients are scaled down. 0 turns clipping off."""
    average: Average | None = None
    """Of weights of the first engine."""
    loss_scale: LossScale = field(default_factory=LossScale)
    """Enabled for float16."""
    keep: int = 1
    """How many of the newest checkpoints stay."""
    milestone_every: int = 0
    """Checkpoints at multiples of this step stay as well; 0 for none."""
    step: int = field(default=0, init=False)
    """Steps taken, discarded ones included."""
    stop: StopRequest = field(default_factory=StopRequest, init=False)
    """Set by SIGTERM while `loop` runs."""
    stopping: bool = field(default=False, init=False)
    """Whether the last step's vote was to stop."""

    def backward(self, name: str, loss: Tensor, *, last: bool = True) -> None:
        """Accumulate the gradients of a scaled loss; `last` completes the step's micro-batches of this engine."""
        engine = self.engines[name]
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss * self.loss_scale.scale if self.loss_scale.enabled else loss)

    def take_step(
        self, losses: Sequence[Tensor], measured: Mapping[str, Tensor], *, engines: Sequence[str] | None = None
    ) -> StepOutcome:
        """Step engines with their gradients, or discard these on all ranks if something is not finite.

        `losses` are scalars that have to be finite, `measured` scalars for the log. `engines`: names of those
        that have gradients; None for all.
        """
        moving = [self.engines[name] for name in (self.engines if engines is None else engines)]
        if self.loss_scale.enabled:
            for engine in moving:
                scale_gradients(engine, 1 / self.loss_scale.scale)
        vote = Vote(losses, [squared_norm_share(engine) for engine in moving], measured, self.stop.requested)
        outcome = vote.outcome()
        self.stopping = outcome.stop
        for engine, norm in zip(moving, vote.norms, strict=True):
            if not outcome.finite:
                discard_gradients(engine)
                continue
            if self.clip_norm:
                scale_gradients(engine, (self.clip_norm / (norm + CLIP_EPSILON)).clamp_max(1.0).float())
            engine.step()
        if outcome.finite and self.average is not None and next(iter(self.engines.values())) in moving:
            self.average.update()
        return outcome._replace(overflow=self.loss_scale.update(outcome))

    def loop(
        self,
        description: str,
        take_step: Callable[[], Mapping[str, float]],
        *,
        save: Callable[[], None],
        due: Callable[[int], bool],
    ) -> None:
        """Take steps to `max_steps`, with a progress bar.

        `take_step` takes one step and returns numbers for the bar; `save` writes a checkpoint; `due` says whether
        to do so after this many steps.

        Raises:
            SystemExit: SIGTERM came; a checkpoint was saved.
        """
        bar = progress_bar(self.max_steps, description, "step", initial=self.step)
        with bar, self.stop:
            while self.step < self.max_steps:
                shown = take_step()
                self.step += 1
                bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
                bar.update()
                stopping = self.stopping and self.step < self.max_steps
                if stopping or due(self.step):
                    save()
                if stopping:
                    logger.info("SIGTERM: saved step %d; the same command continues from there", self.step)
                    raise SystemExit(TERMINATED)

    def save(self, **state: Any) -> None:
        """Write a checkpoint with `state`; every rank must call it.

        Raises:
            UserError: it cannot be written.
        """
        state["loss_scale"] = self.loss_scale.state()
        if self.average is not None:
            state["average"] = self.average.state()
        first, *others = self.engines
        save_checkpoint(
            self.engines[first],
            self.folder,
            self.step,
            state,
            others={name: self.engines[name] for name in others},
            keep=self.keep,
            milestone_every=self.milestone_every,
        )

    def resume(self) -> dict[str, Any] | None:
        """Restore the first engine, the average, the loss scale and the step; every rank must call it.

        Returns:
            What `save` was given, or None if there is no checkpoint.

        Raises:
            UserError: it cannot be read or does not fit.
        """
        state = load_checkpoint(next(iter(self.engines.values())), self.folder)
        if state is not None:
            self.step = int(state["step"])
            self.loss_scale.restore(state["loss_scale"])
            if self.average is not None:
                self.average.restore(state["average"])
        return state

    def restore(self, name: str) -> None:
        """Restore an engine that joined after `resume`, from the same checkpoint.

        Raises:
            UserError: it cannot be read.
        """
        load_other(self.engines[name], self.folder, self.step, name)
