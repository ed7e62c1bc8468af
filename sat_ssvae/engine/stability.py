"""Votes of the ranks: a step is taken by all of them or by none, and a request to stop reaches all at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import distributed

STDERR = 2


class StepOutcome(NamedTuple):
    """What the ranks agreed on at the end of a step, and what they measured in it."""

    bad_loss: bool
    """A loss is infinite or NaN on at least one rank."""
    bad_gradient: bool
    """A gradient is."""
    stop: bool
    """At least one rank was asked to stop."""
    norms: list[float]
    """Norm of each engine's gradients, before clipping."""
    measured: dict[str, float]
    """Means over the ranks."""

    overflow: bool = False
    """float16 gradients overflowed, which the next step's smaller loss scale may fix."""

    @property
    def finite(self) -> bool:
        """Whether the step may be taken."""
        return not (self.bad_loss or self.bad_gradient)


class Vote:
    """One sum over the ranks, which stays on the device until `outcome` reads it in a single transfer.

    Every rank must create it.

    `losses`, `squared_norms` (this rank's shares of the engines' squared gradient norms) and `measured` are
    scalars; `stop` says whether this rank was asked to stop.
    """

    FLAGS = 3

    def __init__(
        self, losses: Sequence[Tensor], squared_norms: Sequence[Tensor], measured: Mapping[str, Tensor], stop: bool
    ) -> None:
        self._names, self._engines = list(measured), len(squared_norms)
        shares = torch.stack([share.double() for share in squared_norms])
        flags = [
            (~torch.stack([loss.detach() for loss in losses]).isfinite()).any(),
            (~shares.isfinite()).any(),
            torch.full_like(shares[0], stop),
        ]
        values = [value.detach().double() / distributed.world_size() for value in measured.values()]
        ballot = torch.cat([torch.stack([flag.double() for flag in flags]), shares, *(value[None] for value in values)])
        self._sums = distributed.sum_over_ranks(ballot)
        self.norms = self._sums[self.FLAGS : self.FLAGS + self._engines].sqrt()
        """Norm of each engine's gradients, float64 on the device."""

    def outcome(self) -> StepOutcome:
        """Wait for the device and read the result, the same on all ranks."""
        bad_loss, bad_gradient, stop, *rest = self._sums.tolist()
        norms = [value**0.5 for value in rest[: self._engines]]
        measured = dict(zip(self._names, rest[self._engines :], strict=True))
        return StepOutcome(bad_loss > 0, bad_gradient > 0, stop > 0, norms, measured)


def held_gradients(engine: Any) -> list[Tensor]:
    """The reduced gradients that this rank's share of the next step will use: all of them, or ZeRO's partition."""
    partitions = getattr(engine.optimizer, "averaged_gradients", None)
    if partitions is None:
        return [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return [gradient for partition in partitions.values() if partition is not None for gradient in partition]


def squared_norm_share(engine: Any) -> Tensor:
    """This rank's share of the engine's squared gradient norm, a scalar; NaN or infinite if one of its gradients is."""
    # Without gradients the norm would lie on the CPU.
    norm = torch.nn.utils.get_total_norm(held_gradients(engine)).to(engine.device, torch.float64)
    return norm.square() if engine.zero_optimization() else norm.square() / distributed.world_size()


def scale_gradients(engine: Any, factor: Tensor | float) -> None:
    """Multiply the gradients that this rank holds."""
    for gradient in held_gradients(engine):
        gradient.mul_(factor)


def discard_gradients(engine: Any) -> None:
    """Drop the accumulated gradients; weights and schedule stay."""
    if not engine.zero_optimization():
        engine.zero_grad()
        return
    # ZeRO clears its buffers only in a step, and it skips a step only if it checks for overflows and finds one. It
    # keeps `overflow` until the next check.
    zero = engine.optimizer
    looks = zero.check_grad_overflow
    for gradient in held_gradients(engine):
        gradient.fill_(float("nan"))
    zero.check_grad_overflow = True
    engine.step()
    zero.check_grad_overflow, zero.overflow = looks, False


class LossScale:
    """A power of two that keeps float16 gradients inside their range (Micikevicius et al., arXiv 1710.03740).

    Halved when a gradient overflows, doubled after 2000 steps without. 1 and constant where it is not enabled.
    """

    SMALLEST = 2.0**-14
    PATIENCE = 2000

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled
        self.scale = 2.0**16 if enabled else 1.0
        self.good_steps = 0

    def update(self, outcome: StepOutcome) -> bool:
        """Adapt to a step's outcome; True if it was an overflow, which a smaller scale may fix."""
        if not self.enabled:
            return False
        overflow = outcome.bad_gradient and not outcome.bad_loss and self.scale > self.SMALLEST
        if overflow:
            self.scale /= 2
            self.good_steps = 0
        elif outcome.finite:
            self.good_steps += 1
            if self.good_steps % self.PATIENCE == 0:
                self.scale *= 2
        return overflow

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])


class StopRequest:
    """Remembers SIGTERM, which spot machines and schedulers send, so that the step can finish first.

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
        if not self.requested and distributed.rank() == 0:
            # Not through logging: the signal may have come in the middle of a write to the same stream.
            with contextlib.suppress(OSError):
                os.write(STDERR, b"\nSIGTERM: saving after this step\n")
        self.requested = True
