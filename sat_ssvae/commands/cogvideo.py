"""`sat-ssvae cogvideo`: configurations and transformers of CogVideoX for SSVAE's latents."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from .grammar import add_command


def add(commands: Any) -> None:
    """Add the command's parser, with a command for each task."""
    tasks = commands.add_parser(
        "cogvideo",
        help="check CogVideoX's configurations, adapt its transformers, compare on its own training",
        description="CogVideoX with SSVAE's latents.",
        epilog="example:\n  sat-ssvae cogvideo check --help",
    ).add_subparsers(metavar="TASK")
    check = add_command(
        tasks,
        "check",
        run_check,
        "check that the numbers of CogVideoX's merged configuration fit its latents",
        "sat-ssvae cogvideo check --base configs/cogvideox_2b.yaml configs/sft.yaml cogvideox_2b_5b.yaml",
    )
    _add_base(check)
    check.add_argument("--era", choices=["v1.0", "main"], help="CogVideoX's version (default: the checkout's)")
    adapt = add_command(
        tasks,
        "adapt",
        run_adapt,
        "copy a transformer without the tensors whose shapes depend on the latents",
        "sat-ssvae cogvideo adapt CogVideoX-2b-sat/transformer transformer_48 --base CONFIG.yaml OVERLAY.yaml",
    )
    help_of_input = "folder with CogVideoX's transformer, which holds `latest`"
    adapt.add_argument("transformer", type=Path, metavar="TRANSFORMER", help=help_of_input)
    adapt.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write; name it as args.load")
    _add_base(adapt)
    _add_export(tasks)
    _add_compare(tasks)


def _add_export(tasks: Any) -> None:
    command = add_command(
        tasks,
        "export",
        run_export,
        "write a transformer trained on SSVAE's latents as a pipeline of diffusers",
        "sat-ssvae cogvideo export ckpts/lora-disney-11-28-20-00 pipeline",
        "sat-ssvae cogvideo export ckpts/lora-disney-11-28-20-00/1000-ema pipeline",
    )
    help_of_input = "folder that training saved to, or one iteration's below it"
    command.add_argument("transformer", type=Path, metavar="TRANSFORMER", help=help_of_input)
    help_of_output = "folder to write, for CogVideoXPipeline.from_pretrained"
    command.add_argument("output", type=Path, metavar="OUTPUT", help=help_of_output)
    command.add_argument(
        "--base", type=Path, nargs="+", metavar="YAML", help="configuration files (default: its training_config.yaml)"
    )
    command.add_argument(
        "--text_encoder", metavar="DIR", help="T5 and its tokenizer, or none (default: the configuration's)"
    )


def _add_compare(tasks: Any) -> None:
    command = add_command(
        tasks,
        "compare",
        run_compare,
        "train CogVideoX on both autoencoders' latents, score both, and write the report",
        "sat-ssvae cogvideo compare --cogvideo CogVideo --stock configs/cogvideox_2b.yaml configs/sft.yaml "
        "--ssvae cogvideox_2b_5b.yaml evaluations=8",
        settings="cogvideo.native_comparison:CogVideoComparison",
    )
    command.add_argument("--cogvideo", type=Path, required=True, metavar="PATH", help="CogVideo, patched for SSVAE")
    yaml_files: dict[str, Any] = {"type": Path, "nargs": "+", "required": True, "metavar": "YAML"}
    command.add_argument("--stock", **yaml_files, help="the baseline's files, as for train_video.py's --base")
    command.add_argument("--ssvae", **yaml_files, help="overlays that follow them in the other arm")
    command.add_argument(
        "--heldout", type=Path, nargs="+", default=[], metavar="DIR", help="held-out videos (default: args.valid_data)"
    )
    command.add_argument(
        "--processes", type=_count, default=1, metavar="GPUS", help="GPUs to train on (default: %(default)s)"
    )
    command.add_argument(
        "--python",
        default=shlex.quote(sys.executable),
        metavar="COMMAND",
        help="Python with CogVideo's requirements (default: this one)",
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs/cogvideo"), metavar="DIR", help="default: %(default)s"
    )


def run_check(options: argparse.Namespace) -> None:
    """Print mismatches, and notes about the training videos and the prompts."""
    from ..cogvideo.compatibility import find_mismatches
    from ..cogvideo.first_stage import build_first_stage
    from ..cogvideo.prompts import inspect_prompts
    from ..cogvideo.sat_config import SATConfig, checkout_era, find_checkout, merge_configs
    from ..cogvideo.sections import find_misspelt
    from ..cogvideo.training_videos import inspect_videos

    config = SATConfig(merge_configs(options.base), options.base)
    era, checkout = options.era or checkout_era(options.base), find_checkout(options.base)
    stage = build_first_stage(config)
    mismatches = find_mismatches(config, stage.latent_format, era, checkout)
    problems, notes = inspect_videos(config)
    problems += inspect_prompts(config)
    wrong = [f"{mismatch}{config.origin(mismatch.key)}" for mismatch in (*mismatches, *problems)]
    notes += [*config.notes(), *find_misspelt(config, checkout)]
    for line in (*wrong, *(f"note: {note}" for note in notes)):
        sys.stdout.write(f"{line}\n")
    if found := len(mismatches) + len(problems):
        raise UserError(f"{found} of the settings do not fit; correct the settings above in an overlay")
    sys.stdout.write("everything fits\n")


def run_adapt(options: argparse.Namespace) -> None:
    """Copy, and print the tensors that were left out."""
    from ..cogvideo.sat_config import SATConfig, merge_configs
    from ..cogvideo.sat_transformer import adapt

    sizes = SATConfig(merge_configs(options.base)).transformer()
    for name, found, needed in adapt(options.transformer, options.output, sizes):
        sys.stdout.write(f"left out {name}: {found}, needed {needed}; training initialises it\n")
    sys.stdout.write(f"{options.output}: name it as args.load\n")


def run_export(options: argparse.Namespace) -> None:
    """Write the pipeline, and print how to open it."""
    from ..cogvideo.export import export_pipeline
    from ..cogvideo.first_stage import build_first_stage
    from ..cogvideo.sat_config import SATConfig, merge_configs
    from ..cogvideo.sat_transformer import read_transformer

    weights = read_transformer(options.transformer)
    beside = [folder / "training_config.yaml" for folder in (options.transformer, options.transformer.parent)]
    found = [path for path in beside if path.exists()] or beside
    config = SATConfig(merge_configs(options.base or found[:1]))
    text_encoder = options.text_encoder or config.text_encoder or "none"
    encoder = None if text_encoder == "none" else Path(text_encoder)
    export_pipeline(config, weights, build_first_stage(config), options.output, encoder)
    name = "CogVideoXImageToVideoPipeline" if config.has_images else "CogVideoXPipeline"
    more = ", tokenizer=None, text_encoder=None" if encoder is None else ""
    sys.stdout.write(f"{options.output}: import sat_ssvae.diffusers, then {name}.from_pretrained(FOLDER{more})\n")


def run_compare(options: argparse.Namespace) -> None:
    """Run the comparison on CogVideoX's own training and print its summary."""
    from ..cogvideo.first_stage import check_patched
    from ..cogvideo.launch import Launch
    from ..cogvideo.native_arms import read_arms
    from ..cogvideo.native_comparison import CogVideoComparison, compare
    from ..comparison.verdict import summary_table
    from ..config import load_config

    sat, output = _sat_folder(options.cogvideo), options.output.resolve()
    launch = Launch(_interpreter(options.python), options.processes)
    check_patched(sat)
    files = (options.stock, options.ssvae, options.heldout)
    stock, overlay, heldout = ([_find(path, sat) for path in paths] for paths in files)
    config = load_config(CogVideoComparison, None, options.overrides)
    os.chdir(sat)  # CogVideoX's scripts run there, and relative paths in its files count from there
    arms = read_arms(stock, overlay, heldout)
    results, verdicts = compare(config, arms, heldout, output, launch, options.command_line)
    sys.stdout.write(f"{summary_table(results, verdicts)}\n\nreport: {output / 'report' / 'report.html'}\n")


def _sat_folder(checkout: Path) -> Path:
    for folder in (checkout / "sat", checkout):
        if (folder / "train_video.py").is_file():
            return folder.resolve()
    raise UserError(f"{checkout} holds no sat/train_video.py; give the folder of a CogVideo checkout")


def _find(path: Path, sat: Path) -> Path:
    """A path relative to the working directory or else to CogVideoX's folder."""
    return path.resolve() if path.exists() else sat / path


def _interpreter(command: str) -> tuple[str, ...]:
    """The words of --python; files get absolute paths, with links kept, because they identify a virtual environment."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--python {command}: {error}") from None
    if not words:
        raise UserError("--python is empty; give the interpreter that has CogVideo's requirements")
    return tuple(str(Path(word).absolute()) if Path(word).is_file() else word for word in words)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1")
    return int(text)


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--base", type=Path, nargs="+", required=True, metavar="YAML", help="files, as given to train_video.py"
    )
