"""What sets the arms of a comparison apart: the settings in which they differ, in a line each.

differing_settings(results.arms)    # {"stock": "lcr_weight 0, lmr_mask_ratio 0", "ssvae": "lcr_weight 0.05, ..."}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..results import ArmResult

_PLACE = "autoencoder"
"""Key of `ArmResult.training`: where the weights lie, which is no setting."""
_GIVEN = "checkpoint"
"""Key of `ArmResult.training`: the weights of an arm that was not trained here."""


def differing_settings(arms: Sequence[ArmResult]) -> dict[str, str]:
    """By arm: the baseline's settings that another arm has otherwise, and of each other arm those that are its own.

    What only some arms state is compared among those that were trained here. A setting that changes from one training
    stage to the next is written `0.2 then 0`.

    Returns:
        Nothing where the arms do not differ.
    """
    own = {arm.name: _settings(arm) for arm in arms}
    stated = set.intersection(*map(set, own.values())) - {_GIVEN}
    trained = [arm.name for arm in arms if _GIVEN not in arm.training]
    keys = dict.fromkeys(key for arm in arms for key in own[arm.name] if key in stated or arm.name in trained)
    base = own[arms[0].name]

    def differ(key: str) -> bool:
        among = own if key in stated else trained
        return len({own[name].get(key) for name in among}) > 1

    lines = {}
    for arm in arms:
        shown = [key for key in keys if differ(key) and key in own[arm.name]]
        if arm is not arms[0]:
            shown = [key for key in shown if own[arm.name][key] != base.get(key)]
        parts = [f"not trained here: {arm.training[_GIVEN]}"] if arm.name not in trained else []
        lines[arm.name] = ", ".join([*parts, *(f"{key} {own[arm.name][key]}" for key in shown)])
    alike = {arm.name: f"as {arms[0].name}" if arm is not arms[0] else "trained here" for arm in arms}
    return {name: text or alike[name] for name, text in lines.items()} if any(lines.values()) else {}


def plain(value: Any) -> str:
    """A setting in one line: large numbers with separators, mappings as `key: value, key: value`."""
    if isinstance(value, dict):
        nested = any(isinstance(item, dict) for item in value.values())
        return ("; " if nested else ", ").join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _settings(arm: ArmResult) -> dict[str, str]:
    """All settings as text, by dotted key."""
    training = {key: value for key, value in arm.training.items() if key not in ("stages", _PLACE)}
    stages = arm.training.get("stages")
    found = {key: _value(value) for key, value in _leaves({**arm.vae, **training}).items()}
    by_stage = [_leaves(stage) for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    for key in dict.fromkeys(key for stage in by_stage for key in stage):
        values = [_value(stage.get(key)) for stage in by_stage]
        found[key] = values[0] if len(set(values)) == 1 else " then ".join(values)
    return found


def _leaves(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Values by dotted key. A mapping whose keys are no names, such as a table of mask ratios, is one value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and all(str(name).isidentifier() for name in value):
            found |= _leaves(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def _value(value: Any) -> str:
    """In one line and, where it is a list or a table, in brackets, because settings are listed with commas."""
    if isinstance(value, (list, tuple)):
        return f"[{plain(value)}]"
    return f"{{{plain(value)}}}" if isinstance(value, dict) else plain(value)
