"""Scores of a generator on disk, two files a step, as a comparison's stages leave them for its report.

write_scores(folder, step, scores, samples)      # folder/step_100.json, folder/step_100.safetensors
curves = read_curves(folder, "ssvae", seed, steps)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..data.video_io import to_uint8
from ..storage import save_tensors, write_text
from .report.pictures import as_pictures
from .results import CurvePoint, Estimate


def write_scores(folder: Path, step: int, scores: Mapping[str, Estimate], samples: Tensor) -> None:
    """Keep the scores of one step, and the samples to show, `n C T H W` in [-1, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / f"step_{step}.safetensors", {"video": to_uint8(samples)})
    plain = {metric: asdict(estimate) for metric, estimate in scores.items()}
    write_text(folder / f"step_{step}.json", json.dumps(plain, indent=1))


def is_scored(folder: Path, steps: Iterable[int]) -> bool:
    """Whether all of these steps have scores."""
    return all((folder / f"step_{step}.json").exists() for step in steps)


def read_curves(folder: Path, arm: str, seed: int, steps: Iterable[int], vae_seed: int = 0) -> list[CurvePoint]:
    """The scores of these steps as points of the arm's curves."""
    points = []
    for step in steps:
        values = json.loads((folder / f"step_{step}.json").read_text(encoding="utf-8"))
        points += [
            CurvePoint(arm, seed, metric, step, **estimate, vae_seed=vae_seed) for metric, estimate in values.items()
        ]
    return points


def read_samples(folder: Path, steps: Iterable[int]) -> dict[int, Sequence[Tensor]]:
    """The samples to show of these steps, each uint8 `T H W C`."""
    return {step: as_pictures(load_file(folder / f"step_{step}.safetensors")["video"]) for step in steps}
