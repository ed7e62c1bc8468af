"""`sat-ssvae pack`: pack videos into WebDataset shards with their meta files."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ._options import add_command


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "pack",
        run,
        "pack videos into WebDataset shards with their meta files",
        "sat-ssvae pack my_videos/ --output shards/ segment_seconds=5",
        settings="data.pack:PackConfig",
    )
    command.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        metavar="VIDEOS",
        help="videos, folders of them, CSV files (path,caption,...)",
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the shards")


def run(options: argparse.Namespace) -> None:
    """Pack and print what was packed and skipped."""
    from ..data.pack import PackConfig, pack

    config = load_config(PackConfig, None, options.overrides)
    inputs = options.inputs[0] if len(options.inputs) == 1 else options.inputs
    report = pack(inputs, options.output, config)
    skipped = ", ".join(f"{count} {cause}" for cause, count in report.skipped.items()) or "nothing"
    samples = f"{report.samples} samples, {report.captions} with a caption, in {len(report.shards)} shards"
    sys.stdout.write(f"{options.output}: {samples}; skipped: {skipped}\n")
