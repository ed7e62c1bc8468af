"""Checkpoints of the autoencoder: a folder, a safetensors file, or a torch file such as the published one.

    checkpoint = read_checkpoint("my_vae")      # config, weights, statistics; `SSVAE.from_pretrained` builds from it
    write_checkpoint("my_vae", checkpoint)      # what `SSVAE.save_pretrained` calls

A folder holds config.json (the sizes), model.safetensors, and latent_stats.json where the statistics are known. For
files without a configuration the sizes are inferred from names and shapes.
"""

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import parse_config
from ..errors import UserError
from ..storage import atomic, write_text
from .config import SSVAEConfig
from .statistics import LatentStats

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
STATISTICS_NAME = "latent_stats.json"
TRAINING_PREFIX = "loss."
"""Published files keep the discriminator and the perceptual network under this prefix; only training uses them."""


@dataclass(frozen=True)
class Checkpoint:
    """An autoencoder on disk."""

    config: SSVAEConfig
    """Sizes of the network."""
    weights: Mapping[str, Tensor]
    """By parameter name."""
    statistics: LatentStats | None = None
    """Of the latents on the training videos, where they are known."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a folder, a safetensors file or a torch file, onto the CPU.

    Raises:
        UserError: the path is missing, the file damaged, or its tensors are not those of an SSVAE.
    """
    path = Path(path)
    weights_path = path / WEIGHTS_NAME if path.is_dir() else path
    weights = _read_weights(weights_path)
    config = _read_config(path / CONFIG_NAME) if path.is_dir() else infer_config(weights, weights_path)
    known = (path / STATISTICS_NAME).exists()
    return Checkpoint(config, weights, read_stats(path / STATISTICS_NAME, config.latent_channels) if known else None)


def write_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a folder that `read_checkpoint` reads.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before stays.
    """
    folder = Path(folder)
    write_weights(checkpoint.weights, folder / WEIGHTS_NAME, "safetensors")
    _write_json(folder / CONFIG_NAME, checkpoint.config.model_dump(mode="json"))
    if checkpoint.statistics is None:
        (folder / STATISTICS_NAME).unlink(missing_ok=True)  # those of weights that were here before
    else:
        write_stats(checkpoint.statistics, folder / STATISTICS_NAME)


def write_weights(weights: Mapping[str, Tensor], path: Path, form: Literal["safetensors", "torch"]) -> None:
    """Write weights into one file; a torch file has them under `state_dict`, like published ones.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before stays.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as partial:
            if form == "torch":
                torch.save({"state_dict": plain}, partial)
            else:
                save_file(plain, partial, metadata={"format": "pt"})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose another folder") from None


def write_stats(stats: LatentStats, path: Path) -> None:
    """Write the JSON file that `read_stats` reads."""
    _write_json(path, {"mean": stats.mean.tolist(), "std": stats.std.tolist()})


def read_stats(path: Path, latent_channels: int) -> LatentStats:
    """Statistics from a JSON file `{"mean": [...], "std": [...]}` with one number per channel.

    Raises:
        UserError: the file cannot be read or does not hold that.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stats = LatentStats(*(torch.tensor(values[name], dtype=torch.float32) for name in ("mean", "std")))
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f'{path}: not readable as {{"mean": [...], "std": [...]}} ({error}); `sat-ssvae stats` writes it'
        ) from None
    if stats.mean.shape != (latent_channels,):
        raise UserError(f"{path}: statistics of {len(stats.mean)} channels, but the autoencoder has {latent_channels}")
    return stats


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types and values of a `state_dict`."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def infer_config(weights: Mapping[str, Tensor], path: Path) -> SSVAEConfig:
    """The sizes that names and shapes imply; the decoder's time levels mirror the encoder's.

    Raises:
        UserError: these are not the tensors of an SSVAE.
    """

    def count(pattern: str) -> int:
        """One more than the largest number that the pattern captures."""
        return max((int(m[1]) for name in weights if (m := re.match(pattern, name))), default=-1) + 1

    try:
        base, in_channels = weights["encoder.conv_in.conv.weight"].shape[:2]
        levels = count(r"encoder\.down\.(\d+)\.")
        widths = [weights[f"encoder.down.{i}.block.0.conv1.conv.weight"].shape[0] for i in range(levels)]
        middle = {m[1] for name in weights if (m := re.match(r"decoder\.mid\.(\d+)\.conv1\.", name))}
        values = {
            "in_channels": in_channels,
            "latent_channels": weights["decoder.conv_in.conv.weight"].shape[1],
            "base_channels": base,
            "channel_multipliers": [width // base for width in widths],
            "num_res_blocks": count(r"encoder\.down\.0\.block\.(\d+)\."),
            "num_mid_blocks": len(middle),
            "temporal_downsample": [
                f"encoder.down.{i}.downsample.conv.conv.weight" in weights for i in range(levels - 1)
            ],
        }
    except KeyError as error:
        raise UserError(
            f"{path}: not an SSVAE checkpoint, it has no tensor {error}; its first tensors are "
            f"{', '.join(list(weights)[:3]) or 'none'}"
        ) from None
    return parse_config(SSVAEConfig, values, source=str(path))


def check_fits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse weights whose names or shapes are not the expected ones.

    Raises:
        UserError: names the first three differences; `source` is where the weights come from.
    """
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not known" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{source}: does not fit this architecture: {'; '.join(wrong[:3])}{more}; "
            "check that the file is complete and belongs to this configuration"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such checkpoint; give a folder that holds {WEIGHTS_NAME}, a .safetensors or a .pth file"
        ) from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged or not a checkpoint ({reason}); download or copy it again") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a checkpoint, expected a dictionary of tensors or one under `state_dict`")
    weights = {name: value for name, value in state.items() if not name.startswith(TRAINING_PREFIX)}
    if len(weights) < len(state):
        logger.info("%s: left out %d tensors that only training uses", path, len(state) - len(weights))
    return weights


def _read_config(path: Path) -> SSVAEConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    return parse_config(SSVAEConfig, values, source=str(path))


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
