"""The command line, `sat-ssvae COMMAND`; each command has --help and is a module in `commands/`."""

import argparse
import atexit
import logging
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from . import __version__, distributed
from .commands.grammar import Parser
from .errors import UserError, one_line
from .progress import setup_logging

logger = logging.getLogger(__name__)

COMMANDS = (
    *("compare", "train", "pack", "stats", "convert", "encode", "cogvideo", "check_data"),
    *("reward", "runs", "score", "reconstruct", "spectrum", "restore", "init", "settings"),
)
"""Modules of `commands/`, in the order of `sat-ssvae --help`."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit status. A user error is one line on stderr, status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options = parser.parse_args(words)
    setup_logging(options.verbose)
    options.command_line = shlex.join(["sat-ssvae", *map(_without_key, words)])
    try:
        options.run(options)
        atexit.register(distributed.leave)
    except UserError as error:
        _end(parser, error, 2, f"error: {error}\n")
    except (RuntimeError, ConnectionResetError) as error:
        # torch raises this when a decoding worker dies, at any point of the main process.
        if "DataLoader worker" not in str(error) and not isinstance(error, ConnectionResetError):
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise every worker that ends later raises it again
        reason = one_line(error).rstrip(".")
        hint = "a decoding process died; if memory was short, lower data.num_workers; the same command then continues"
        _end(parser, error, 2, f"error: {reason}; {hint}\n")
    except KeyboardInterrupt as error:
        _end(parser, error, INTERRUPTED, "interrupted; finished work is kept, the same command continues from there\n")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __package__.partition(".")[0]:
            raise
        hint = "the extras of sat-ssvae bring it: pip install 'sat-ssvae[compare,diffusers,reward]'"
        _end(parser, error, 2, f"error: the package {error.name} is not installed; {hint}\n")
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(parser, error, 2, f"error: {where}{error.strerror}\n")
    return 0


def _without_key(word: str) -> str:
    """A word of the command line as pages show it, which people send to each other."""
    return "api_key=..." if word.lstrip("-").startswith("api_key=") else word


def _end(parser: Parser, error: BaseException, status: int, message: str) -> NoReturn:
    """End the process with one line, below the last output of progress bars."""
    traceback.clear_frames(error.__traceback__)
    parser.exit(status, message)


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="sat-ssvae",
        description="SSVAE: train it, compare it, and use it with CogVideoX.",
        epilog="example:\n  sat-ssvae compare --help",
    )
    parser.add_argument("--version", action="version", version=f"sat-ssvae {__version__}")
    parser.add_argument("--verbose", action="store_true", help="also show debug messages")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # from `deepspeed`, which sets LOCAL_RANK as well
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS:
        import_module(f".commands.{command}", __package__).add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
