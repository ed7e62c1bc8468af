"""`sat-ssvae spectrum`: how autoencoders' latents look to a diffusion model."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ..config import load_config
from ..errors import UserError
from ._table import aligned
from .grammar import add_command, working_device


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "spectrum",
        run,
        "measure what the latents of autoencoders look like to a diffusion model",
        "sat-ssvae spectrum --vae ssvae=runs/my_vae/vae --vae wan=wan2.2:PATH --data clips/ data.resolution=256",
        settings="evaluation.spectra:SpectraConfig",
    )
    command.add_argument(
        "--vae",
        action="append",
        required=True,
        metavar="NAME=VAE",
        help="an autoencoder: the path of an SSVAE or KIND:PATH_OR_ID (docs/autoencoders.md); any number of them",
    )
    command.add_argument("--data", required=True, metavar="DIR", help="videos or shards")
    command.add_argument(
        "--output", type=Path, default=Path("runs/spectrum"), metavar="DIR", help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> None:
    """Measure all autoencoders on the same clips; write the page and print the table."""
    from ..autoencoders.specification import open_autoencoder
    from ..evaluation.spectra import SpectraConfig, load_clips, measure_latents, measure_pixels
    from ..evaluation.spectra_page import SpectraResults, numbers_table, write_spectra

    places = _places(options.vae)
    config = load_config(SpectraConfig, None, options.overrides, replace={"data": {"path": options.data}})
    autoencoders = {name: open_autoencoder(place) for name, place in places.items()}  # all before any measurement
    clips = load_clips(config)
    device = working_device()
    arms = tuple(measure_latents(name, vae, clips, config, device) for name, vae in autoencoders.items())
    size = "×".join(map(str, clips.shape[2:]))
    measurement = {
        "clips": f"{len(clips)} clips of {size} at {config.data.fps:g} fps from {options.data}",
        "decoded from disturbed latents": str(min(config.disturbed_clips, len(clips))),
        "autoencoders": ", ".join(options.vae),
    }
    named = [word for vae in options.vae for word in ("--vae", vae)]
    baseline = ["--vae", "stock=stock"] if len(arms) == 1 else []
    following = shlex.join(["sat-ssvae", "compare", *baseline, *named, "--data", options.data])
    curves = measure_pixels(clips, config)
    results = SpectraResults(arms, *curves, measurement, options.command_line, following)
    page = write_spectra(results, options.output)
    sys.stdout.write(f"{aligned(numbers_table(results))}\n{results.meaning}\npage: {page}\n")


def _places(specifications: list[str]) -> dict[str, str]:
    from ..evaluation.spectra_page import PIXELS

    places: dict[str, str] = {}
    for specification in specifications:
        name, equals, place = specification.partition("=")
        if not equals or not name or not place or name in (*places, PIXELS):
            raise UserError(f"--vae {specification}: expected NAME=VAE with a name of its own")
        places[name] = place
    return places
