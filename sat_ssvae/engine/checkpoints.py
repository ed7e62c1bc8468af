"""Checkpoints of DeepSpeed engines that are complete or absent, even if the process or its machine dies.

save_checkpoint(engine, folder, 1000, {"skipped": 0})
state = load_checkpoint(engine, folder)     # None if there is none
"""

import logging
import pickle
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import distributed
from ..errors import UserError, first_line
from ..storage import atomic, sync

logger = logging.getLogger(__name__)

LATEST = "latest.pth"
"""The weights alone, beside the checkpoints' folder, for runs that write them with `save_weights`."""
NEWS = 70.0
"""Seconds after which every host sees a new path: NFS may cache its absence for up to a minute."""


def save_checkpoint(
    engine: Any,
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    others: Mapping[str, Any] | None = None,
    keep: int = 1,
    milestone_every: int = 0,
) -> None:
    """Write `folder/step_N` (weights, optimiser, schedule and `state`), then delete old ones; every rank must call it.

    It is written under another name, flushed to the disk and renamed when complete: a killed process, a machine that
    dies or a full disk leaves the previous checkpoint in place.

    `state` is everything else that is needed to continue; `others` are further engines by name, saved in
    subfolders. The `keep` newest checkpoints stay, and those at multiples of `milestone_every` steps (0 for none).

    Raises:
        UserError: it cannot be written.
    """
    partial, complete = folder / f"step_{step}.partial", folder / f"step_{step}"
    if distributed.rank() == 0:
        for leftover in folder.glob("step_*.partial"):  # of a killed process; they take up space
            shutil.rmtree(leftover)
    distributed.barrier()
    _write(partial, engine, others or {}, {**state, "step": step, "world_size": distributed.world_size()})
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(complete, ignore_errors=True)
        partial.replace(complete)
        sync(folder)
        _drop_old(folder, step, keep, milestone_every)
    distributed.barrier()


def _write(partial: Path, engine: Any, others: Mapping[str, Any], state: dict[str, Any]) -> None:
    try:
        engine.save_checkpoint(str(partial.parent), tag=partial.name, client_state=state, save_latest=False)
        for name, other in others.items():
            other.save_checkpoint(str(partial), tag=name, save_latest=False)
        sync(*partial.rglob("*"), partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if distributed.lost_rank(error):
            raise
        raise UserError(
            f"{partial}: the checkpoint cannot be written ({first_line(error)}); make room and give "
            "the same command again, it continues from the last complete one"
        ) from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights alone as a torch file of plain tensors; it replaces an earlier one when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    try:
        with atomic(path, durable=True) as partial:
            torch.save(weights, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({first_line(error)}); make room") from error


def _drop_old(folder: Path, newest: int, keep: int, milestone_every: int) -> None:
    """Delete all but the `keep` newest checkpoints and the milestones."""
    steps = sorted(step for step in complete_steps(folder) if step <= newest)
    for step in steps[:-keep]:
        if not milestone_every or step % milestone_every:
            remove_checkpoint(folder / f"step_{step}")


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint, complete or partial."""
    if path.suffix != ".partial":
        # Renamed first: a checkpoint that is half deleted must not count as complete.
        path = path.replace(path.with_name(f"{path.name}.partial"))
    shutil.rmtree(path)


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, unordered."""
    names = [path.name.removeprefix("step_") for path in folder.glob("step_*")]
    return [int(name) for name in names if name.isdigit()]


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any] | None:
    """Restore the newest complete checkpoint; every rank must call it.

    Returns:
        Its state, with the `step` it was saved at, or None if there is no checkpoint.

    Raises:
        UserError: the ranks see different folders, another number of ranks saved it, or it is damaged.
    """
    shared = _shared(folder)
    step = max(complete_steps(folder), default=0)
    seen = torch.full((), step, dtype=torch.float64, device=engine.device)
    differs = float(distributed.mean_over_ranks(seen)) != step
    if distributed.any_rank(differs or not shared, engine.device):
        raise UserError(f"{folder}: not all hosts see the same folder; put the run on a file system they share")
    if not step:
        return None
    newest = folder / f"step_{step}"
    ranks = distributed.world_size()
    shares = len(list(newest.glob("*zero_pp_rank_*_optim_states.pt")))
    if shares not in (0, ranks):
        raise UserError(
            f"{newest}: {shares} processes saved it, each its share of the optimiser state (zero_stage above 0); "
            f"continue with {shares} processes instead of {ranks}"
        )
    state = _load(engine, newest, newest)
    if state.get("world_size", ranks) != ranks:
        logger.warning("%d processes instead of %d: batches differ from before", ranks, state["world_size"])
    logger.info("continuing from %s", newest)
    return state


def _shared(folder: Path) -> bool:
    """Whether this rank sees files of the first one; every rank must call it.

    Otherwise each host would write its share of a checkpoint to a different folder, and none would be complete.
    """
    if distributed.world_size() == 1:
        return True
    mark = folder / "seen_by_all_ranks"
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    distributed.barrier()
    deadline = time.monotonic() + NEWS
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    distributed.barrier()
    if distributed.rank() == 0:
        mark.unlink()
    return seen


def load_other(engine: Any, folder: Path, step: int, name: str) -> None:
    """Restore one of the `others` of `save_checkpoint`.

    Raises:
        UserError: it is damaged.
    """
    checkpoint = folder / f"step_{step}"
    _load(engine, checkpoint / name, checkpoint)


def _load(engine: Any, path: Path, checkpoint: Path) -> dict[str, Any]:
    """Restore an engine from `path`: the folder `checkpoint` or one inside it."""
    try:
        found, state = engine.load_checkpoint(str(path.parent), tag=path.name)
        if found is None:
            raise FileNotFoundError("no weights in it")
    except torch.OutOfMemoryError:
        raise
    # A damaged file can raise almost anything; DeepSpeed asserts that files exist.
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, AssertionError, pickle.UnpicklingError) as error:
        if distributed.lost_rank(error):
            raise
        earlier = [step for step in complete_steps(checkpoint.parent) if f"step_{step}" != checkpoint.name]
        then = f"continues from step {max(earlier)}" if earlier else "starts over"
        latest = checkpoint.parent.with_name(LATEST)
        kept = f"; {latest} still has the weights, for resume_from under another name" if latest.exists() else ""
        raise UserError(
            f"{path}: cannot be read ({(str(error) or 'files are missing').splitlines()[0]}); if it is damaged, delete "
            f"{checkpoint}, and the run {then}{kept}"
        ) from error
    return dict(state)
