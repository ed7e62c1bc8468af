"""`sat-ssvae encode`: the latents of videos, once, for training a diffusion model."""

import argparse
import sys
from typing import Any

from ..config import load_config
from .grammar import add_command, add_merge, path, working_device


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "encode",
        run,
        "encode videos once, to train a diffusion model on their latents",
        'sat-ssvae encode ssvae/ shards/ latents/ data.num_frames=49 data.fps=8 "data.resolution=[480,720]"',
        settings="latents.shards:EncodeConfig",
    )
    command.add_argument("vae", metavar="VAE", help="an SSVAE's folder with latent_stats.json, or KIND:PATH_OR_ID")
    command.add_argument("videos", metavar="DATA", help="shards, or a folder of videos")
    command.add_argument("output", type=path, metavar="DIR", help="for the latents; an interrupted run continues there")
    add_merge(command)


def run(options: argparse.Namespace) -> None:
    """Encode, on every rank of the launcher; print how many clips there are."""
    from ..autoencoders.specification import open_autoencoder
    from ..distributed import initialize, rank
    from ..latents.shards import EncodeConfig, encode_shards

    config = load_config(EncodeConfig, None, options.overrides, replace={"data": {"path": options.videos}})
    vae = open_autoencoder(options.vae)
    device = working_device()
    initialize(device)
    encoded = encode_shards(vae, config, options.output, device, merged=options.merge)
    if rank() == 0:
        sys.stdout.write(f"{options.output}: {encoded.clips} clips, {encoded.captions} with a caption\n")
