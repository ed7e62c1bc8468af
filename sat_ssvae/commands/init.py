"""`sat-ssvae init`: a commented configuration to edit."""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..config import Setting, find_config, read_yaml, settings_of
from ..errors import UserError
from ..storage import write_text
from .grammar import add_command
from .settings import default_of, in_yaml

_WIDTH = 100


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "init",
        run,
        "write a commented configuration that holds every setting",
        "sat-ssvae init mine --config ch48_LCR_LMR_256p",
    )
    command.add_argument("name", type=Path, metavar="NAME", help="the file, with or without .yaml")
    command.add_argument(
        "--config",
        type=Path,
        default=Path("ch48_LCR_LMR_256p"),
        metavar="YAML",
        help="a file or a packaged one's name to start from; those named compare_* are for `sat-ssvae compare` "
        "(default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the file, print how to use it."""
    from ..comparison.settings import CompareConfig
    from ..training.settings import TrainConfig

    path = options.name if options.name.suffix else options.name.with_suffix(".yaml")
    if path.exists():
        raise UserError(f"{path} exists; choose another name")
    source = find_config(options.config)
    compared = "transformer" in (values := read_yaml(source))
    use = f"sat-ssvae train --config {path} --name {path.stem} data.path=VIDEOS"
    if compared:
        use = f"sat-ssvae compare --config {path} --vae stock=stock --vae ssvae=ssvae --data VIDEOS"
    about = f"The settings of {source.stem}; a line `#key: value` is a default, remove its # to change it."
    head = f"# {about}\n#\n#   {use}\n"
    lines = commented(CompareConfig if compared else TrainConfig, values)
    write_text(path, "\n".join([head, *lines]) + "\n")
    sys.stdout.write(f"{path}: edit it, then {use}\n")


def commented(cls: type[BaseModel], values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a YAML file with these values, and every other setting as `#key: default`."""
    settings = settings_of(cls)
    for short in sorted(set(values) - {setting.key for setting in settings}):  # such as `resolution`
        yield f"{short}: {in_yaml(values[short])}\n"
    sections = {"", *(setting.key for setting in settings if setting.is_section)}
    for setting in settings:
        if setting.key.rpartition(".")[0] not in sections:
            continue  # a list, a mapping or a choice is one value
        parts = setting.key.split(".")
        indent = "  " * (len(parts) - 1)
        yield from textwrap.wrap(
            setting.description, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        yield f"{indent}{_line(setting, parts, values)}"
        if not setting.is_section:
            yield ""


def _line(setting: Setting, parts: list[str], values: Mapping[str, Any]) -> str:
    here: Any = values
    for part in parts:
        if not isinstance(here, Mapping) or part not in here:
            return f"#{parts[-1]}:" if setting.is_section else f"#{parts[-1]}: {default_of(setting)}"
        here = here[part]
    return f"{parts[-1]}:" if setting.is_section and isinstance(here, Mapping) else f"{parts[-1]}: {in_yaml(here)}"
