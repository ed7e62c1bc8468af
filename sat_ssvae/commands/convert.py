"""`sat-ssvae convert`: an autoencoder's checkpoint from one form to another."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from .grammar import add_command

FORMS = ("folder", "safetensors", "torch", "sat")


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "convert",
        run,
        "convert a checkpoint between the published file, .safetensors, a folder and SAT's form",
        "sat-ssvae convert ch48_256p_15w_512p_5w.ckpt ssvae/",
    )
    command.add_argument(
        "input",
        type=Path,
        metavar="VAE",
        help="a published file, a .safetensors, a folder, or a name on the Hugging Face hub",
    )
    command.add_argument(
        "output", type=Path, metavar="OUTPUT", help="a file (.safetensors, .pth, .pt, .ckpt) or a folder"
    )
    command.add_argument("--to", choices=FORMS, help="form of the output (default: from its name)")
    command.add_argument(
        "--latent_stats",
        metavar="JSON",
        help='{"mean": [...], "std": [...]} to store with the weights, or `published`',
    )
    command.add_argument("--overwrite", action="store_true", help="replace an output that exists")


def run(options: argparse.Namespace) -> None:
    """Read, check, write; print where the result is."""
    from ..vae.autoencoder import SSVAE
    from ..vae.checkpoint import published_stats, read_stats, write_stats, write_weights

    form = options.to or _form_of(options.output)
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} exists; give --overwrite to replace it")
    vae = SSVAE.from_pretrained(options.input)
    if options.latent_stats:
        channels, source = vae.config.latent_channels, options.latent_stats
        vae.latent_stats = published_stats(channels) if source == "published" else read_stats(Path(source), channels)
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
            sys.stdout.write(f"{beside}: its latent statistics, for `sat-ssvae convert ... --latent_stats`\n")
    sys.stdout.write(f"{options.output}: {form}, {sum(p.numel() for p in vae.parameters()) / 1e6:.1f} M parameters\n")


def _form_of(output: Path) -> str:
    suffixes = {".safetensors": "safetensors", ".pth": "torch", ".pt": "torch", ".ckpt": "torch", "": "folder"}
    if output.suffix not in suffixes:
        raise UserError(f"{output}: name a folder, a .safetensors or a .ckpt, or say --to FORM ({', '.join(FORMS)})")
    return suffixes[output.suffix]
