"""The plan of a comparison: its stages, which of them are done, and how long the rest will take.

    plan = Plan(output / "stages.json", planned(layout, training_of))
    with plan.stage("latents stock"): ...
    # stage 4 of 9: latents stock; about 12 min left in all

A stage's time is estimated from stages of its kind that this process or an earlier one ran from start to end in the
comparison's folder. Until there is one, the message says so instead of a number.
"""

import heapq
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..diffusion.training import DiTTrainConfig
from ..storage import write_json
from .layout import Layout

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A piece of a comparison."""

    kind: str
    """Stages of one kind take equally long per unit."""
    name: str
    """Unique."""
    units: int = 1
    """Training steps, or 1."""
    done: bool = False
    """Whether an earlier run is known to have finished it."""
    chain: str = ""
    """Stages of one chain run in sequence, chains run in parallel; the chain "" runs after all others."""


class Plan:
    """The stages, and the measured times of those that ran; logs the whole plan when it is made.

    `path` keeps the times: by kind, [units, seconds]. As many chains of stages as `jobs` run at the same time.
    """

    def __init__(self, path: Path, stages: Sequence[Stage], jobs: int = 1) -> None:
        self._path, self._stages, self._jobs = path, {stage.name: stage for stage in stages}, jobs
        self._started: dict[str, float] = {}
        self._measured: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
        lines = [f"  {number}. {stage.name}{self._note(stage)}" for number, stage in enumerate(stages, 1)]
        logger.info("plan: %d stages, %s\n%s", len(stages), self._time_left(), "\n".join(lines))

    @contextmanager
    def stage(self, name: str, result: Path | None = None) -> Iterator[None]:
        """Log that a stage begins, and measure it; silent if it is done.

        `result` is the last file that it writes, in its own folder. If the file exists, the stage is done; if
        only the folder does, the stage continues and is not measured.
        """
        done = self._stages[name].done or (result is not None and result.exists())
        fresh = not done and (result is None or not result.parent.exists())
        if not done:
            self.begin(name)
        start = time.monotonic()
        yield
        self.end(name, time.monotonic() - start if fresh else None)

    def begin(self, name: str) -> None:
        """Log that a stage begins; the ones before it in its chain are done."""
        names = list(self._stages)
        for before in names[: names.index(name)]:
            if self._stages[before].chain == self._stages[name].chain:
                self.done(before)
        logger.info("stage %d of %d: %s; %s", names.index(name) + 1, len(names), name, self._time_left())
        self._started[name] = time.monotonic()

    def end(self, name: str, seconds: float | None) -> None:
        """Note that a stage is done; seconds: None if they are not typical of its kind."""
        stage = self._stages[name]
        if seconds is not None:
            units, before = self._measured.get(stage.kind, (0, 0.0))
            self._measured[stage.kind] = [units + stage.units, before + seconds]
            write_json(self._path, self._measured)
        self.done(name)

    def done(self, name: str) -> None:
        """Note that an earlier run finished a stage."""
        self._stages[name] = self._stages[name]._replace(done=True)

    def _seconds(self, stage: Stage) -> float | None:
        """How long a stage takes; None if no stage of its kind was measured."""
        if stage.kind not in self._measured:
            return None
        units, seconds = self._measured[stage.kind]
        return seconds / units * stage.units

    def _note(self, stage: Stage) -> str:
        seconds = self._seconds(stage)
        return " (done)" if stage.done else "" if seconds is None else f" (about {in_minutes(seconds)})"

    def _time_left(self) -> str:
        waiting = [stage for stage in self._stages.values() if not stage.done]
        known = self._span([(stage, seconds) for stage in waiting if (seconds := self._seconds(stage)) is not None])
        unknown = [stage.kind for stage in waiting if self._seconds(stage) is None]
        unknown = [kind for kind in unknown if kind != "report"]  # short
        if not unknown:
            return f"about {in_minutes(known)} left in all"
        kinds = ", ".join(f"{unknown.count(kind)} × {kind}" for kind in dict.fromkeys(unknown))
        return (
            f"about {in_minutes(known)} left and what is not measured yet ({kinds})"
            if known
            else (f"time left is known once one of each kind has run ({kinds})")
        )

    def _span(self, waiting: Sequence[tuple[Stage, float]]) -> float:
        """Seconds until all of these are done, if each chain starts when one of the jobs is free."""
        chains: dict[str, float] = {}
        for stage, seconds in waiting:
            running = time.monotonic() - self._started[stage.name] if stage.name in self._started else 0.0
            chains[stage.chain] = chains.get(stage.chain, 0.0) + max(seconds - running, 0.0)
        last = chains.pop("", 0.0)
        busy = [0.0] * self._jobs
        for seconds in chains.values():
            heapq.heapreplace(busy, busy[0] + seconds)
        return max(busy) + last


def planned(layout: Layout, training_of: Callable[[str], DiTTrainConfig]) -> list[Stage]:
    """The stages of a comparison in the order in which they run.

    `training_of` gives an arm's training of transformers, before any shift is chosen.
    """
    config, stages = layout.config, []
    searched: set[str] = set()
    steps = config.transformer.max_steps
    for member, trainings in layout.trainings.items():
        label = layout.label(member)
        for number, training in enumerate(trainings if member.arm not in layout.given else (), 1):
            name = f"autoencoder {layout.training_label(member, number)}"
            done = layout.trained(member, number).exists()
            stages.append(Stage("autoencoder", name, training.max_steps, done, label))
        stages.append(Stage("latents", f"latents {label}", done=layout.encoded(member).exists(), chain=label))
        for shift in () if member.arm in searched else config.shifts:
            name = transformer_name(label, config.shift_seed, shift)
            stages.append(Stage("transformer", name, steps, chain=label))
        searched.add(member.arm)
        for seed in config.seeds:
            known = None if config.shifts else layout.known_transformer(member, training_of(member.arm), seed)
            done = known is not None and known.exists()
            stages.append(Stage("transformer", transformer_name(label, seed), steps, done, label))
    return [*stages, Stage("report", "report")]


def transformer_name(label: str, seed: int, shift: float | None = None) -> str:
    """The name of a transformer's stage; shift: the timestep shift that it tries, None for a final transformer."""
    return f"transformer {label}, seed {seed}" + ("" if shift is None else f", shift {shift:g}")


def in_minutes(seconds: float) -> str:
    """`1 min`, `45 min`, `3 h 20 min`."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
