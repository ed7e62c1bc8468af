"""`sat-ssvae stats`: mean and standard deviation of an autoencoder's latents on videos, stored beside its weights."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ._options import add_overrides


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("stats", help="measure latent mean and std per channel and store them")
    command.set_defaults(run=run)
    command.add_argument("checkpoint", type=Path, help="a folder written by training or by `sat-ssvae convert`")
    command.add_argument("--data", required=True, help="shards or a folder of videos")
    command.add_argument("--stride", type=float, default=2.0, help="seconds between clips (default: %(default)s)")
    command.add_argument("--limit", type=int, default=2048, help="clips at most (default: %(default)s)")
    command.add_argument("--batch-size", type=int, default=4, help="clips at once (default: %(default)s)")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Measure, write latent_stats.json, print the range."""
    import torch

    from ..data.shards import DataConfig, fixed_clips
    from ..distributed import default_device
    from ..errors import UserError
    from ..progress import progress_bar
    from ..vae.autoencoder import SSVAE
    from ..vae.checkpoint import STATISTICS_NAME, write_stats
    from ..vae.statistics import StatsMeter

    if not options.checkpoint.is_dir():
        raise UserError(f"{options.checkpoint}: the statistics go into a folder; first: sat-ssvae convert FILE FOLDER")
    device = default_device()
    vae = SSVAE.from_pretrained(options.checkpoint).to(device).for_inference()
    config = load_config(DataConfig, None, options.overrides, replace={"path": options.data})
    clips = fixed_clips(config, stride=options.stride, limit=options.limit)
    meter = StatsMeter(vae.config.latent_channels)
    batch: list[torch.Tensor] = []
    with torch.no_grad():
        for clip in progress_bar(clips, "latents", "clip"):
            batch.append(clip.video)
            if len(batch) == options.batch_size:
                meter.add(vae.encode(torch.stack(batch).to(device)).mean)
                batch.clear()
        if batch:
            meter.add(vae.encode(torch.stack(batch).to(device)).mean)
    stats = meter.result()
    write_stats(stats, options.checkpoint / STATISTICS_NAME)
    sys.stdout.write(
        f"{options.checkpoint}: means {stats.mean.min():.3f} to {stats.mean.max():.3f}, "
        f"standard deviations {stats.std.min():.3f} to {stats.std.max():.3f} in {len(stats.mean)} channels\n"
    )
