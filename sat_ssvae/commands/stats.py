"""`sat-ssvae stats`: mean and standard deviation of an autoencoder's latents on videos, stored beside its weights."""

import argparse
import sys
from typing import Any

from ..config import load_config
from .grammar import add_command, add_merge, path, working_device


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "stats",
        run,
        "measure the latents' mean and standard deviation per channel, and store them with the weights",
        'sat-ssvae stats ssvae/ --data videos/ data.num_frames=49 data.fps=8 "data.resolution=[480,720]"',
        settings="latents.statistics:StatsConfig",
    )
    command.add_argument(
        "checkpoint", type=path, metavar="VAE", help="a folder written by training or by `sat-ssvae convert`"
    )
    command.add_argument("--data", required=True, metavar="DIR", help="videos or shards")
    add_merge(command)


def run(options: argparse.Namespace) -> None:
    """Measure, write latent_stats.json, print the range."""
    from ..autoencoders.specification import KINDS, is_diffusers_folder
    from ..errors import UserError
    from ..latents.statistics import StatsConfig, measure_stats
    from ..vae.autoencoder import SSVAE
    from ..vae.checkpoint import STATISTICS_NAME, locate_checkpoint, write_stats

    if str(options.checkpoint).partition(":")[0] in KINDS or is_diffusers_folder(options.checkpoint):
        raise UserError(
            f"{options.checkpoint}: statistics are measured of an SSVAE only; diffusers' classes have theirs"
        )
    folder = locate_checkpoint(options.checkpoint)
    if not folder.is_dir():
        raise UserError(f"{folder}: the statistics go into a folder; first: sat-ssvae convert {folder} FOLDER")
    config = load_config(StatsConfig, None, options.overrides, replace={"data": {"path": options.data}})
    vae = SSVAE.from_pretrained(folder).for_inference()
    stats = measure_stats(vae, config, working_device(), folder, merged=options.merge)
    if stats is None:
        sys.stdout.write(f"{options.checkpoint}: part {config.part} is done; after all parts: the same with --merge\n")
        return
    write_stats(stats, folder / STATISTICS_NAME)
    sys.stdout.write(
        f"{options.checkpoint}: means {stats.mean.min():.3f} to {stats.mean.max():.3f}, "
        f"standard deviations {stats.std.min():.3f} to {stats.std.max():.3f} in {len(stats.mean)} channels\n"
    )
