"""`sat-ssvae spectrum`: what the latents of autoencoders look like to a diffusion model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ..errors import UserError
from ._options import add_overrides
from ._table import aligned


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("spectrum", help="what the latents of autoencoders look like to a diffusion model")
    command.set_defaults(run=run)
    command.add_argument(
        "--vae",
        action="append",
        required=True,
        metavar="NAME=VAE",
        help="an autoencoder: an SSVAE's path or KIND:PATH_OR_ID, see README; any number of them",
    )
    command.add_argument("--data", required=True, metavar="DIR", help="videos or shards")
    command.add_argument("--output", type=Path, default=Path("runs/spectrum"), help="folder (default: %(default)s)")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Measure all autoencoders on the same clips; write the page and print the table."""
    from ..autoencoders.foreign import open_autoencoder
    from ..distributed import default_device
    from ..evaluation.spectra import SpectraConfig, load_clips, measure_latents
    from ..evaluation.spectra_page import SpectraResults, table, write_spectra

    places = _places(options.vae)
    config = load_config(SpectraConfig, None, [f"data.path={options.data}", *options.overrides])
    clips = load_clips(config)
    device = default_device()
    arms = tuple(measure_latents(name, open_autoencoder(at), clips, config, device) for name, at in places.items())
    size = "×".join(map(str, clips.shape[2:]))
    measurement = {
        "clips": f"{len(clips)} of {size} at {config.data.fps:g} fps from {options.data}",
        "decoded from disturbed latents": str(min(config.disturbed_clips, len(clips))),
        "autoencoders": ", ".join(options.vae),
    }
    results = SpectraResults(arms, measurement, options.command_line)
    page = write_spectra(results, options.output)
    sys.stdout.write(f"{aligned(table(results))}\npage: {page}\n")


def _places(specifications: list[str]) -> dict[str, str]:
    """Autoencoders by name."""
    places: dict[str, str] = {}
    for specification in specifications:
        name, equals, place = specification.partition("=")
        if not equals or not name or not place or name in places:
            raise UserError(f"--vae {specification}: expected NAME=VAE with a name of its own")
        places[name] = place
    return places
