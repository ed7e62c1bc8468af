"""CogVideoX transformers trained on other latents: which of their tensors fit, and copies without the others.

A transformer for 48 channels has another first and last layer than one for 16. CogVideoX's fine-tuning draws tensors
that are missing from a checkpoint, but fails at tensors of a wrong shape, so `adapt` leaves those out.
"""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from ..errors import UserError, first_line
from ..storage import atomic, atomic_folder, write_text

MODEL = "model.diffusion_model."
"""What the names of the transformer's tensors begin with in a checkpoint of the whole model."""
FIRST_STAGE = "first_stage_model."
"""What the names of an autoencoder's tensors begin with in a checkpoint of the whole model."""
SAT_WEIGHTS_NAME = "mp_rank_00_model_states.pt"
"""SAT's name for the tensors of a checkpoint that is not split by model parallelism."""
_RELEASE = "release"  # SAT's name for weights that belong to no training step

Misfit = tuple[str, tuple[int, ...], tuple[int | None, ...]]
"""(tensor's name, shape found, shape needed)."""


_LORA_MATRIX = re.compile(r"(.*)\.matrix_([AB])\.(\d+)$")
_LOADED = re.compile(rf"[1-9]\d*|{_RELEASE}")
_LAYER = re.compile(r"\.transformer\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """What the shapes of a transformer's tensors follow from; None if a configuration does not say."""

    hidden: int
    in_channels: int
    out_channels: int
    patch: tuple[int, int, int]
    """(time, height, width)."""
    flat_patch: bool
    """Whether patches are flattened for a linear layer (main) or read by a 2-D convolution (v1.0)."""
    text_positions: int
    """Positions of text, which come first in the table."""
    video_positions: int
    """Tokens of the longest and largest video."""
    rotary_size: int | None
    """Channels per head of v1.0's rotary tables; None without such tables."""
    layers: int | None = None
    head_size: int | None = None
    time_embedding: int | None = None
    text_states: int | None = None
    """Channels of the text encoder's states."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes that depend on the latents, by the end of the tensor's name."""
        volume = math.prod(self.patch)
        flat = (self.hidden, self.in_channels * volume)
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": flat if self.flat_patch else (self.hidden, self.in_channels, *self.patch[1:]),
            "final_layer.linear.weight": (volume * self.out_channels, self.hidden),
            "final_layer.linear.bias": (volume * self.out_channels,),
            "pos_embed.pos_embedding": (1, self.text_positions + self.video_positions, self.hidden),
        }
        if self.rotary_size is not None:
            tables = ("pos_embed.freqs_sin", "pos_embed.freqs_cos")
            shapes |= dict.fromkeys(tables, (self.video_positions, self.rotary_size))
        return shapes

    def misfits(self, weights: Mapping[str, Tensor]) -> list[Misfit]:
        """Tensors of a checkpoint with another shape than these sizes need."""
        return _misfits(weights, self.shapes())

    def other_model(self, weights: Mapping[str, Tensor]) -> str | None:
        """How a checkpoint shows that it belongs to a transformer of another size, whatever its latents; or None."""
        if not any(name.startswith(MODEL) for name in weights):
            return f"no tensor's name there begins with {MODEL} (one is {next(iter(weights))})"
        numbers = [int(layer[1]) for name in weights if (layer := _LAYER.search(name))]
        if numbers and self.layers is not None and max(numbers) + 1 != self.layers:
            return f"it has {max(numbers) + 1} layers, the configuration {self.layers}"
        expected: dict[str, tuple[int | None, ...]] = {
            "transformer.layers.0.input_layernorm.weight": (self.hidden,),
            "adaln_layer.query_layernorm_list.0.weight": (self.head_size,),
            "patch_embed.text_proj.weight": (self.hidden, self.text_states),
            "time_embed.0.weight": (self.time_embedding, self.hidden),
        }
        known = {name: shape for name, shape in expected.items() if None not in shape}
        for name, found, needed in _misfits(weights, known):
            return f"{name} there is {found} instead of {needed}"
        return None


def _misfits(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]]) -> list[Misfit]:
    found = [
        (name, tuple(value.shape), shape)
        for name, value in weights.items()
        for ending, shape in shapes.items()
        if name.endswith(f".{ending}")
    ]
    return [misfit for misfit in found if misfit[1] != misfit[2]]


def read_transformer(folder: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint folder as SAT writes it, or of one iteration below it; they stay on disk until used.

    Raises:
        UserError: the folder is missing, or holds no readable checkpoint.
    """
    return _read(folder)["module"]


def sat_loads(folder: Path) -> bool:
    """Whether SAT loads the checkpoint that `read_transformer` reads: `latest` must name a number, or `release`.

    It does not load an iteration's folder, nor one like `1000-ema`; a copy that `adapt` makes of these it does.
    """
    return (folder / "latest").is_file() and _LOADED.fullmatch(_latest(folder)) is not None


def adapt(folder: Path, output: Path, sizes: TransformerSizes) -> list[Misfit]:
    """Write a copy of a checkpoint folder to `output`, without the tensors that do not fit, which are returned.

    A first stage in the checkpoint is left out, too: it belongs to other latents.

    Raises:
        UserError: `folder` holds no readable checkpoint, or that of a transformer of another size; or `output` exists
            or has no room.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; choose another folder, or delete it")
    checkpoint = _read(folder)
    if difference := sizes.other_model(checkpoint["module"]):
        raise UserError(f"{folder} is another model than the configuration's: {difference}; give that model's files")
    misfits = sizes.misfits(checkpoint["module"])
    left_out = {name for name, _, _ in misfits}
    module = {
        name: value
        for name, value in checkpoint["module"].items()
        if name not in left_out and not name.startswith(FIRST_STAGE)
    }
    with atomic_folder(output) as partial:
        write_transformer(module, partial)
    return misfits


def write_transformer(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Write tensors as a checkpoint folder of SAT, from which training starts at iteration 0 in any mode.

    In pretrain mode SAT would take a folder's number for the iteration to continue from.
    """
    write_sat_checkpoint(tensors, output, _RELEASE)


def write_sat_checkpoint(tensors: Mapping[str, Tensor], folder: Path, iteration: str) -> None:
    """Write tensors as SAT does, into `folder/iteration`, and name it in `folder/latest` when they are there.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        with atomic(folder / iteration / SAT_WEIGHTS_NAME) as partial:
            torch.save({"module": dict(tensors)}, partial)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder}: cannot be written ({first_line(error)}); make room") from None
    write_text(folder / "latest", iteration)


def _read(folder: Path) -> dict[str, Any]:
    path = _tensors_of(folder)
    zipped = is_zipfile(path)  # torch's older format, which SAT reads as well, is none
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        if "Unsupported global" in str(error):
            reason = "it holds more than tensors, and SAT cannot load it either; train with args.no_save_rng: true"
            raise UserError(f"{folder}: not a readable checkpoint of SAT ({reason})") from None
        if not zipped:  # torch's own messages are about its options
            raise UserError(f"{path}: not a readable checkpoint of SAT, damaged or incomplete; copy it again") from None
        raise UserError(f"{folder}: not a readable checkpoint of SAT ({first_line(error)})") from None
    if path.with_name("mp_rank_01_model_states.pt").exists():
        raise UserError(f"{path.parent}: split by model parallelism; merge it with SAT, to one mp_rank_00 file, first")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("module"), dict):
        raise UserError(f"{path}: not a checkpoint of SAT, which holds its tensors under `module`")
    _check_complete(checkpoint["module"], path)
    return checkpoint


def _tensors_of(folder: Path) -> Path:
    """The file of an iteration's folder, or of the iteration that `latest` names."""
    if (direct := folder / SAT_WEIGHTS_NAME).exists():
        return direct
    try:
        named = _latest(folder)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; {_wanted(folder)}") from None
    if (path := folder / named / SAT_WEIGHTS_NAME).exists():
        return path
    if there := sorted(found.parent.name for found in folder.glob(f"*/{SAT_WEIGHTS_NAME}")):
        raise UserError(f"{folder / 'latest'} names {named[:20]!r}, which is not there; there is {', '.join(there)}")
    raise UserError(f"{path}: no such file; {_wanted(folder)}")


def _latest(folder: Path) -> str:
    return (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()


def _wanted(folder: Path) -> str:
    """What to give instead of a folder that is none of SAT's."""
    if folder.is_file():
        return "give the folder that holds `latest`, not one of its files"
    if not folder.exists() and not folder.is_absolute():
        return f"there is no {folder} in {Path.cwd()}"
    if any(folder.rglob("zero_pp_rank_*_model_states.pt")):
        return "ZeRO stage 3 has split the tensors; merge them with the folder's zero_to_fp32.py, or train at stage 2"
    if any(folder.rglob("*.safetensors")):
        return "these are diffusers' files; give CogVideoX's SAT files, whose folder holds `latest`"
    return f"a transformer's folder holds `latest` and 1/{SAT_WEIGHTS_NAME}"


def _check_complete(weights: Mapping[Any, Any], path: Path) -> None:
    if not weights:
        raise UserError(f"{path}: holds no tensors")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: {name!r} is no name of a tensor, as SAT writes it")
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is of type {type(value).__name__}, must be a tensor, as SAT writes it")
        if not (matrix := _LORA_MATRIX.match(name)):
            continue
        layer, letter, number = matrix.groups()
        if not {f"{layer}.original.weight", f"{layer}.weight"} & weights.keys():
            raise UserError(f"{path}: holds LoRA matrices without the layers that they change; give the whole model's")
        other = f"{layer}.matrix_{'B' if letter == 'A' else 'A'}.{number}"
        if other not in weights:
            raise UserError(f"{path}: holds {name} without {other}; give the whole model's")
