"""Processes that tests start."""

import os


def unmeasured() -> dict[str, str]:
    """Variables for a process that has no place to write to: coverage, which follows processes, would need one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
