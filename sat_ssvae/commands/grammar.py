"""The command line's grammar: `sat-ssvae COMMAND [PATH ...] [--flag VALUE ...] [key=value ...]`.

Flags name files, folders and runs; every setting is `key=value`, anywhere on the line. A command's `settings` is the
configuration class that its keys belong to.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..addresses import path_of
from ..config import Config, keys_like, settings_of
from ..errors import UserError, did_you_mean, nearest

if TYPE_CHECKING:
    import torch

_SETTING = re.compile(r"\w+(\.\w+)*=")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with a hint what to type instead."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.commands: Any = None
        """What `add_subparsers` returned, for a parser of commands."""

    def add_subparsers(self, **options: Any) -> Any:
        """Commands below this one."""
        self.commands = super().add_subparsers(required=True, **options)
        return self.commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Like argparse, but misspelt words get a hint, and `key=value` may be anywhere."""
        words = [_underscored(word) for word in args]
        first = next((number for number, word in enumerate(words) if word[:1] != "-"), len(words))
        for word in words[:first] if self.commands else words:
            flag = word.partition("=")[0]
            if flag[:2] == "--" and flag not in self._option_string_actions:
                self.error(self._unknown_flag(flag))
        if self.commands and first < len(words) and words[first] not in self.commands.choices:
            names = list(self.commands.choices)
            hint = did_you_mean(words[first], names, f"commands are {', '.join(names)}")
            self.error(f"unknown command `{words[first]}`, {hint}")
        settings = self._settings(words) if self.get_default("settings") else []
        rest = [word for number, word in enumerate(words) if number not in settings]
        options, unknown = super().parse_known_args(rest, namespace)
        if self.get_default("settings"):
            options.overrides = [words[number] for number in settings]
        if unknown and not self.commands:
            self.error(self._unexpected(unknown[0]))
        return options, unknown

    def format_help(self) -> str:
        """Add the settings, which argparse does not know, to the usage."""
        usage = " [key=value ...]\n\n" if self.get_default("settings") else "\n\n"
        return super().format_help().replace("\n\n", usage, 1)

    def error(self, message: str) -> NoReturn:
        """End with one line."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _settings(self, words: Sequence[str]) -> list[int]:
        """Positions of the settings: `key=value` that is neither the value of a flag nor an existing file."""
        flags = self._option_string_actions
        values = {number + 1 for number, word in enumerate(words) if word in flags and flags[word].nargs is None}
        return [n for n, word in enumerate(words) if _SETTING.match(word) and n not in values and not _exists(word)]

    def _unknown_flag(self, flag: str) -> str:
        of_command = self.get_default("settings")
        settings = settings_of(of_command()) if of_command else []
        flags = [known for known in self._option_string_actions if known[:2] == "--"]
        near = nearest(flag[2:], [known[2:] for known in flags] + [setting.name for setting in settings])
        if near is None:
            return f"unknown flag `{flag}`, flags are {', '.join(flags)}"
        if f"--{near}" in flags:
            return f"unknown flag `{flag}`, did you mean `--{near}`?"
        keys = " or ".join(f"`{key}`" for key in keys_like(near, settings))
        return f"unknown flag `{flag}`, settings are key=value: did you mean {keys}?"

    def _unexpected(self, word: str) -> str:
        of_command = self.get_default("settings")
        if of_command and any(setting.key == word for setting in settings_of(of_command())):
            return f"`{word}` is a setting, settings are key=value: {word}=..."
        return f"unexpected argument `{word}`"


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None],
    summary: str,
    *examples: str,
    settings: str | None = None,
) -> argparse.ArgumentParser:
    """A command's parser.

    Args:
        commands: what `add_subparsers` returned.
        name: the command.
        run: called with the parsed options.
        summary: one sentence without its full stop.
        examples: whole command lines.
        settings: MODULE:CLASS of this package that `options.overrides` configure; None for a command without settings.
            Imported when it is needed, so that `--help` is quick.
    """
    epilog = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {example}" for example in examples)])
    if settings:
        command = examples[0].partition(f" {name} ")[0].removeprefix("sat-ssvae") + f" {name}"
        epilog += f"\n\nevery setting that key=value can change is listed by: sat-ssvae settings{command}"
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=epilog
    )
    parser.set_defaults(run=run, settings=settings and partial(_imported, *settings.split(":")))
    return parser


def path(text: str) -> Path:
    """The type of an argument that is a local path or an address."""
    try:
        return path_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_merge(command: argparse.ArgumentParser) -> None:
    """Add the flag for the last step of a job in parts."""
    command.add_argument("--merge", action="store_true", help="the last step of a job in parts (part=I/N)")


def _imported(module: str, name: str) -> type[Config]:
    found: type[Config] = getattr(import_module(f"...{module}", __name__), name)
    return found


def _underscored(word: str) -> str:
    """A flag with its hyphens as underscores: both spellings are one flag."""
    if word[:2] != "--":
        return word
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}"


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:  # too long for a name
        return False


def working_device() -> "torch.device":
    """The command's device: the GPU of this rank, or the CPU, with memory that is kept for reuse when it is freed."""
    from ..allocator import keep_freed_memory
    from ..distributed import default_device

    device = default_device()
    if device.type == "cpu":
        keep_freed_memory()
    return device
