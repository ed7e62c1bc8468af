"""Checkpoints of the autoencoder: a folder, a safetensors file, or a torch file such as the published one.

    checkpoint = read_checkpoint("my_vae")      # config, weights, statistics; `SSVAE.from_pretrained` builds from it
    write_checkpoint("my_vae", checkpoint)      # what `SSVAE.save_pretrained` calls

A folder holds config.json (the sizes), model.safetensors, and latent_stats.json if the statistics are known. For
files without a configuration the sizes are inferred from names and shapes.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..addresses import TRIES, copy_files, download, files_at, is_address
from ..config import parse_config
from ..errors import UserError
from ..storage import atomic, save_tensors, write_json
from .config import SSVAEConfig
from .hub import PUBLISHED_NAME, download_files, is_hub_name, snapshot
from .statistics import LatentStats
from .training_file import read_torch_file

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
STATISTICS_NAME = "latent_stats.json"
PUBLISHED_STATISTICS = Path(__file__).with_name("published_latent_stats.json")
"""Those that the published inference configuration uses with the published weights; their file does not hold them."""


@dataclass(frozen=True)
class Checkpoint:
    """An autoencoder on disk."""

    config: SSVAEConfig
    """Sizes of the network."""
    weights: Mapping[str, Tensor]
    """By parameter name."""
    statistics: LatentStats | None = None
    """Of the latents on the training videos, if they are known."""


def read_checkpoint(path: str | Path, revision: str | None = None) -> Checkpoint:
    """Read a folder, a safetensors file, a torch file, or a repository of the Hugging Face hub, onto the CPU.

    A file that the published trainer wrote, of the published sizes, is taken for the published one: its statistics
    are the published ones. Weights that were trained on, or anew, by the published trainer look the same from outside,
    so the log says it; `sat-ssvae stats` measures others.

    A folder of `sat-ssvae train` stands for its finished autoencoder or, while it trains, for its latest weights; one
    of the hub's cache (models--ORGANISATION--NAME) for its snapshot.

    Args:
        path: what to read, also at an address (s3://...); `organisation/name`, where nothing on this machine has that
            path, is one of the hub.
        revision: branch, tag or commit on the hub; None for its main branch.

    Raises:
        UserError: the path is missing, the file damaged, or its tensors are not those of an SSVAE.
    """
    if is_address(path):
        with TemporaryDirectory(prefix="sat-ssvae-") as scratch:
            return read_checkpoint(_fetched(str(path), Path(scratch)))
    name, path = str(path), Path(path)
    if not path.exists() and is_hub_name(name):
        path = _from_hub(name, revision)
    path = locate_checkpoint(path)
    if not path.is_dir():
        return _read_file(path)
    weights, _ = _read_weights(path / WEIGHTS_NAME)
    config = _read_config(path / CONFIG_NAME)
    known = (path / STATISTICS_NAME).exists()
    return Checkpoint(config, weights, read_stats(path / STATISTICS_NAME, config.latent_channels) if known else None)


def _fetched(address: str, scratch: Path) -> Path:
    """A local copy of a file, or of the files of a checkpoint's folder, in an object store."""
    try:
        there = {name for name, _ in files_at(address)}
        if WEIGHTS_NAME not in there:
            download(address, scratch / address.rpartition("/")[2], TRIES)
            return scratch / address.rpartition("/")[2]
        copy_files(address, sorted(there & {WEIGHTS_NAME, CONFIG_NAME, STATISTICS_NAME}), scratch)
    except OSError as error:
        raise UserError(f"{address}: no checkpoint of an SSVAE there ({error.strerror or error})") from None
    return scratch


def write_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a folder that `read_checkpoint` reads.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before stays.
    """
    folder = Path(folder)
    write_weights(checkpoint.weights, folder / WEIGHTS_NAME, "safetensors")
    write_json(folder / CONFIG_NAME, checkpoint.config.model_dump(mode="json"))
    if checkpoint.statistics is None:
        (folder / STATISTICS_NAME).unlink(missing_ok=True)  # those of weights that were here before
    else:
        write_stats(checkpoint.statistics, folder / STATISTICS_NAME)


def write_weights(weights: Mapping[str, Tensor], path: Path, form: Literal["safetensors", "torch"]) -> None:
    """Write weights into one file; a torch file has them under `state_dict`, like published ones.

    Raises:
        UserError: the disk is full or the folder cannot be written; what was there before stays.
    """
    try:
        if form == "safetensors":
            save_tensors(path, weights, {"format": "pt"})
            return
        with atomic(path) as partial:
            torch.save({"state_dict": {name: t.detach().cpu().contiguous() for name, t in weights.items()}}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose another folder") from None


def write_stats(stats: LatentStats, path: Path) -> None:
    """Write the JSON file that `read_stats` reads."""
    write_json(path, {"mean": stats.mean.tolist(), "std": stats.std.tolist()})


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


def published_stats(latent_channels: int) -> LatentStats:
    """Statistics of the published weights' latents, which diffusion models on them are trained with.

    Raises:
        UserError: the autoencoder has another number of channels than the published one.
    """
    return read_stats(PUBLISHED_STATISTICS, latent_channels)


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
        levels = max(1, count(r"encoder\.down\.(\d+)\."))
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
            f"{', '.join(list(weights)[:3]) or 'none'}; one of diffusers is given as diffusers:FOLDER"
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


def _from_hub(name: str, revision: str | None) -> Path:
    """The folder, or the published file, that a repository holds."""
    folder = download_files(name, revision, (CONFIG_NAME, WEIGHTS_NAME, STATISTICS_NAME, PUBLISHED_NAME))
    if (folder / WEIGHTS_NAME).exists() and (folder / CONFIG_NAME).exists():
        return folder
    if (folder / PUBLISHED_NAME).exists():
        return folder / PUBLISHED_NAME
    raise UserError(
        f"{name}: the repository has neither {CONFIG_NAME} with {WEIGHTS_NAME} nor {PUBLISHED_NAME}; download the file "
        "that you mean and give its path"
    )


def locate_checkpoint(path: Path) -> Path:
    """Where a folder of a training run, of the hub's cache or of the published file has its autoencoder.

    Any other path as it is.

    Raises:
        UserError: a folder of the hub's cache with several snapshots.
    """
    folder = snapshot(path)
    if not folder.is_dir() or (folder / WEIGHTS_NAME).exists():
        return folder
    if (folder / "vae" / WEIGHTS_NAME).exists():
        return folder / "vae"
    if (folder / PUBLISHED_NAME).exists():
        return folder / PUBLISHED_NAME
    latest = folder / "latest.pth"
    if not latest.exists():
        return folder
    logger.info("%s: the training is not finished, so its latest weights are taken", folder)
    return latest


def _read_weights(path: Path) -> tuple[Mapping[str, Tensor], bool]:
    """The tensors of a file, and whether a trainer such as the published one wrote it."""
    try:
        return (load_file(path), False) if path.suffix == ".safetensors" else read_torch_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such checkpoint; give a folder that holds {WEIGHTS_NAME}, a .safetensors or a torch file "
            f"({PUBLISHED_NAME})"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({error}); download or copy it again") from None


def _read_file(path: Path) -> Checkpoint:
    weights, of_training = _read_weights(path)
    config = infer_config(weights, path)
    if config != SSVAEConfig() or not (of_training or path.stem == Path(PUBLISHED_NAME).stem):
        return Checkpoint(config, weights)
    logger.warning(
        "%s: taken for the published network, so its latents are standardised with the published statistics; if you "
        "trained these weights, measure theirs: sat-ssvae stats",
        path,
    )
    return Checkpoint(config, weights, published_stats(config.latent_channels))


def _read_config(path: Path) -> SSVAEConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    return parse_config(SSVAEConfig, values, source=str(path))
