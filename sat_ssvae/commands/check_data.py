"""`sat-ssvae check-data`: read all of a data set and report what training would not use."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from .grammar import add_command, add_merge, path

EXAMPLES = 5


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "check-data",
        run,
        "read all of a data set and report what training would leave out",
        "sat-ssvae check-data shards/ data.num_frames=17 data.fps=8 data.resolution=256 data.drop_black=0.02",
        settings="data.check:CheckConfig",
    )
    command.add_argument("path", metavar="DATA", help="shards or videos, as in data.path")
    command.add_argument("--output", type=path, default=Path(), metavar="DIR", help="for skipped.jsonl (default: here)")
    add_merge(command)


def run(options: argparse.Namespace) -> None:
    """Read everything; print counts, causes, and the path of the list."""
    from ..data.check import CheckConfig, check_data
    from ..data.skips import SKIPPED_FILE, printable, read_skips

    config = load_config(CheckConfig, None, options.overrides, replace={"data": {"path": options.path}})
    listing = options.output / SKIPPED_FILE
    known = len(read_skips(listing))
    report = check_data(config, options.output, merged=options.merge)
    if report is None:
        sys.stdout.write(f"{options.output}: part {config.part} is done; after all parts: the same with --merge\n")
        return
    lines = [f"{report.clips} clips of {report.samples} samples can be used, {report.captions} samples have a caption"]
    lines += [f"{count:8d} left out: {cause}" for cause, count in report.skipped.items()]
    new = read_skips(listing)[known:]
    lines += [f"         such as {skip['source']}: {skip['cause']} ({skip['detail']})" for skip in new[:EXAMPLES]]
    if report.skipped:
        lines.append(f"all of them: {listing}")
    sys.stdout.write(printable("\n".join(lines) + "\n"))
