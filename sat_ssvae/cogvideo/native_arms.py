"""The two arms of a comparison on CogVideoX's own training, which differ only in what follows from their latents.

arms = read_arms(stock=[Path("cogvideox_2b.yaml"), Path("sft.yaml")], overlay=[Path("cogvideox_2b_5b.yaml")])
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError, and_more
from .compatibility import find_mismatches
from .first_stage import build_first_stage
from .sat_config import NETWORK, SATConfig, checkout_era, find_checkout, merge_configs

logger = logging.getLogger(__name__)

BASELINE, CANDIDATE = "stock", "ssvae"
FOLLOW_FROM_LATENTS = (
    "args.latent_channels",
    "model.first_stage_config",
    "model.latent_input",  # neither arm may use it
    "model.scale_factor",
    f"{NETWORK}.in_channels",
    f"{NETWORK}.out_channels",
    f"{NETWORK}.latent_height",
    f"{NETWORK}.latent_width",
    f"{NETWORK}.patch_size",
)
"""Keys, with all below them, that differ between arms because their latents do."""
SET_BY_COMPARISON = (
    "args.experiment_name",
    "args.force_train",
    "args.no_load_rng",
    "args.no_save_rng",
    "args.save",
    "args.save_interval",
)
"""Keys that the comparison sets in both arms."""


@dataclass(frozen=True)
class NativeArm:
    """The files that train_video.py gets as --base, and their merged values."""

    name: str
    files: tuple[Path, ...]
    values: dict[str, Any]

    @property
    def settings(self) -> SATConfig:
        """The values, read by dotted keys."""
        return SATConfig(self.values)

    def data(self, key: Literal["train_data", "valid_data"]) -> tuple[Path, ...]:
        """The folders of `train_data` or `valid_data`; none if there is no list of them."""
        return tuple(map(Path, self.settings.folders(key)))


def read_arms(stock: Sequence[Path], overlay: Sequence[Path], heldout: Sequence[Path]) -> tuple[NativeArm, NativeArm]:
    """Baseline and candidate; the candidate's files are the baseline's and then the overlay's.

    `stock` are files as given to train_video.py, `overlay` is one of cogvideo_configs/ and whatever follows it.
    Without `heldout` folders, those of args.valid_data count.

    Raises:
        UserError: the arms differ in more than their latents, a number does not fit SSVAE's latents, or the training
            cannot be compared.
    """
    arms = [
        NativeArm(name, tuple(files), merge_configs(files))
        for name, files in ((BASELINE, stock), (CANDIDATE, [*stock, *overlay]))
    ]
    baseline, candidate = arms
    if differing := list(differences(baseline.values, candidate.values)):
        key, ours, theirs = differing[0]
        raise UserError(
            f"{key} is {ours} in {baseline.name} and {theirs} in {candidate.name}{and_more(differing)}, but the arms "
            "may differ only in their latents; set it in a file that is given last to --stock and to --ssvae"
        )
    for arm in (baseline, candidate):
        _refuse_unusable(arm, heldout)
    afresh = {**candidate.values, "args": {**candidate.values.get("args", {}), "load": None}}
    config = SATConfig(afresh)  # `load` is that of the stock transformer; the comparison adapts it
    latents = build_first_stage(config).latent_format
    if found := find_mismatches(config, latents, checkout_era(stock), find_checkout(stock)):
        raise UserError(f"{candidate.name}: {found[0]}{and_more(found)}; correct it in a file given last to --ssvae")
    for note in baseline.settings.notes():
        logger.warning("%s", note)
    return baseline, candidate


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, other value) of the settings that differ without need; a missing value is None."""
    left, right = dict(_flat(ours)), dict(_flat(theirs))
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key) and not _is_below(key, (*FOLLOW_FROM_LATENTS, *SET_BY_COMPARISON)):
            yield key, left.get(key), right.get(key)


def _refuse_unusable(arm: NativeArm, heldout: Sequence[Path]) -> None:
    """Refuse settings with which nothing can be compared."""
    get = arm.settings.section  # of whatever form
    iterations = get("args.train_iters")
    wrong = {
        "args.train_iters": "must say how long to train, a whole number of steps"
        if type(iterations) is not int or iterations < 1
        else "",
        "args.epochs": "must be null: args.train_iters says how long to train" if get("args.epochs") else "",
        "args.train_data": "must name the training videos, a list of folders" if not arm.data("train_data") else "",
        "args.model_parallel_size": "must be 1" if (get("args.model_parallel_size") or 1) > 1 else "",
        "model.latent_input": "must be false: both arms are trained on videos" if get("model.latent_input") else "",
        "model.noised_image_input": "must be false: samples are scored of text to video"
        if arm.settings.has_images
        else "",
        "data.target": "must be a data set of videos" if arm.settings.gives_latents else "",
        "args.valid_data": ""
        if heldout or set(arm.data("valid_data")) - set(arm.data("train_data"))
        else "must name other videos than args.train_data, to score on; or give --heldout FOLDER",
    }
    for key, why in wrong.items():
        if why:
            raise UserError(f"{arm.name}: {key} is {get(key)}, {why}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_below(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)
