"""The trainings and comparisons in a folder: their progress, and the checkpoints that they do not need to continue.

for run in list_runs(Path("runs")):
    run.state, run.size, run.unneeded
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..engine.checkpoints import complete_steps, remove_checkpoint
from ..errors import UserError
from ..storage import read_json_lines
from ..training.run_folder import alone, is_held
from .score_files import is_scored

RunState = Literal["finished", "running", "interrupted", "unknown"]
"""`unknown` on a file system without locks: it may be running."""


@dataclass(frozen=True)
class RunStatus:
    """A training or a comparison; size: in bytes; step, score: as text."""

    folder: Path
    kind: Literal["training", "comparison"]
    step: str
    state: RunState
    size: int
    score: str
    unneeded: tuple[Path, ...]
    """Checkpoints that are not needed to continue; none while the run is, or may be, active."""


def list_runs(folder: Path) -> list[RunStatus]:
    """The runs at or below a folder, by name; those of a comparison are part of it.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the runs")
    return [_status(path) for path in _run_folders(folder)]


def clean(run: RunStatus) -> dict[Path, int]:
    """Delete what a run does not need to continue, with its folder locked; returns the bytes of each path.

    Raises:
        UserError: it has been started in the meantime.
    """
    with contextlib.ExitStack() as held:
        for folder in (run.folder, *(part for part in _parts(run.folder) if _is_training(part))):
            held.enter_context(alone(folder))
        sizes = {path: size_of(path) for path in _unneeded(run.folder)}  # may have changed since the listing
        for path in sizes:
            remove_checkpoint(path)
    return sizes


def size_of(path: Path) -> int:
    """Bytes of the files at or below a path; links count as links."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running process replaces its files
                total += (Path(place) / name).lstat().st_size
    return total


def _run_folders(folder: Path) -> Iterator[Path]:
    if _is_training(folder) or _is_comparison(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _run_folders(path)


def _is_training(folder: Path) -> bool:
    return (folder / "config.json").is_file() and ((folder / ".lock").exists() or (folder / "train.csv").exists())


def _is_comparison(folder: Path) -> bool:
    return (folder / "minutes.json").is_file()


def _parts(folder: Path) -> list[Path]:
    """The folders of a comparison's trainings: autoencoders and transformers; those of a training: none."""
    if not _is_comparison(folder):
        return []
    return sorted(path for kind in ("vae", "transformer") for path in folder.glob(f"{kind}/*") if path.is_dir())


def _status(folder: Path) -> RunStatus:
    state = _state(folder)
    unneeded = _unneeded(folder) if state in ("finished", "interrupted") else ()
    if _is_comparison(folder):
        words = _progress(folder), state, size_of(folder), _verdict(folder)
        return RunStatus(folder, "comparison", *words, unneeded)
    log, limit = _last_line(folder / "metrics.jsonl"), _json(folder / "config.json").get("max_steps", "?")
    evaluated = _last_line(folder / "evaluations.jsonl")
    score = f"PSNR {log['psnr']:.2f} dB" if "psnr" in log else ""
    score = f"held-out PSNR {evaluated['psnr']:.2f} dB" if "psnr" in evaluated else score
    return RunStatus(folder, "training", f"{log.get('step', 0)} of {limit}", state, size_of(folder), score, unneeded)


def _state(folder: Path) -> RunState:
    try:
        if any(map(is_held, (folder, *_parts(folder)))):
            return "running"
    except OSError:
        return "unknown"
    if not _is_comparison(folder):
        return "finished" if (folder / "done").exists() else "interrupted"
    report, started = folder / "report" / "results.json", folder / "minutes.json"
    # A comparison writes its report last, and its minutes again when it continues with other settings.
    finished = report.exists() and report.stat().st_mtime_ns >= started.stat().st_mtime_ns
    return "finished" if finished else "interrupted"


def _unneeded(folder: Path) -> tuple[Path, ...]:
    """Checkpoints, except the one to continue from and the milestones, of a training or a comparison's trainings."""
    return tuple(path for part in (_parts(folder) or [folder]) for path in _unneeded_checkpoints(part))


def _unneeded_checkpoints(folder: Path) -> list[Path]:
    checkpoints = folder / "checkpoints"
    steps = sorted(complete_steps(checkpoints))
    milestone = _json(folder / "config.json").get("milestone_every") or 0
    kept = {step for step in steps if milestone and step % milestone == 0}
    kept |= set() if _needs_none(folder) else set(steps[-1:])
    return [*sorted(checkpoints.glob("step_*.partial")), *(checkpoints / f"step_{n}" for n in steps if n not in kept)]


def _needs_none(folder: Path) -> bool:
    """Whether a training is finished and its result exists: an autoencoder, or a transformer with all its scores."""
    if (folder / "dit.safetensors").exists():
        path = folder / "evaluated.json"
        return path.exists() and is_scored(folder / "scores", json.loads(path.read_text(encoding="utf-8")))
    return (folder / "done").exists() and (folder / "vae").is_dir()


def _progress(folder: Path) -> str:
    """How many of the autoencoders and transformers that were begun are done."""
    words = []
    for kind, plural, result in (("vae", "autoencoders", "done"), ("transformer", "transformers", "dit.safetensors")):
        begun = [path for path in folder.glob(f"{kind}/*") if path.is_dir()]
        if begun:
            words.append(f"{plural} {sum((path / result).exists() for path in begun)} of {len(begun)}")
    return ", ".join(words)


def _verdict(folder: Path) -> str:
    """What the report concluded on each candidate, without the numbers."""
    verdict = _json(folder / "report" / "results.json").get("verdict", {})
    return "; ".join(text.partition(": ")[0] for text in verdict.values())


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _last_line(path: Path) -> dict[str, Any]:
    """The last complete line of a log; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        return next((line for line in reversed(read_json_lines(path)) if isinstance(line, dict)), {})
    return {}
