"""`sat-ssvae pack`: pack videos into WebDataset shards with their meta files."""

import argparse
import sys
from typing import Any

from ..config import load_config
from .grammar import add_command, add_merge, path


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "pack",
        run,
        "pack videos into WebDataset shards with their meta files",
        "sat-ssvae pack my_videos/ --output shards/ segment_seconds=5",
        "sat-ssvae pack my_videos/ --output shards/ engine=ray ray_address=auto",
        "sat-ssvae pack my_videos/ --output shards/ part=3/16",
        "sat-ssvae pack --merge --output shards/",
        settings="data.convert:PackConfig",
    )
    command.add_argument(
        "inputs", type=path, nargs="*", metavar="VIDEOS", help="videos, folders of them, CSV files (path,caption,...)"
    )
    add_merge(command)
    command.add_argument("--output", type=path, required=True, metavar="DIR", help="for the shards")


def run(options: argparse.Namespace) -> None:
    """Pack and print what was packed and skipped."""
    from ..data.convert import PackConfig
    from ..data.pack import merge, pack
    from ..errors import UserError

    if options.merge:
        if options.inputs or options.overrides:
            raise UserError("--merge needs neither videos nor settings: sat-ssvae pack --merge --output DIR")
        report = merge(options.output)
    elif not options.inputs:
        raise UserError("no videos given: sat-ssvae pack VIDEOS --output DIR")
    else:
        config = load_config(PackConfig, None, options.overrides)
        report = pack(options.inputs[0] if len(options.inputs) == 1 else options.inputs, options.output, config)
    skipped = ", ".join(f"{count} {cause}" for cause, count in report.skipped.items()) or "nothing"
    samples = f"{report.samples} samples, {report.captions} with a caption, in {len(report.shards)} shards"
    sys.stdout.write(f"{options.output}: {samples}; skipped: {skipped}\n")
