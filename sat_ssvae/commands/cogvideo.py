"""`sat-ssvae cogvideo`: configurations and transformers of CogVideoX for SSVAE's latents."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError


def add(commands: Any) -> None:
    """Add the command's parser, with a command for each task."""
    command = commands.add_parser("cogvideo", help="check configurations and adapt transformers of CogVideoX")
    tasks = command.add_subparsers(required=True, metavar="TASK")

    check = tasks.add_parser("check", help="do the numbers of the merged configuration fit together?")
    check.set_defaults(run=run_check)
    _add_base(check)
    check.add_argument("--era", choices=["v1.0", "main"], help="CogVideoX's state (default: told by patch_size's form)")

    adapt = tasks.add_parser("adapt", help="copy a transformer without the tensors that other latents change")
    adapt.set_defaults(run=run_adapt)
    adapt.add_argument("transformer", type=Path, help="folder with CogVideoX's transformer, which holds `latest`")
    adapt.add_argument("output", type=Path, help="folder to write; name it as args.load")
    _add_base(adapt)


def run_check(options: argparse.Namespace) -> None:
    """Print what does not fit, if anything."""
    from ..cogvideo.check import check, merge

    findings = check(merge(options.base), options.era)
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    if findings:
        raise UserError(f"{len(findings)} of the settings do not fit; put right the lines above in an overlay")
    sys.stdout.write("everything fits\n")


def run_adapt(options: argparse.Namespace) -> None:
    """Copy, and print what was left out."""
    from ..cogvideo.check import Settings, merge
    from ..cogvideo.transformer import adapt

    for name, found, needed in adapt(options.transformer, options.output, Settings(merge(options.base)).transformer()):
        sys.stdout.write(f"left out {name}: {found}, needed {needed}; training starts it afresh\n")
    sys.stdout.write(f"{options.output}: name it as args.load\n")


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base", type=Path, nargs="+", required=True, help="configuration files, as given to train_video.py"
    )
