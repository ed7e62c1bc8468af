"""Weights in torch files: plain state dicts, and what the published trainer (PyTorch Lightning) saves."""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

logger = logging.getLogger(__name__)

LOSS_PREFIX = "loss."
"""Of the discriminator and the perceptual network, which only training uses."""
EMA_PREFIX = "model_ema."
"""Of the moving average of the weights; its names have no dots."""


class TorchFile(NamedTuple):
    """The autoencoder's part of a torch file."""

    weights: dict[str, Tensor]
    """By parameter name: their moving average, where the file holds one."""
    of_training: bool
    """Whether a Lightning trainer such as the published one wrote it."""


def read_torch_file(path: Path) -> TorchFile:
    """Read tensors; nothing that the file says is executed.

    Raises:
        UserError: damaged, no dictionary of tensors, or it pickles a class that is not plain data.
        FileNotFoundError: no such file.
    """
    loaded = _load(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a checkpoint, expected a dictionary of tensors or one under `state_dict`")
    weights = {name: value for name, value in state.items() if not name.startswith((LOSS_PREFIX, EMA_PREFIX))}
    losses = sum(name.startswith(LOSS_PREFIX) for name in state)
    if losses:
        logger.info("%s: left out %d tensors that only training uses", path, losses)
    average = {name.removeprefix(EMA_PREFIX): value for name, value in state.items() if name.startswith(EMA_PREFIX)}
    return TorchFile(_averaged(weights, average, path), losses > 0 or "pytorch-lightning_version" in loaded)


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        refused = re.search(r"Unsupported (?:global|class).*?GLOBAL (\S+)", str(error), re.DOTALL)
        if refused:
            raise UserError(
                f"{path}: holds an object of the class {refused[1]}, which is not loaded because a pickled class can "
                "run code; where the file is trusted, save its weights alone: "
                f"python -c \"import torch; torch.save({{'state_dict': torch.load({str(path)!r}, weights_only=False)"
                "['state_dict']}, 'weights.ckpt')\""
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's text is advice on pickled classes
            reason = f"not a torch file; it begins with {_beginning(path)!r}"
        raise UserError(f"{path}: damaged or not a checkpoint ({reason}); download or copy it again") from None


def _beginning(path: Path) -> bytes:
    """Tells a web page or a Git LFS pointer that was saved in place of the file."""
    with path.open("rb") as file:
        return file.read(16)


def _numpy_scalars() -> list[Any]:
    """What a pickled NumPy number consists of, by the names of NumPy 1 and 2; learning rates are such numbers."""
    make = np.float64(0).__reduce__()[0]  # multiarray.scalar: it takes a type and bytes
    dtypes = {type(np.dtype(kind)) for kind in np.sctypeDict.values() if np.dtype(kind).kind in "biufc"}
    named = [(make, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    return [*named, np.dtype, *dtypes]


def _averaged(weights: dict[str, Tensor], average: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`weights`, with their moving average in place of every part (encoder, decoder, ...) that has one.

    Frozen parts have none, and need none. A moving average that was never updated, or that covers only some of a part's
    tensors, is left alone.
    """
    if not average:
        return weights
    updates = average.get("num_updates")
    if updates is not None and updates.item() == 0:
        logger.info("%s: its moving average was never updated; the weights themselves are taken", path)
        return weights
    names = {name: average.get(name.replace(".", ""), average.get(name)) for name in weights}
    parts: dict[str, list[bool]] = {}
    for name, mean in names.items():
        parts.setdefault(name.partition(".")[0], []).append(mean is not None and mean.shape == weights[name].shape)
    if not any(map(all, parts.values())) or any(any(known) and not all(known) for known in parts.values()):
        logger.warning("%s: its moving average is not complete; the weights themselves are taken", path)
        return weights
    taken = [part for part, known in parts.items() if all(known)]
    logger.info("%s: took the moving average of %s", path, ", ".join(taken))
    return {name: weights[name] if mean is None else mean for name, mean in names.items()}
