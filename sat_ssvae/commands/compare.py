"""`sat-ssvae compare`: does diffusion converge faster on one autoencoder's latents than on another's?"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import find_config, load_config, packaged, read_yaml
from ..errors import UserError, did_you_mean
from ..vae.hub import WEIGHT_SUFFIXES
from .grammar import add_command, working_device

DEFAULT_ARMS = ("stock=stock", "ssvae=ssvae")


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "compare",
        run,
        "measure whether diffusion converges faster on one autoencoder's latents than on another's",
        "sat-ssvae compare --data my_videos/",
        "sat-ssvae compare --vae stock=stock --vae lcr=lcr --output runs/ablation data.resolution=64",
        settings="comparison.settings:CompareConfig",
    )
    command.add_argument("--preset", choices=["smoke", "default", "full"], default="default", help="size of the run")
    command.add_argument("--config", type=Path, metavar="YAML", help="a file instead of a preset, as `init` writes it")
    command.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="your videos or shards instead of the demo's; DIR/train and DIR/heldout are used if they exist, otherwise "
        "a tenth of the videos is held out",
    )
    command.add_argument(
        "--vae",
        action="append",
        default=[],
        metavar="NAME=CONFIG[:CHECKPOINT]",
        help="an arm instead of the preset's; the first is the baseline. CONFIG is a YAML file with settings of "
        f"`sat-ssvae train`, or one of {', '.join(_packaged_arms())}. NAME=VAE trains nothing: VAE is the path of an "
        "SSVAE or KIND:PATH_OR_ID (docs/autoencoders.md)",
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> None:
    """Run the experiment and print its summary."""
    from ..comparison.experiment import compare
    from ..comparison.settings import ClipSource, CompareConfig
    from ..comparison.verdict import summary_table

    path = packaged(f"compare_{options.preset}.yaml")
    if options.config:
        path = find_config(options.config, compared=True)
    arms = options.vae or ([] if options.config else DEFAULT_ARMS)
    config = load_config(CompareConfig, path, options.overrides, replace={"arms": parse_arms(arms)} if arms else {})
    clips = ClipSource.of_user(options.data) if options.data else None
    results, verdicts = compare(config, options.output, working_device(), options.command_line, clips)
    sys.stdout.write(f"{summary_table(results, verdicts)}\n\nreport: {options.output / 'report' / 'report.html'}\n")


def parse_arms(specifications: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME=CONFIG[:CHECKPOINT]` or `NAME=VAE` options as the configuration's `arms` section."""
    from ..autoencoders.specification import KINDS

    arms: dict[str, dict[str, Any]] = {}
    for specification in specifications:
        name, equals, rest = specification.partition("=")
        if not equals or not name or not rest or name in arms:
            raise UserError(
                f"--vae {specification}: expected NAME=CONFIG[:CHECKPOINT] or NAME=VAE with a name of its own"
            )
        config, _, checkpoint = rest.partition(":")
        if config in KINDS or Path(rest).is_dir() or (Path(rest).suffix in WEIGHT_SUFFIXES and not checkpoint):
            arms[name] = {"checkpoint": rest}
            continue
        path = packaged(f"arms/{config}.yaml") if config in _packaged_arms() else Path(config)
        if not path.suffix and not path.exists():
            known = f"configurations are {', '.join(_packaged_arms())}, kinds of VAE are {', '.join(KINDS)}"
            hint = did_you_mean(config, [*_packaged_arms(), *KINDS], known)
            raise UserError(f"--vae {specification}: `{config}` is no file and not packaged, {hint}")
        values = read_yaml(path)
        stages = values.pop("stages", [])
        arms[name] = {"settings": values, "stages": stages, "checkpoint": checkpoint or None}
    return arms


def _packaged_arms() -> list[str]:
    return sorted(path.stem for path in packaged("arms").glob("*.yaml"))
