"""`sat-ssvae cogvideo`: configurations and transformers of CogVideoX for SSVAE's latents."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._options import add_overrides


def add(commands: Any) -> None:
    """Add the command's parser, with a command for each task."""
    command = commands.add_parser("cogvideo", help="check configurations and adapt transformers of CogVideoX")
    tasks = command.add_subparsers(required=True, metavar="TASK")

    check = tasks.add_parser("check", help="do the numbers of the merged configuration fit together?")
    check.set_defaults(run=run_check)
    _add_base(check)
    check.add_argument("--era", choices=["v1.0", "main"], help="CogVideoX's state (default: the checkout's)")

    adapt = tasks.add_parser("adapt", help="copy a transformer without the tensors that other latents change")
    adapt.set_defaults(run=run_adapt)
    adapt.add_argument("transformer", type=Path, help="folder with CogVideoX's transformer, which holds `latest`")
    adapt.add_argument("output", type=Path, help="folder to write; name it as args.load")
    _add_base(adapt)

    compare = tasks.add_parser("compare", help="train CogVideoX on both autoencoders' latents, score, write the report")
    compare.set_defaults(run=run_compare)
    compare.add_argument("--cogvideo", type=Path, required=True, metavar="PATH", help="CogVideo, patched for SSVAE")
    compare.add_argument(
        "--stock",
        type=Path,
        nargs="+",
        required=True,
        metavar="YAML",
        help="the baseline's files, as train_video.py's --base",
    )
    compare.add_argument(
        "--ssvae",
        type=Path,
        nargs="+",
        required=True,
        metavar="YAML",
        help="overlays that follow them in the other arm",
    )
    compare.add_argument(
        "--heldout", type=Path, nargs="+", default=[], metavar="DIR", help="held-out videos (default: args.valid_data)"
    )
    compare.add_argument("--processes", type=_count, default=1, help="GPUs to train on (default: %(default)s)")
    compare.add_argument(
        "--python",
        default=shlex.quote(sys.executable),
        metavar="COMMAND",
        help="Python with CogVideo's requirements (default: this one)",
    )
    compare.add_argument("--output", type=Path, default=Path("runs/cogvideo"), help="folder (default: %(default)s)")
    add_overrides(compare)


def run_check(options: argparse.Namespace) -> None:
    """Print what does not fit, if anything, and what to know about the training videos."""
    from ..cogvideo.compatibility import find_mismatches
    from ..cogvideo.first_stage import build_first_stage
    from ..cogvideo.sat_config import SATConfig, checkout_era, merge_configs
    from ..cogvideo.training_videos import look_at_videos

    config = SATConfig(merge_configs(options.base))
    era = options.era or checkout_era(options.base)
    mismatches = find_mismatches(config, build_first_stage(config).latent_format, era)
    problems, notes = look_at_videos(config)
    for line in (*mismatches, *problems, *(f"note: {note}" for note in (*notes, *config.notes()))):
        sys.stdout.write(f"{line}\n")
    if found := len(mismatches) + len(problems):
        raise UserError(f"{found} of the settings do not fit; put right the lines above in an overlay")
    sys.stdout.write("everything fits\n")


def run_adapt(options: argparse.Namespace) -> None:
    """Copy, and print what was left out."""
    from ..cogvideo.sat_config import SATConfig, merge_configs
    from ..cogvideo.sat_transformer import adapt

    sizes = SATConfig(merge_configs(options.base)).transformer()
    for name, found, needed in adapt(options.transformer, options.output, sizes):
        sys.stdout.write(f"left out {name}: {found}, needed {needed}; training starts it afresh\n")
    sys.stdout.write(f"{options.output}: name it as args.load\n")


def run_compare(options: argparse.Namespace) -> None:
    """Run the comparison on CogVideoX's own training and print its summary."""
    from ..cogvideo.first_stage import check_patched
    from ..cogvideo.launch import Launch
    from ..cogvideo.native_arms import read_arms
    from ..cogvideo.native_comparison import CogVideoComparison, compare
    from ..comparison.summary import summary_table
    from ..config import load_config

    sat, output = _sat_folder(options.cogvideo), options.output.resolve()
    launch = Launch(_interpreter(options.python), options.processes)
    check_patched(sat)
    # key=value settings may follow a list of files.
    files = {name: [str(path) for path in getattr(options, name)] for name in ("stock", "ssvae", "heldout")}
    settings = [text for names in files.values() for text in names if "=" in text and not Path(text).exists()]
    stock, overlay, heldout = ([_find(name, sat) for name in names if name not in settings] for names in files.values())
    config = load_config(CogVideoComparison, None, [*options.overrides, *settings])
    os.chdir(sat)  # CogVideoX's scripts run there, and relative paths in its files count from there
    arms = read_arms(stock, overlay, heldout)
    results = compare(config, arms, heldout, output, launch, options.command_line)
    sys.stdout.write(f"{summary_table(results)}\n\nreport: {output / 'report' / 'report.html'}\n")


def _sat_folder(checkout: Path) -> Path:
    for folder in (checkout / "sat", checkout):
        if (folder / "train_video.py").is_file():
            return folder.resolve()
    raise UserError(f"{checkout} holds no sat/train_video.py; give the folder of a CogVideo checkout")


def _find(name: str, sat: Path) -> Path:
    """A path, as seen from here or else from CogVideoX's folder."""
    return Path(name).resolve() if Path(name).exists() else sat / name


def _interpreter(command: str) -> tuple[str, ...]:
    """The words of --python; those that are files here are so in any folder, by the name that makes an environment."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--python {command}: {error}") from None
    if not words:
        raise UserError("--python is empty; give the interpreter that has CogVideo's requirements")
    return tuple(str(Path(word).absolute()) if Path(word).is_file() else word for word in words)


def _count(text: str) -> int:
    """A number of processes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1")
    return int(text)


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base", type=Path, nargs="+", required=True, help="configuration files, as given to train_video.py"
    )
