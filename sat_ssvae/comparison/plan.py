"""The plan of a comparison: its stages, which of them are done, and how long the rest will take.

    plan = Plan(output / "stages.json", planned(layout, given, training_of))
    with plan.stage("latents stock"): ...
    # stage 4 of 9: latents stock; about 12 min left in all

A stage's time is estimated from stages of its kind that ran from start to end in this comparison's folder, by this
process or an earlier one. While a kind has none, the message says so instead of a number.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..diffusion.training import DiTTrainConfig
from ..storage import write_text
from .layout import Layout

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A piece of a comparison."""

    kind: str
    """Stages of one kind take as long for each unit."""
    name: str
    """Different for each stage."""
    units: int = 1
    """Training steps, or 1."""
    done: bool = False
    """Whether an earlier run finished it, as far as is known before anything runs."""


class Plan:
    """The stages, and the measured times of those that ran; logs all of them at once.

    Args:
        path: where the times are kept: by kind, [units, seconds].
        stages: all of them, in order.
    """

    def __init__(self, path: Path, stages: Sequence[Stage]) -> None:
        self._path, self._stages = path, list(stages)
        self._measured: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
        lines = [f"  {number}. {stage.name}{self._note(stage)}" for number, stage in enumerate(self._stages, 1)]
        logger.info("plan: %d stages, %s\n%s", len(self._stages), self._time_left(self._stages), "\n".join(lines))

    @contextmanager
    def stage(self, name: str, result: Path | None = None) -> Iterator[None]:
        """Say that a stage begins, and measure it; silent for one that is done.

        Args:
            name: of one of the stages.
            result: the last file that it writes, in a folder of its own. Where it is there, the stage is done; where
                the folder is, the stage continues and is not measured.
        """
        number, stage = next((i, stage) for i, stage in enumerate(self._stages) if stage.name == name)
        done = stage.done or (result is not None and result.exists())
        fresh = not done and (result is None or not result.parent.exists())
        self._stages[number] = stage._replace(done=done)
        if not done:
            left = self._time_left(self._stages[number:])
            logger.info("stage %d of %d: %s; %s", number + 1, len(self._stages), name, left)
        start = time.monotonic()
        yield
        if fresh:
            units, seconds = self._measured.get(stage.kind, (0, 0.0))
            self._measured[stage.kind] = [units + stage.units, seconds + time.monotonic() - start]
            write_text(self._path, json.dumps(self._measured, indent=1))
        self.done(name)

    def done(self, name: str) -> None:
        """Note that an earlier run finished a stage."""
        self._stages = [stage._replace(done=True) if stage.name == name else stage for stage in self._stages]

    def _seconds(self, stage: Stage) -> float | None:
        """How long a stage takes; None where none of its kind was measured."""
        if stage.kind not in self._measured:
            return None
        units, seconds = self._measured[stage.kind]
        return seconds / units * stage.units

    def _note(self, stage: Stage) -> str:
        seconds = self._seconds(stage)
        return " (done)" if stage.done else "" if seconds is None else f" (about {in_minutes(seconds)})"

    def _time_left(self, stages: Sequence[Stage]) -> str:
        """How long these stages take, without those that are done."""
        waiting = [stage for stage in stages if not stage.done]
        times = [self._seconds(stage) for stage in waiting]
        known = sum(seconds for seconds in times if seconds is not None)
        unknown = [stage.kind for stage, seconds in zip(waiting, times, strict=True) if seconds is None]
        unknown = [kind for kind in unknown if kind != "report"]  # short
        if not unknown:
            return f"about {in_minutes(known)} left in all"
        kinds = ", ".join(f"{unknown.count(kind)} × {kind}" for kind in dict.fromkeys(unknown))
        return (
            f"about {in_minutes(known)} left and what is not measured yet ({kinds})"
            if known
            else (f"time left is known once one of each kind has run ({kinds})")
        )


def planned(layout: Layout, given: Collection[str], training_of: Callable[[str], DiTTrainConfig]) -> list[Stage]:
    """The stages of a comparison in the order in which they run.

    Args:
        layout: where they are.
        given: arms whose autoencoders are not trained here.
        training_of: an arm's training of transformers, as far as it is known before shifts were tried.
    """
    config, stages = layout.config, []
    searched: set[str] = set()
    steps = config.transformer.max_steps
    for member, trainings in layout.trainings.items():
        for number, training in enumerate(trainings if member.arm not in given else (), 1):
            name = f"autoencoder {layout.training_label(member, number)}"
            done = layout.trained(member, number).exists()
            stages.append(Stage("autoencoder", name, training.max_steps, done))
        label = layout.label(member)
        stages.append(Stage("latents", f"latents {label}", done=layout.encoded(member).exists()))
        for shift in () if member.arm in searched else config.shifts:
            stages.append(Stage("transformer", transformer_name(label, config.shift_seed, shift), steps))
        searched.add(member.arm)
        for seed in config.seeds:
            known = None if config.shifts else layout.known_transformer(member, training_of(member.arm), seed)
            done = known is not None and known.exists()
            stages.append(Stage("transformer", transformer_name(label, seed), steps, done))
    return [*stages, Stage("report", "report")]


def transformer_name(label: str, seed: int, shift: float | None = None) -> str:
    """The name of a transformer's stage; `shift` where it only tries that timestep shift."""
    return f"transformer {label}, seed {seed}" + ("" if shift is None else f", shift {shift:g}")


def in_minutes(seconds: float) -> str:
    """`1 min`, `45 min`, `3 h 20 min`."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
