"""`sat-ssvae runs`: the trainings and comparisons in a folder."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._table import aligned
from .grammar import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "runs",
        run,
        "list trainings and comparisons with step, state, size and last score",
        "sat-ssvae runs",
        "sat-ssvae runs runs/stage1 --clean",
    )
    command.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    command.add_argument(
        "--clean",
        action="store_true",
        help="delete checkpoints that are not needed to continue: all of finished runs, of interrupted ones all but "
        "the newest; milestones, results and what is running are left alone",
    )


def run(options: argparse.Namespace) -> None:
    """Print the table; with --clean delete, and say what and how much."""
    from ..comparison.runs import clean, list_runs, size_of

    runs = list_runs(options.folder)
    if not runs:
        raise UserError(f"{options.folder}: neither a training nor a comparison in it; give the folder of the runs")
    rows = [["run", "kind", "step", "state", "size", "unneeded", "last score"]]
    for one in runs:
        unneeded = in_bytes(sum(map(size_of, one.unneeded)))
        rows.append([str(one.folder), one.kind, one.step, one.state, in_bytes(one.size), unneeded, one.score])
    sys.stdout.write(aligned(rows, right=False))
    if not options.clean:
        return
    total = 0
    for one in (one for one in runs if one.unneeded):
        try:
            deleted = clean(one)
        except UserError as error:  # started since it was listed
            sys.stdout.write(f"left alone: {error}\n")
            continue
        total += (freed := sum(deleted.values()))
        names = ", ".join(str(path.relative_to(one.folder)) for path in deleted)
        sys.stdout.write(f"{one.folder}: deleted {names} ({in_bytes(freed)})\n")
    for one in (one for one in runs if one.state in ("running", "unknown")):
        sys.stdout.write(f"{one.folder}: left alone, it {'is' if one.state == 'running' else 'may be'} running\n")
    sys.stdout.write(f"deleted {in_bytes(total)} in all\n")


def in_bytes(count: int) -> str:
    """A number of bytes for people."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
