"""`sat-ssvae train`: train an autoencoder."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import find_config, load_config
from ._imports import uncollected
from .grammar import add_command, working_device


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "train",
        run,
        "train an autoencoder, or continue an interrupted training",
        "sat-ssvae train --config ch48_LCR_LMR_256p --name stage1 data.path=shards/",
        "sat-ssvae train --config ch48_LCR_LMR_512p --name stage2 --freeze_encoder True --resume_from "
        "runs/stage1/latest.pth data.path=shards/",
        settings="training.settings:TrainConfig",
    )
    command.add_argument("--config", type=Path, required=True, metavar="YAML", help="a file, or a packaged one's name")
    command.add_argument("--name", required=True, help="the run's name: its folder in --output")
    command.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    # The article writes these two as flags; like all settings they are key=value as well.
    command.add_argument("--resume_from", metavar="PATH", help="weights of an earlier stage")
    command.add_argument("--freeze_encoder", metavar="True", help="train the decoder only")


def run(options: argparse.Namespace) -> None:
    """Train, or continue training; print where the autoencoder is."""
    with uncollected():
        from ..distributed import initialize, rank
        from ..training.trainer import TrainConfig, train

    flags = {name: getattr(options, name) for name in ("resume_from", "freeze_encoder")}
    overrides = [*options.overrides, *(f"{name}={value}" for name, value in flags.items() if value is not None)]
    config = load_config(TrainConfig, find_config(options.config, compared=False), overrides)
    device = working_device()
    initialize(device)
    folder = train(config, options.output / options.name, device)
    if rank() == 0:
        sys.stdout.write(f"autoencoder: {folder}\n")
