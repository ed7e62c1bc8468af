"""The autoencoders that SSVAE is compared with, opened by one specification.

vae = open_autoencoder("runs/my_vae/vae")                 # an SSVAE: folder, .safetensors or published .ckpt
vae = open_autoencoder("wan2.2:Wan-AI/Wan2.2-TI2V-5B-Diffusers")      # KIND:PATH_OR_ID, through diffusers
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..addresses import is_address
from ..errors import UserError, one_line
from ..vae.autoencoder import SSVAE
from ..vae.hub import download_files, is_hub_name, snapshot
from .classes import as_autoencoder
from .protocol import VideoAutoencoder

if TYPE_CHECKING:
    from diffusers import ModelMixin

OWN_CLASS = "AutoencoderSSVAE"
"""SSVAE as `sat_ssvae.diffusers` saves it."""


_CONFIGS = ("config.json", "vae/config.json")
_WEIGHTS = "diffusion_pytorch_model"
_WEIGHTS_OF_HUB = (
    (f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}.safetensors.index.json", f"{_WEIGHTS}-?????-of-?????.safetensors"),
    (f"{_WEIGHTS}*",),
)
"""Patterns of what is fetched: the first that a repository has."""


class Kind(NamedTuple):
    """What a KIND of specification must find in the config.json of a diffusers model."""

    class_name: str | None
    """The diffusers class; None takes any that config.json names."""
    residual: bool | None = None
    """Whether the class's residual variant is meant; None if it has none."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "cogvideox": Kind("AutoencoderKLCogVideoX"),
        "wan2.1": Kind("AutoencoderKLWan", residual=False),
        "wan2.2": Kind("AutoencoderKLWan", residual=True),
        "hunyuan": Kind("AutoencoderKLHunyuanVideo"),
        "hunyuan1.5": Kind("AutoencoderKLHunyuanVideo15"),
        "ltx": Kind("AutoencoderKLLTXVideo"),
        "ltx2": Kind("AutoencoderKLLTX2Video"),
        "cosmos": Kind("AutoencoderKLCosmos"),
        "mochi": Kind("AutoencoderKLMochi"),
        "qwenimage": Kind("AutoencoderKLQwenImage"),
        "modelscope": Kind("AutoencoderKL"),  # Stable Diffusion's, frame by frame
        "diffusers": Kind(None),
    }
)


def open_autoencoder(specification: str) -> VideoAutoencoder:
    """The autoencoder of `PATH` (an SSVAE) or `KIND:PATH_OR_ID`, in float32 on the CPU, in evaluation mode.

    PATH_OR_ID is a folder that diffusers wrote, of the autoencoder alone or of a whole pipeline, or a name on the
    Hugging Face hub. Each autoencoder of diffusers encodes and decodes a tiny video before it is returned.

    Raises:
        UserError: an unknown kind, nothing there, another autoencoder than the kind says, or one that cannot be used.
    """
    if is_address(specification):
        return SSVAE.from_pretrained(specification).for_inference()
    kind, colon, place = specification.partition(":")
    if kind in KINDS:
        place = os.path.expanduser(place)  # noqa: PTH111 - shells expand ~ only where a word begins; `./` has to stay
    if Path(specification).exists() or (not colon and kind not in KINDS):
        _refuse_diffusers(Path(specification))
        return SSVAE.from_pretrained(specification).for_inference()
    if kind not in KINDS or not place:
        known = ", ".join(KINDS)
        raise UserError(f"{specification}: expected the path of an SSVAE, or KIND:PATH_OR_ID with a KIND of {known}")
    folder = _folder(place)
    subfolder, config = _find_config(folder, place)
    name, residual = str(config["_class_name"]), bool(config.get("is_residual"))
    wanted = KINDS[kind]
    if (wanted.class_name or name) != name or wanted.residual not in (None, residual):
        raise UserError(f"{place}: holds a{' residual' * residual} {name}, which is not {kind}; try diffusers:{place}")
    if name == OWN_CLASS:
        from ..diffusers.ssvae import AutoencoderSSVAE

        own: SSVAE = _load(AutoencoderSSVAE, folder, subfolder, place).ssvae
        return own.for_inference()
    return _open_foreign(name, folder, subfolder, place)


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder or its vae/ has weights that diffusers wrote, or a config.json that names a class."""
    folder = snapshot(folder)
    written = any([*folder.glob(f"{_WEIGHTS}*"), *folder.glob(f"vae/{_WEIGHTS}*")])
    return written or any(map(_names_class, (folder / name for name in _CONFIGS)))


def _names_class(path: Path) -> bool:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "_class_name" in config


def _refuse_diffusers(path: Path) -> None:
    """Say how a folder of diffusers, or a file of its weights, is given."""
    if is_diffusers_folder(path):
        raise UserError(f"{path}: a folder of diffusers; write diffusers:{path}")
    if path.name.startswith((_WEIGHTS, "model.")) and is_diffusers_folder(path.parent):
        raise UserError(f"{path}: a file in a folder of diffusers; write diffusers:{path.parent}")


def _open_foreign(name: str, folder: Path, subfolder: str | None, place: str) -> VideoAutoencoder:
    import diffusers

    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, torch.nn.Module):  # AutoModel loads others
        raise UserError(f"{place}: diffusers {diffusers.__version__} has no class {name} of models")
    vae = _load(cls, folder, subfolder, place)
    try:
        return as_autoencoder(vae)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _folder(place: str) -> Path:
    """`place` on this machine, or a copy of the configurations that a repository of that name has on the hub."""
    if Path(place).is_file():
        raise UserError(f"{place}: a file; expected the folder that diffusers wrote, of config.json and weights")
    if Path(place).is_dir():
        return snapshot(Path(place))
    if not is_hub_name(place):
        raise UserError(f"{place}: no such folder, and not the name of a repository on a hub (organisation/name)")
    return download_files(place, None, _CONFIGS)


def _find_config(folder: Path, place: str) -> tuple[str | None, dict[str, Any]]:
    """Where the autoencoder is in a folder, "vae" in a pipeline's, and its configuration."""
    from diffusers import AutoencoderKL

    subfolder = "vae" if (folder / "vae" / "config.json").is_file() else None
    if not (folder / (subfolder or "") / "config.json").is_file():
        raise UserError(f"{place}: no autoencoder of diffusers there (neither config.json nor vae/config.json)")
    try:
        config = dict(AutoencoderKL.load_config(str(folder), subfolder=subfolder))
    except (OSError, TypeError, ValueError) as error:  # TypeError of a list
        raise UserError(f"{place}: unreadable config.json ({one_line(error, 200)})") from None
    if "_class_name" not in config:
        raise UserError(f"{place}: its config.json names no class of diffusers; an SSVAE is given by its path alone")
    return subfolder, config


def _load(cls: Any, folder: Path, subfolder: str | None, place: str) -> "ModelMixin | Any":
    """The model of a folder; its weights are fetched first if `place` is the name of a repository on the hub."""
    if not Path(place).is_dir():
        folder = _fetch_weights(place, subfolder)
    files = _weights(folder / (subfolder or ""))
    if not files:
        raise UserError(f"{place}: no weights of its {cls.__name__} (expected as {_WEIGHTS}*.safetensors or .bin)")
    options: dict[str, Any] = {
        "use_safetensors": any(path.suffix == ".safetensors" for path in files),
        "torch_dtype": torch.float32,
        "low_cpu_mem_usage": find_spec("accelerate") is not None,
        "variant": _variant(files),
    }
    try:
        vae, report = cls.from_pretrained(str(folder), subfolder=subfolder, output_loading_info=True, **options)
    except Exception as error:  # whatever a class makes of a configuration or of files that are not its own
        raise UserError(f"{place}: not a readable {cls.__name__} ({one_line(error, 200)})") from None
    if missing := report["missing_keys"] + report["mismatched_keys"]:
        raise UserError(f"{place}: {len(missing)} tensors of {cls.__name__} are missing, the first is {missing[0]}")
    return vae


def _fetch_weights(name: str, subfolder: str | None) -> Path:
    prefix = f"{subfolder}/" if subfolder else ""
    for patterns in _WEIGHTS_OF_HUB:
        folder = download_files(name, None, (*_CONFIGS, *(prefix + pattern for pattern in patterns)))
        if any((folder / prefix).glob(f"{_WEIGHTS}*")):
            break
    return folder


def _weights(folder: Path) -> list[Path]:
    """The files of weights in a folder; a link into a cache may lead nowhere."""
    return [path for path in folder.glob(f"{_WEIGHTS}*") if path.suffix in (".safetensors", ".bin") and path.exists()]


def _variant(files: Sequence[Path]) -> str | None:
    """The variant, such as fp16, of weights that are of variants alone; of several, the finest."""
    variants = {re.sub(r"-\d+-of-\d+", "", path.name).split(".")[1] for path in files}
    return None if variants & {"safetensors", "bin"} else max(variants, default=None)  # fp32, fp16, bf16
