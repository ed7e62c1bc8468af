"""`sat-ssvae convert`: an autoencoder's checkpoint from one form to another."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError

FORMS = ("folder", "safetensors", "torch", "sat")


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("convert", help="convert a checkpoint: published .pth, .safetensors, folder, SAT")
    command.set_defaults(run=run)
    command.add_argument("input", type=Path, help="a published file, a .safetensors, or a folder written here")
    command.add_argument("output", type=Path, help="a file (.safetensors, .pth, .pt, .ckpt) or a folder")
    command.add_argument("--to", choices=FORMS, help="form of the output (default: as its name says)")
    command.add_argument(
        "--latent-stats", type=Path, metavar="JSON", help='{"mean": [...], "std": [...]} to put into the output folder'
    )


def run(options: argparse.Namespace) -> None:
    """Read, check, write; print where the result lies."""
    from ..vae.autoencoder import SSVAE
    from ..vae.checkpoint import read_stats, write_stats, write_weights

    form = options.to or _form_of(options.output)
    vae = SSVAE.from_pretrained(options.input)
    if options.latent_stats:
        vae.latent_stats = read_stats(options.latent_stats, vae.config.latent_channels)
    if form == "sat":
        from ..cogvideo.registry import save_sat

        save_sat(vae, options.output)
    elif form == "folder":
        vae.save_pretrained(options.output)
    else:
        write_weights(vae.state_dict(), options.output, "torch" if form == "torch" else "safetensors")
        if vae.latent_stats is not None:  # a file of weights has no place for them
            beside = options.output.with_suffix(".latent_stats.json")
            write_stats(vae.latent_stats, beside)
            sys.stdout.write(f"{beside}: its latent statistics, for `sat-ssvae convert ... --latent-stats`\n")
    sys.stdout.write(f"{options.output}: {form}, {sum(p.numel() for p in vae.parameters()) / 1e6:.1f} M parameters\n")


def _form_of(output: Path) -> str:
    suffixes = {".safetensors": "safetensors", ".pth": "torch", ".pt": "torch", ".ckpt": "torch", "": "folder"}
    if output.suffix not in suffixes:
        raise UserError(f"{output}: name a folder, a .safetensors or a .pth, or say --to FORM ({', '.join(FORMS)})")
    return suffixes[output.suffix]
