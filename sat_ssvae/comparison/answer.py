"""A comparison's answer in one small JSON, for scripts: how much faster, and what it costs.

answer(results, judge(results), commit())
# {"primary": {"measure": ..., "speed_up": 2.5, "low": 1.1, "high": 5.6, "autoencoder_seeds": 3, ...},
#  "psnr_difference_db": -0.9, "command": ..., "commit": ...}
"""

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import ComparisonResults
from .verdict import Verdict

PRIMARY = "kernel_distance_reconstruction/frame"
"""The measure that a comparison is about: decoded samples, by features of their frames, against reconstructions of
held-out clips. It was chosen before the comparisons that docs/results.md reports: distances to real clips are half
blur at their size, and motion features separate little."""


def answer(results: ComparisonResults, verdicts: Sequence[Verdict], commit: str | None) -> dict[str, Any]:
    """The first candidate against the baseline, and under `arms` every one.

    Returns:
        `primary` with `speed_up` None where not every run reached the baseline's final score, `low` and `high` its 95 %
        interval (at the best score that both reached, where it was not reached; None where it is open); and the
        difference in PSNR.
    """
    arms = {verdict.candidate: _of_arm(results, verdict) for verdict in verdicts}
    first = results.candidates[0].name
    return {
        "baseline": results.baseline.name,
        "candidate": first,
        **arms[first],
        "arms": arms,
        "command": results.command,
        "commit": commit,
    }


def _of_arm(results: ComparisonResults, verdict: Verdict) -> dict[str, Any]:
    read = next((read for read in verdict.speed_ups if read.metric == PRIMARY), None)
    difference = results.arm(verdict.candidate).reconstruction_difference.get("psnr")
    return {
        "conclusion": verdict.conclusion,
        "primary": {
            "measure": PRIMARY,
            "speed_up": read.value if read and read.status == "measured" else None,
            "low": _finite(read.low if read else None),
            "high": _finite(read.high if read else None),
            "status": read.status if read else "undefined",
            "autoencoder_seeds": len(results.vae_seeds),
            "transformer_seeds": len(results.seeds),
        },
        "psnr_difference_db": None if difference is None else difference.value,
    }


def commit() -> str | None:
    """Of the checkout that this code lies in, with `+` after it where files were changed; None outside of one."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    try:
        done = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() + "+" * (changed.returncode != 0)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
