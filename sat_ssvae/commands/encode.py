"""`sat-ssvae encode`: the latents of videos, once, for training a diffusion model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ._options import add_overrides


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("encode", help="encode videos once, for training a diffusion model on their latents")
    command.set_defaults(run=run)
    command.add_argument("vae", help="an SSVAE's folder with latent_stats.json, or KIND:PATH_OR_ID, see README")
    command.add_argument("videos", help="shards, or a folder of videos")
    command.add_argument("output", type=Path, help="folder for the latents; an interrupted run goes on there")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Encode, on every rank of the launcher; print how many clips there are."""
    from ..autoencoders.foreign import open_autoencoder
    from ..distributed import default_device, initialize, rank
    from ..latents.shards import EncodeConfig, encode_shards

    config = load_config(EncodeConfig, None, options.overrides, replace={"data": {"path": options.videos}})
    vae = open_autoencoder(options.vae)
    device = default_device()
    initialize(device)
    clips = encode_shards(vae, config, options.output, device)
    if rank() == 0:
        sys.stdout.write(f"{options.output}: {clips} clips\n")
