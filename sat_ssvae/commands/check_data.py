"""`sat-ssvae check-data`: read all of a data set and report what training would not use."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ._options import add_command

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
    command.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="for skipped.jsonl (default: here)")


def run(options: argparse.Namespace) -> None:
    """Read everything; print counts, causes, and the path of the list."""
    from ..data.check import CheckConfig, check_data
    from ..data.skips import SkipLog, printable, read_skips

    config = load_config(CheckConfig, None, options.overrides, replace={"data": {"path": options.path}})
    listing = options.output / "skipped.jsonl"
    known = len(read_skips(listing))
    report = check_data(config.data, SkipLog(listing, max_share=1))
    lines = [f"{report.clips} clips of {report.samples} samples can be used, {report.captions} samples have a caption"]
    lines += [f"{count:8d} left out: {cause}" for cause, count in report.skipped.items()]
    new = read_skips(listing)[known:]
    lines += [f"         such as {skip['source']}: {skip['cause']} ({skip['detail']})" for skip in new[:EXAMPLES]]
    if report.skipped:
        lines.append(f"all of them: {listing}")
    sys.stdout.write(printable("\n".join(lines) + "\n"))
