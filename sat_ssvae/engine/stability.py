"""No rank alone: a step is taken by all ranks or by none, and a stop reaches all of them at once.

with StopRequest() as stop:
verdict = vote(bad_loss=..., bad_gradient=..., stop=stop.requested, device=device)
if verdict.finite: engine.step()
else: discard_gradients(engine)
"""

import logging
import signal
import threading
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import distributed

logger = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """What at least one rank reported."""

    bad_loss: bool
    bad_gradient: bool
    stop: bool

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return not (self.bad_loss or self.bad_gradient)


def vote(*, bad_loss: bool, bad_gradient: bool, stop: bool, device: torch.device) -> Verdict:
    """Each flag, if any rank set it; every rank must call it."""
    if distributed.world_size() == 1:
        return Verdict(bad_loss, bad_gradient, stop)
    flags = torch.tensor([bad_loss, bad_gradient, stop], dtype=torch.int32, device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return Verdict(*(bool(flag) for flag in flags.tolist()))


def held_gradients(engine: Any) -> list[Tensor]:
    """The reduced gradients that this rank's share of the next step will use: all of them, or ZeRO's partition."""
    partitions = getattr(engine.optimizer, "averaged_gradients", None)
    if partitions is None:
        return [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return [gradient for partition in partitions.values() if partition is not None for gradient in partition]


def gradient_norm(engine: Any) -> Tensor:
    """Norm of the gradients that this rank holds; NaN or infinite if any of them is."""
    return torch.nn.utils.get_total_norm(held_gradients(engine))


def discard_gradients(engine: Any) -> None:
    """Forget the accumulated gradients, so that the next step begins anew; weights and schedule stay as they are."""
    if not engine.zero_optimization():
        engine.zero_grad()
        return
    # ZeRO clears its buffers in a step alone: one that it does not take, because it is told to look at the gradients.
    # Most versions would take it in float32 without looking, and keep `overflow` until they look again.
    zero = engine.optimizer
    looks = zero.check_grad_overflow
    for gradient in held_gradients(engine):
        gradient.fill_(float("nan"))
    zero.check_grad_overflow = True
    engine.step()
    zero.check_grad_overflow, zero.overflow = looks, False


class LossScale:
    """A power of two that keeps float16 gradients inside their range (Micikevicius et al., arXiv 1710.03740).

    Halved when a gradient overflows, doubled after `patience` steps without. 1 and constant where it is not enabled.
    """

    SMALLEST = 2.0**-14

    def __init__(self, enabled: bool, patience: int = 2000) -> None:
        self.enabled = enabled
        self.patience = patience
        self.scale = 2.0**16 if enabled else 1.0
        self.good_steps = 0

    def unscale(self, engine: Any) -> None:
        """Divide the gradients that this rank holds by the scale."""
        if self.enabled:
            for gradient in held_gradients(engine):
                gradient.div_(self.scale)

    def update(self, verdict: Verdict) -> bool:
        """Adapt to a step's verdict; True if it was a mere overflow, which a smaller scale may cure."""
        if not self.enabled:
            return False
        overflow = verdict.bad_gradient and not verdict.bad_loss and self.scale > self.SMALLEST
        if overflow:
            self.scale /= 2
            self.good_steps = 0
        elif verdict.finite:
            self.good_steps += 1
            if self.good_steps % self.patience == 0:
                self.scale *= 2
        return overflow

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])


class StopRequest:
    """SIGTERM, as spot machines and schedulers send it, noted for the end of the step instead of ending the process.

    Outside the main thread, where signals cannot be caught, it never requests anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
