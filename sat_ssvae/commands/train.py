"""`sat-ssvae train`: train an autoencoder."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import find_config, load_config
from ._options import add_overrides


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("train", help="train an autoencoder")
    command.set_defaults(run=run)
    command.add_argument("--config", type=Path, required=True, help="YAML file, or the name of a packaged one")
    command.add_argument("--name", required=True, help="the run's name: its folder in --output")
    command.add_argument("--output", type=Path, default=Path("runs"), help="folder (default: %(default)s)")
    # The published article writes these two like that; they are key=value settings as well.
    command.add_argument("--resume_from", "--resume-from", metavar="PATH", help="weights of an earlier stage")
    command.add_argument("--freeze_encoder", "--freeze-encoder", metavar="True", help="train the decoder alone")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Train, or continue training; print where the autoencoder lies."""
    from ..distributed import default_device, initialize, rank
    from ..training.trainer import TrainConfig, train

    flags = {name: getattr(options, name) for name in ("resume_from", "freeze_encoder")}
    overrides = [*options.overrides, *(f"{name}={value}" for name, value in flags.items() if value is not None)]
    config = load_config(TrainConfig, find_config(options.config), overrides)
    device = default_device()
    initialize(device)
    folder = train(config, options.output / options.name, device)
    if rank() == 0:
        sys.stdout.write(f"autoencoder: {folder}\n")
