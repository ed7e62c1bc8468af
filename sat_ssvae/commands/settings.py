"""`sat-ssvae settings`: the settings of a command, from its configuration class."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr

from ..config import Config, Setting, settings_of
from ..errors import UserError, did_you_mean
from ._table import aligned
from .grammar import Parser, add_command

_NAMES = {
    bool: "true or false",
    str: "text",
    SecretStr: "secret text",
    int: "int",
    float: "float",
    Any: "anything",
    NoneType: "null",
}
_COLUMN = 24
"""Characters of a column on the terminal."""
_RANGES = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
_HEAD = """# Settings

Made by `sat-ssvae settings --markdown`. A setting is `key=value` on the command line, or a key of the YAML file that
`--config` names; a number in a key counts the items of a list from 0 (`optimizer.betas.0=0.8`).
`sat-ssvae settings COMMAND` prints one of these tables, `sat-ssvae init NAME` writes them as a commented YAML file.
"""


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "settings",
        partial(run, commands.choices),
        "list the settings of a command with their types, defaults and meanings",
        "sat-ssvae settings train",
        "sat-ssvae settings cogvideo compare",
    )
    command.add_argument("command", nargs="*", metavar="COMMAND", help="whose settings to list")
    command.add_argument("--markdown", action="store_true", help="those of all commands, as in docs/settings.md")


def run(parsers: dict[str, Parser], options: argparse.Namespace) -> None:
    """Print the table."""
    if options.markdown:
        sys.stdout.write(markdown(parsers))
        return
    classes = {name: settings for name, _, settings in commands_with_settings(parsers)}
    name = " ".join(options.command)
    if name not in classes:
        known = f"name one of these commands: {', '.join(classes)}"
        if name in parsers and not parsers[name].commands:
            raise UserError(f"{name} has flags alone (sat-ssvae {name} --help); {known}")
        raise UserError(f"settings{' ' * bool(name)}{name}: {did_you_mean(name, classes, known)}")
    rows = [
        (
            setting.key,
            *(("", "") if setting.is_section else (type_of(setting), default_of(setting))),
            setting.description.partition(". ")[0].removesuffix("."),  # the first sentence
        )
        for setting in settings_of(classes[name]())
    ]
    sys.stdout.write(aligned([("key", "type", "default", "meaning"), *rows], right=False, most=_COLUMN))


def markdown(parsers: dict[str, Parser]) -> str:
    """docs/settings.md."""
    text = _HEAD
    for name, description, settings in commands_with_settings(parsers):
        text += f"\n## sat-ssvae {name}\n\n{description}\n\n| key | type | default | meaning |\n|---|---|---|---|\n"
        for setting in settings_of(settings()):
            kind, default = ("", "") if setting.is_section else (type_of(setting), f"`{default_of(setting)}`")
            cells = (f"`{setting.key}`", kind, default, setting.description)
            text += f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    return text


def commands_with_settings(parsers: dict[str, Parser]) -> Iterator[tuple[str, str, Callable[[], type[Config]]]]:
    """Name, description and configuration class of every command that takes `key=value`."""
    for name, parser in parsers.items():
        if parser.commands:
            below = commands_with_settings(parser.commands.choices)
            yield from ((f"{name} {task}", description, settings) for task, description, settings in below)
        elif settings := parser.get_default("settings"):
            yield name, parser.description or "", settings


def type_of(setting: Setting) -> str:
    """The type in words, with its range."""
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in setting.bounds
        for name, sign in _RANGES
        if getattr(bound, name, None) is not None
    ]
    return " ".join([_in_words(setting.annotation), " and ".join(bounds)]).strip()


def default_of(setting: Setting) -> str:
    """The default in YAML."""
    return "required" if setting.is_required else in_yaml(setting.default)


def in_yaml(value: Any) -> str:
    """A plain value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).strip().removesuffix("\n...").strip()


def _in_words(annotation: Any) -> str:
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Annotated:
        return _in_words(arguments[0])
    if origin in (Literal, Union, UnionType):
        return " or ".join(dict.fromkeys(map(str if origin is Literal else _in_words, arguments)))
    if origin in (tuple, list):
        items = [_in_words(item) for item in arguments if item is not ...]
        return f"[{', '.join(items)}{', ...' if len(items) < len(arguments) or origin is list else ''}]"
    if origin is dict:
        return f"{{{_in_words(arguments[0])}: {_in_words(arguments[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{...}"
    return _NAMES.get(annotation, "path")
