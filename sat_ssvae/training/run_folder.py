"""A run's folder belongs to one configuration: config.json says which."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import distributed
from ..errors import UserError
from .settings import TrainConfig

OPERATIONAL = {
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "milestone_every",
    "max_skipped_steps",
    "monitor",
    "data.num_workers",
    "data.max_skip_share",
    "data.cache",
    "data.cache_gib",
}
"""Settings that change no step that a run takes, such as what suits the machine that it continues on."""


def claim_folder(config: TrainConfig, output: Path) -> None:
    """Write the configuration beside the run; the newest where only `OPERATIONAL` settings changed.

    Raises:
        UserError: it holds a run that takes other steps.
    """
    if distributed.rank() != 0:  # another rank could see the file half written
        return
    path = output / "config.json"
    wanted = json.dumps(config.model_dump(mode="json"), indent=1)
    if path.exists():
        held = path.read_text(encoding="utf-8")
        if held == wanted:
            return
        if _steps(json.loads(held)) != _steps(json.loads(wanted)):
            raise UserError(f"{output} holds a run with another configuration; choose another name or delete it")
    output.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(wanted, encoding="utf-8")
    partial.replace(path)


def _steps(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """What decides which steps are taken."""
    return {
        name: _steps(value, f"{section}{name}.") if isinstance(value, Mapping) else value
        for name, value in values.items()
        if f"{section}{name}" not in OPERATIONAL
    }
