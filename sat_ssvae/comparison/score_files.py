"""Scores of a generator on disk, two files per step, from which a comparison makes its report.

write_scores(folder, step, scores, samples)      # folder/step_100.json, folder/step_100.safetensors
curves = curve_points(read_scores(folder, steps), "ssvae", seed)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..data.video_io import to_uint8
from ..storage import save_tensors, write_json
from .report.pictures import as_pictures
from .results import CurvePoint, Estimate


def write_scores(folder: Path, step: int, scores: Mapping[str, Estimate], samples: Tensor) -> None:
    """Write the scores of one step, and the samples to show, `n C T H W` in [-1, 1]."""
    save_tensors(folder / f"step_{step}.safetensors", {"video": to_uint8(samples)})
    plain = {metric: asdict(estimate) for metric, estimate in scores.items()}
    write_json(folder / f"step_{step}.json", plain)


def is_scored(folder: Path, steps: Iterable[int]) -> bool:
    """Whether all of these steps have been scored."""
    return all((folder / f"step_{step}.json").exists() for step in steps)


def read_scores(folder: Path, steps: Iterable[int]) -> dict[int, dict[str, Estimate]]:
    """The scores of these steps, by metric."""
    plain = {step: json.loads((folder / f"step_{step}.json").read_text(encoding="utf-8")) for step in steps}
    return {step: {metric: Estimate(**one) for metric, one in values.items()} for step, values in plain.items()}


def curve_points(
    scores: Mapping[int, Mapping[str, Estimate]], arm: str, seed: int, vae_seed: int = 0
) -> list[CurvePoint]:
    """Scores by step and metric as points of the arm's curves."""
    return [
        CurvePoint(arm, seed, metric, step, one.value, one.low, one.high, one.resamples, vae_seed)
        for step, values in scores.items()
        for metric, one in values.items()
    ]


def read_samples(folder: Path, steps: Iterable[int]) -> dict[int, Sequence[Tensor]]:
    """The samples to show of these steps, each uint8 `T H W C`."""
    return {step: as_pictures(load_file(folder / f"step_{step}.safetensors")["video"]) for step in steps}
