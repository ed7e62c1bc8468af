"""The autoencoders of a comparison before any training: those that are given, and a token grid that fits all.

    given = open_given(config.arms)                                  # those that are not trained here, by arm
    patches = common_patches(latent_sizes(trainings, given, clips), (1, 2, 2))

Arms may compress differently (CogVideoX 4x8x8, Wan 2.2 4x16x16, an image autoencoder not at all in time). Then each has
its own patch size, so that the transformer sees the same grid of tokens in all arms.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..autoencoders.protocol import VideoAutoencoder
from ..autoencoders.specification import open_autoencoder
from ..errors import UserError
from ..training.settings import TrainConfig
from ..vae.autoencoder import SSVAE
from ..vae.checkpoint import weights_digest
from .settings import ArmConfig, ClipsConfig

Grid = tuple[int, int, int]
"""Frames, height, width."""


def open_given(arms: Mapping[str, ArmConfig]) -> dict[str, VideoAutoencoder]:
    """The autoencoders of the arms that are not trained here.

    Raises:
        UserError: one of them cannot be opened.
    """
    given = {}
    for name, arm in arms.items():
        if arm.checkpoint is not None:
            try:
                given[name] = open_autoencoder(arm.checkpoint)
            except UserError as error:
                raise UserError(f"arm {name}: {error}") from None
    return given


def absolute(checkpoint: str) -> str:
    """The autoencoder with an absolute path, for commands in other folders; a name on a hub stays as it is."""
    kind, colon, place = checkpoint.partition(":")
    if Path(checkpoint).exists():
        return str(Path(checkpoint).resolve())
    return f"{kind}:{Path(place).resolve()}" if colon and Path(place).exists() else checkpoint


def given_identity(vae: VideoAutoencoder) -> list[Any]:
    """What the latents of a given autoencoder depend on: its configuration and weights."""
    return [vae.describe(), weights_digest(vae.state_dict())]


def latent_sizes(
    trainings: Mapping[str, TrainConfig], given: Mapping[str, VideoAutoencoder], clips: ClipsConfig
) -> dict[str, Grid]:
    """Latent (t, h, w) of a clip in each arm.

    Raises:
        UserError: an arm's autoencoder does not take clips of this size.
    """
    sizes = {}
    for name, training in trainings.items():
        with torch.device("meta"):  # sizes without weights
            vae = given.get(name) or SSVAE(training.model)
        try:
            sizes[name] = vae.latent_size(clips.num_frames, *clips.size)
        except UserError as error:
            raise UserError(f"arm {name}: {error} (data.num_frames, data.resolution)") from None
    return sizes


def common_patches(sizes: Mapping[str, Grid], patch: Grid) -> dict[str, Grid]:
    """The patch size of each arm: `patch` if all latents have one size, else sizes that give all arms one token grid.

    That grid is the finest that divides the latents of every arm and is no finer than `patch` makes of the largest.

    Raises:
        UserError: `patch` does not divide the latents' one size, or the grid would have less than half of the tokens
            that `patch` makes of the smallest latents.
    """
    if len(set(sizes.values())) == 1:
        (size,) = set(sizes.values())
        if any(n % step for n, step in zip(size, patch, strict=True)):
            raise UserError(f"transformer.patch_size {_times(patch)} does not divide the latents' {_times(size)}")
        return dict.fromkeys(sizes, patch)
    axes = list(zip(*sizes.values(), strict=True))
    limits = [max(1, max(axis) // step) for axis, step in zip(axes, patch, strict=True)]
    t, h, w = (
        max(divisor for divisor in range(1, limit + 1) if math.gcd(*axis) % divisor == 0)
        for axis, limit in zip(axes, limits, strict=True)
    )
    fewest = min(math.prod(-(-n // step) for n, step in zip(size, patch, strict=True)) for size in sizes.values())
    if 2 * t * h * w < fewest:
        shapes = ", ".join(f"{name} {_times(size)}" for name, size in sizes.items())
        raise UserError(
            f"the arms' latents (frames x height x width: {shapes}) have no common division into enough tokens, only "
            f"into {_times((t, h, w))}; choose other data.num_frames or data.resolution"
        )
    return {name: (size[0] // t, size[1] // h, size[2] // w) for name, size in sizes.items()}


def shape_warning(sizes: Mapping[str, Grid], patches: Mapping[str, Grid]) -> tuple[str, ...]:
    """A warning for the report about latents of several sizes; empty if all have one size."""
    if len(set(sizes.values())) == 1:
        return ()
    shapes = "; ".join(f"{name} {_times(sizes[name])} in patches of {_times(patches[name])}" for name in sizes)
    return (
        f"The arms' latents differ in size (frames × height × width: {shapes}). The transformer sees the same "
        "number of tokens in all arms, but its first and last layers, and its input noise, differ with the latents.",
    )


def _times(size: Grid) -> str:
    return "x".join(map(str, size))
