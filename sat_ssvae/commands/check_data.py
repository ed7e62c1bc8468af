"""`sat-ssvae check-data`: read all of a data set and report what training would not use."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ._options import add_overrides

EXAMPLES = 5


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("check-data", help="read all of a data set, report what training would not use")
    command.set_defaults(run=run)
    command.add_argument("path", help="shards or videos, as in data.path")
    command.add_argument("--output", type=Path, default=Path(), help="folder for skipped.jsonl (default: here)")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Read everything; print counts, causes, and where the list lies."""
    from ..data.check import check_data
    from ..data.settings import DataConfig
    from ..data.skips import SkipLog, printable, read_skips

    config = load_config(DataConfig, None, [f"path={options.path}", *options.overrides])
    listing = options.output / "skipped.jsonl"
    known = len(read_skips(listing))
    report = check_data(config, SkipLog(listing, max_share=1))
    lines = [f"{report.clips} clips of {report.samples} samples can be used, {report.captions} samples have a caption"]
    lines += [f"{count:8d} left out: {cause}" for cause, count in report.skipped.items()]
    new = read_skips(listing)[known:]
    lines += [f"         such as {skip['source']}: {skip['cause']} ({skip['detail']})" for skip in new[:EXAMPLES]]
    if report.skipped:
        lines.append(f"all of them: {listing}")
    sys.stdout.write(printable("\n".join(lines) + "\n"))
