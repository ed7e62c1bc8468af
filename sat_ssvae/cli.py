"""The command line: `sat-ssvae compare`, `train` and `pack`; each has --help."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from .config import load_config, read_yaml
from .errors import UserError
from .progress import setup_logging

logger = logging.getLogger(__name__)

DEFAULT_ARMS = ("stock=stock", "ssvae=ssvae")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit status. Mistakes of the user are one line on stderr, status 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # key=value settings may stand anywhere, argparse takes positional arguments in one place only.
    if unknown := [argument for argument in rest if argument.startswith("-") or "=" not in argument]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides += rest
    setup_logging(options.verbose)
    options.command_line = shlex.join(["sat-ssvae", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        options.run(options)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, "interrupted; the same command continues where it stopped\n")
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        parser.exit(2, f"error: {where}{error.strerror}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sat-ssvae", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="also show debug messages")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_train(commands)
    _add_pack(commands)
    return parser


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare", help="does diffusion converge faster on one autoencoder's latents than on another's?"
    )
    command.set_defaults(run=_compare)
    command.add_argument("--preset", choices=["smoke", "default", "full"], default="default", help="size of the run")
    command.add_argument("--config", type=Path, help="a whole configuration of your own instead of a preset")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="your videos or shards, instead of the demo's; with DIR/train and "
        "DIR/heldout those are used, else a tenth of the videos is held out"
    )  # fmt: skip
    command.add_argument(
        "--vae",
        action="append",
        default=[],
        metavar="NAME=CONFIG[:CHECKPOINT]",
        help="an arm instead of the preset's; the first is the baseline. CONFIG is a YAML file with settings of "
        f"`sat-ssvae train`, or one of: {', '.join(_packaged_arms())}",
    )
    command.add_argument("--output", type=Path, default=Path("runs/compare"), help="folder (default: %(default)s)")
    _add_overrides(command)


def _add_train(commands: Any) -> None:
    command = commands.add_parser("train", help="train an autoencoder")
    command.set_defaults(run=_train)
    command.add_argument("--config", type=Path, required=True, help="YAML file, or the name of a packaged one")
    command.add_argument("--name", required=True, help="the run's name: its folder in --output")
    command.add_argument("--output", type=Path, default=Path("runs"), help="folder (default: %(default)s)")
    _add_overrides(command)


def _add_pack(commands: Any) -> None:
    command = commands.add_parser("pack", help="pack videos into WebDataset shards with their meta files")
    command.set_defaults(run=_pack)
    command.add_argument("inputs", type=Path, nargs="+", help="videos, folders of them, or a CSV (path,caption,...)")
    command.add_argument("--output", type=Path, required=True, help="folder for the shards")
    _add_overrides(command)


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the configuration's")


def _compare(options: argparse.Namespace) -> None:
    from .convergence.experiment import compare
    from .convergence.settings import ClipSource, CompareConfig
    from .convergence.summary import summary_table
    from .distributed import default_device

    path = options.config or packaged(f"compare_{options.preset}.yaml")
    arms = options.vae or ([] if options.config else DEFAULT_ARMS)
    config = load_config(CompareConfig, path, options.overrides, replace={"arms": _arms(arms)} if arms else {})
    clips = ClipSource.of_user(options.data) if options.data else None
    results = compare(config, options.output, default_device(), options.command_line, clips)
    sys.stdout.write(f"{summary_table(results)}\n\nreport: {options.output / 'report' / 'report.html'}\n")


def _train(options: argparse.Namespace) -> None:
    from .distributed import default_device, initialize, rank
    from .training.trainer import TrainConfig, train

    config = load_config(TrainConfig, _find(options.config), options.overrides)
    device = default_device()
    initialize(device)
    folder = train(config, options.output / options.name, device)
    if rank() == 0:
        sys.stdout.write(f"autoencoder: {folder}\n")


def _pack(options: argparse.Namespace) -> None:
    from .data.pack import PackConfig, pack

    config = load_config(PackConfig, None, options.overrides)
    inputs = options.inputs[0] if len(options.inputs) == 1 else options.inputs
    report = pack(inputs, options.output, config)
    skipped = ", ".join(f"{count} {cause}" for cause, count in report.skipped.items()) or "nothing"
    sys.stdout.write(f"{options.output}: {report.samples} samples in {len(report.shards)} shards; skipped: {skipped}\n")


def _arms(specifications: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME=CONFIG[:CHECKPOINT]` options as the configuration's `arms` section."""
    arms: dict[str, dict[str, Any]] = {}
    for specification in specifications:
        name, equals, rest = specification.partition("=")
        if not equals or not name or not rest or name in arms:
            raise UserError(f"--vae {specification}: expected NAME=CONFIG[:CHECKPOINT] with a name of its own")
        config, _, checkpoint = rest.partition(":")
        path = packaged(f"arms/{config}.yaml") if config in _packaged_arms() else Path(config)
        arms[name] = {"settings": read_yaml(path), "checkpoint": checkpoint or None}
    return arms


def _find(path: Path) -> Path:
    """A file of the user's, or else a packaged configuration of that name."""
    return path if path.exists() else packaged(path.name if path.suffix else f"{path.name}.yaml", fallback=path)


def packaged(name: str, fallback: Path | None = None) -> Path:
    """A configuration file of the package (or `fallback` where it has none of that name)."""
    path = Path(str(resources.files(__package__) / "configs" / name))
    return path if path.exists() or fallback is None else fallback


def _packaged_arms() -> list[str]:
    return sorted(path.stem for path in packaged("arms").glob("*.yaml"))


if __name__ == "__main__":
    sys.exit(main())
