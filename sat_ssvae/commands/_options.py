"""Options that several commands share."""

import argparse


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Positional key=value settings, in `options.overrides`."""
    command.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else argparse says that they are required
        metavar="key=value",
        help="settings over the configuration's",
    )
