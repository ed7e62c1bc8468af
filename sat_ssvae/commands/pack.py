"""`sat-ssvae pack`: pack videos into WebDataset shards with their meta files."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ._options import add_overrides


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("pack", help="pack videos into WebDataset shards with their meta files")
    command.set_defaults(run=run)
    command.add_argument("inputs", type=Path, nargs="+", help="videos, folders of them, or a CSV (path,caption,...)")
    command.add_argument("--output", type=Path, required=True, help="folder for the shards")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Pack and print what was packed and skipped."""
    from ..data.pack import PackConfig, pack

    config = load_config(PackConfig, None, options.overrides)
    inputs = options.inputs[0] if len(options.inputs) == 1 else options.inputs
    report = pack(inputs, options.output, config)
    skipped = ", ".join(f"{count} {cause}" for cause, count in report.skipped.items()) or "nothing"
    samples = f"{report.samples} samples, {report.captions} with a caption, in {len(report.shards)} shards"
    sys.stdout.write(f"{options.output}: {samples}; skipped: {skipped}\n")
