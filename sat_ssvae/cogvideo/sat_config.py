"""CogVideoX's configuration files: merged as its scripts merge them, and read by dotted keys.

config = SATConfig(merge_configs(["configs/cogvideox_2b.yaml", "configs/sft.yaml", "cogvideox_2b_5b.yaml"]))
config.get("model.scale_factor")
config.transformer().shapes()
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, TypeAdapter, ValidationError

from ..errors import UserError, first_line, one_line
from .sat_transformer import TransformerSizes

Era = Literal["v1.0", "main"]
"""Versions of CogVideoX's code: tag v1.0 runs CogVideoX-2B and 5B, main runs CogVideoX1.5."""

NETWORK = "model.network_config.params"
DISCRETIZATION = "model.denoiser_config.params.discretization_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config.params"
EMBEDDERS = "model.conditioner_config.params.emb_models"
DEFAULTS = {"args.latent_channels": 32, "args.sampling_num_frames": 32, "model.scale_factor": 1.0}
"""CogVideoX's values where a configuration has none."""
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = tuple[Count, Count]
ARGUMENT_NUMBERS = (
    *("train_iters", "eval_iters", "eval_interval", "save_interval", "log_interval"),
    *("batch_size", "eval_batch_size", "num_workers", "sampling_fps"),
)
VALUE_FORMS: Mapping[str, Any] = MappingProxyType(
    {
        **{
            f"{NETWORK}.{name}": Count
            for name in ("num_frames", "time_compressed_rate", "latent_height", "latent_width")
        },
        **{f"{NETWORK}.{name}": Count for name in ("in_channels", "out_channels", "hidden_size", "time_embed_dim")},
        **{f"{NETWORK}.{name}": Count for name in ("num_layers", "num_attention_heads", "ofs_embed_dim")},
        f"{NETWORK}.patch_size": Count | tuple[Count, Count, Count],
        f"{NETWORK}.modules.patch_embed_config.params.text_hidden_size": Count,
        f"{NETWORK}.modules.lora_config.params.lora_alpha": Number,
        f"{NETWORK}.modules.lora_config.params.r": Count,
        POSITIONS: dict[str, Any],
        f"{POSITIONS}.text_length": Annotated[int, Field(ge=0)],
        f"{POSITIONS}.hidden_size_head": Count,
        **{
            f"{place}.{axis}_interpolation": Number
            for place in (NETWORK, POSITIONS)
            for axis in ("height", "width", "time")
        },
        DISCRETIZATION: dict[str, Number],
        "model.not_trainable_prefixes": list[str],
        EMBEDDERS: list[dict[str, Any]],
        "model.scale_factor": float,
        **{f"deepspeed.optimizer.params.{name}": float for name in ("lr", "eps", "weight_decay")},
        "args.load": str,
        "args.mode": Literal["pretrain", "finetune", "inference"],
        **dict.fromkeys(
            (f"args.{name}" for name in ARGUMENT_NUMBERS), Annotated[float, Field(ge=0, allow_inf_nan=False)]
        ),
        **dict.fromkeys(("args.image2video", "model.latent_input", "model.noised_image_input"), bool),
        "args.sampling_image_size": Size,
        "args.sampling_num_frames": Count,
        "data.params.video_size": Size,
        "data.params.max_num_frames": Count,
        "data.params.skip_frms_num": Annotated[float, Field(ge=0, allow_inf_nan=False)],
        "data.params.fps": Number,
    }
)
"""The form that a value must have where something is computed from it."""
TEXT_TOKENS: Mapping[int, Era] = MappingProxyType({226: "v1.0", 224: "main"})
"""Tokens of the text that the stock models know: CogVideoX-2B and 5B of v1.0, CogVideoX1.5 of main."""
T5_TOKENS = 77
"""Tokens of CogVideoX's FrozenT5Embedder where its `max_length` is not given."""
SLOW_START = 100
"""Iterations that SAT runs at 5 % of the learning rate when it finetunes."""
SLOW_START_NOTE = (
    f"args.train_iters is {{iterations}}, but SAT runs the first {SLOW_START} iterations of a finetuning at 5 % of the "
    "learning rate, whatever args.warmup says; train for more, or set args.mode: pretrain"
)

TRANSFORMER_LAYERS = "model.diffusion_model.transformer"
FROZEN_NOTE = (
    "model.not_trainable_prefixes freezes the transformer, and without modules.lora_config only the first and last "
    "layer learn; for LoRA give CogVideoX's *_lora.yaml, or our cogvideox1.5_lora.yaml"
)


def era_of(sat: Path) -> Era:
    """The version of CogVideoX in a sat folder, told by how its diffusion_video.py decodes."""
    return "main" if "fake_cp_size" in (sat / "diffusion_video.py").read_text(encoding="utf-8") else "v1.0"


def imported_checkout() -> Path | None:
    """The sat folder of the CogVideoX that this process imported, if any."""
    module = sys.modules.get("diffusion_video")
    return None if module is None or module.__file__ is None else Path(module.__file__).resolve().parent


def find_checkout(files: Sequence[Path]) -> Path | None:
    """CogVideoX's sat folder: the working directory, or else where `files` come from; None if there is none."""
    folders = (Path.cwd(), *(file.resolve().parent.parent for file in files))
    return next((folder for folder in folders if (folder / "diffusion_video.py").is_file()), None)


def checkout_era(files: Sequence[Path]) -> Era | None:
    """The version of CogVideoX in the checkout that `find_checkout` finds."""
    folder = find_checkout(files)
    return None if folder is None else era_of(folder)


def merge_configs(files: Sequence[str | Path]) -> dict[str, Any]:
    """Merge `--base` files as CogVideoX does: later files change and add keys.

    Raises:
        UserError: a file is missing or not readable as a YAML mapping, or a reference `${...}` leads nowhere.
    """
    layers = [_load(file) for file in files]
    try:
        return _resolved(_merge(files, layers))
    except OmegaConfBaseException as error:
        problem = f"{error.full_key or 'a key'}: {first_line(error)}"
        raise UserError(
            f"{problem}; write the value there (CogVideoX takes model out before it follows references)"
        ) from None


def _merge(files: Sequence[str | Path], layers: Sequence[Any]) -> Any:
    try:
        return OmegaConf.merge({}, *layers)
    except TypeError:
        _merge(files[:-1], layers[:-1])  # raises if an earlier file is at fault
        raise UserError(
            f"{files[-1]}: not readable YAML of a configuration: a list and a mapping do not merge"
        ) from None


def _load(file: str | Path) -> Any:
    try:
        return OmegaConf.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such configuration file") from None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not readable YAML of a configuration ({one_line(error)})") from None


def _resolved(merged: Any) -> dict[str, Any]:
    """With references followed as CogVideoX does: `args` sees all other sections, `model` none but the environment."""
    values: dict[str, Any] = {}
    for name in sorted(map(str, merged), key=lambda name: (name == "model") - (name == "args")):
        section = merged.pop(name)
        values[name] = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    return values


class SATConfig:
    """A merged configuration, read by dotted keys; what is missing has CogVideoX's default, or is None."""

    def __init__(self, configuration: dict[str, Any], files: Sequence[Path] = ()) -> None:
        """`files`: what it was merged from, to be named in messages."""
        self._values = configuration
        self._files = files

    def get(self, key: str) -> Any:
        """The value at `model.network_config.params.in_channels`, say.

        Raises:
            UserError: it is not of the key's form, such as a text instead of a number.
        """
        value = self.section(key)
        if value is None:
            return DEFAULTS.get(key)
        if key in VALUE_FORMS:
            try:
                _check_form(key, value)
            except UserError as error:
                raise UserError(f"{error}{self.origin(key)}") from None
        return value

    def section(self, key: str) -> Any:
        """What is written at a key, of whatever form; None if there is nothing."""
        value: Any = self._values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def sections(self) -> dict[str, Any]:
        """All that is written."""
        return self._values

    def origin(self, key: str) -> str:
        """` (in FILE)`, the last file that a key is written in; empty if none is known."""
        layers = {file: OmegaConf.to_container(_load(file)) for file in self._files}
        written = [file for file, values in layers.items() if SATConfig(cast(dict[str, Any], values)).has(key)]
        return f" (in {written[-1]})" if written else ""

    def has(self, key: str) -> bool:
        """Whether a key is written, even as null."""
        section, _, name = key.rpartition(".")
        inside = self.section(section) if section else self._values
        return isinstance(inside, dict) and name in inside

    def required(self, key: str) -> Any:
        """The value of a key that CogVideoX's own files have.

        Raises:
            UserError: it is missing.
        """
        value = self.get(key)
        if value is None:
            raise UserError(f"{key} is missing; give the stock files before the overlay")
        return value

    def network(self, name: str) -> Any:
        """A parameter of the transformer."""
        return self.get(f"{NETWORK}.{name}")

    def required_network(self, name: str) -> Any:
        """A parameter of the transformer that the stock files have, see `required`."""
        return self.required(f"{NETWORK}.{name}")

    @property
    def era(self) -> Era:
        """The version of CogVideoX that the configuration is for: patch_size is a number in v1.0 and a list on main."""
        return "main" if isinstance(self.network("patch_size"), list) else "v1.0"

    @property
    def stock_era(self) -> Era | None:
        """The version that the stock files belong to, whatever the overlay says; None if they do not show it."""
        if self.network("ofs_embed_dim") is not None:  # CogVideoX1.5's image to video
            return "main"
        return TEXT_TOKENS.get(self.get(f"{POSITIONS}.text_length"))

    @property
    def samples(self) -> bool:
        """Whether this is a configuration for sample_video.py."""
        return bool(self.get("args.mode") == "inference")

    @property
    def has_images(self) -> bool:
        """Whether an image's latent is concatenated."""
        return bool(self.get("model.noised_image_input"))

    @property
    def rotary(self) -> bool:
        """Whether positions turn queries and keys, instead of being added from a table."""
        return "Rotary" in str(self.network("modules.pos_embed_config.target"))

    @property
    def gives_latents(self) -> bool:
        """Whether the data set has latents instead of videos."""
        return str(self.get("data.target")).endswith(".LatentDataset")

    def interpolation(self, axis: Literal["height", "width", "time"]) -> float:
        """The number that positions are divided by; v1.0 and main have it in different places."""
        name = f"{axis}_interpolation"
        return float(self.get(f"{POSITIONS}.{name}") or self.network(name) or 1.0)

    def folders(self, key: Literal["train_data", "valid_data"]) -> list[str]:
        """The folders of training or held-out data; empty where there is no list of them."""
        folders = self.get(f"args.{key}")
        return [str(folder) for folder in folders] if isinstance(folders, list) else []

    @property
    def text_encoder(self) -> str | None:
        """The folder of T5 and its tokenizer, if the configuration names one."""
        folder = self._text_embedder.get("model_dir")
        return None if folder is None else str(folder)

    @property
    def has_own_transformer(self) -> bool:
        """Whether the transformer is a class that is not CogVideoX's, whose sizes and parts may differ."""
        target = self.section("model.network_config.target")
        return isinstance(target, str) and target.rpartition(".")[2] != "DiffusionTransformer"

    @property
    def text_states(self) -> int | None:
        """Channels of the text encoder's states, if its folder is there and says how many."""
        try:
            described = json.loads((Path(self.text_encoder or "") / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        states = described.get("d_model") if isinstance(described, dict) else None
        return states if type(states) is int else None

    @property
    def encoded_tokens(self) -> int | None:
        """Tokens that the text encoder gives for each prompt, if the configuration or CogVideoX says how many.

        Raises:
            UserError: `max_length` is no number of tokens.
        """
        embedders = self.get(EMBEDDERS) or [{}]
        stock = str(embedders[0].get("target")).endswith(".FrozenT5Embedder")
        tokens = self._text_embedder.get("max_length", T5_TOKENS if stock else None)
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise UserError(f"{EMBEDDERS}[0].params.max_length is {tokens!r}: input should be a valid integer from 1")
        return tokens

    @property
    def _text_embedder(self) -> dict[str, Any]:
        embedders = self.get(EMBEDDERS) or [{}]
        params = embedders[0].get("params")
        return params if isinstance(params, dict) else {}

    @property
    def patch(self) -> tuple[int, int, int]:
        """Patch (time, height, width) of the transformer."""
        patch = self.required_network("patch_size")
        return (1, patch, patch) if isinstance(patch, int) else tuple(patch)

    def transformer(self) -> TransformerSizes:
        """What the shapes of the transformer's tensors follow from.

        Raises:
            UserError: a number is missing.
        """
        heads = self.network("num_attention_heads")
        return TransformerSizes(
            hidden=self.required_network("hidden_size"),
            in_channels=self.required_network("in_channels"),
            out_channels=self.required_network("out_channels"),
            patch=self.patch,
            flat_patch=isinstance(self.required_network("patch_size"), list),
            text_positions=self.get(f"{POSITIONS}.text_length") or 0,
            video_positions=self._video_positions(),
            rotary_size=self.get(f"{POSITIONS}.hidden_size_head"),
            layers=self.network("num_layers"),
            head_size=self.required_network("hidden_size") // heads if heads else None,
            time_embedding=self.network("time_embed_dim"),
            text_states=self.network("modules.patch_embed_config.params.text_hidden_size"),
        )

    def notes(self) -> list[str]:
        """Where a training run would not do what one expects, if anywhere."""
        iterations = self.get("args.train_iters")
        slow = self.get("args.mode") == "finetune" and type(iterations) is int and iterations <= 2 * SLOW_START
        frozen = TRANSFORMER_LAYERS in (self.get("model.not_trainable_prefixes") or []) and not self.samples
        alone = frozen and self.network("modules.lora_config") is None
        return [*([SLOW_START_NOTE.format(iterations=iterations)] if slow else []), *([FROZEN_NOTE] if alone else [])]

    def _video_positions(self) -> int:
        names = ("num_frames", "time_compressed_rate", "latent_height", "latent_width")
        frames, rate, height, width = map(self.required_network, names)
        _, rows, columns = self.patch
        return int(((frames - 1) // rate + 1) * (height // rows) * (width // columns))


def _check_form(key: str, value: Any) -> None:
    try:
        _form(key).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        found = error.errors()[0]
        inside = [part for part in found["loc"] if isinstance(part, int) or (isinstance(value, dict) and part in value)]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inside)
        problem = f"{found['msg'][0].lower()}{found['msg'][1:]}"
        raise UserError(f"{key}{place} is {found['input']!r}: {problem}") from None


@cache
def _form(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(VALUE_FORMS[key])
