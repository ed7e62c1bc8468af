"""Typed configuration: YAML plus `key=value` overrides become frozen objects; unknown keys are refused.

    config = load_config(TrainConfig, "ssvae_demo.yaml", ["lr=5e-5", "model.base_channels=16"])

Every component owns a subclass of `Config` next to the code that it configures; fields are documented under
themselves and ranges are checked when the object is built.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from .errors import UserError, did_you_mean, nearest

C = TypeVar("C", bound="Config")

ARTICLE_NAME = "ch48_LCR_LMR_"
"""How the article begins the names of the configurations that are called article_* here."""


class Config(BaseModel):
    """Base of all configuration objects: immutable, typed, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def load_config(
    cls: type[C],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    replace: Mapping[str, Any] | None = None,
) -> C:
    """Read a YAML file, apply dotted `key=value` overrides, and validate the result as `cls`.

    Args:
        cls: what to build.
        path: the file; None for the defaults of `cls`.
        overrides: `key=value` settings, applied last.
        replace: top-level keys whose values in the file are dropped for these.

    Raises:
        UserError: the file is missing or not YAML, or a key or value does not fit (named in the message).
    """
    source = "settings" if path is None else str(path)
    values = ({} if path is None else read_yaml(path)) | dict(replace or {})
    try:
        merged = OmegaConf.create(values)
        for override in overrides:
            _set(merged, override, cls)
        values = cast(dict[Any, Any], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        name = str(error.full_key)
        raise UserError(f"{source}: `{name}` must be given, for example {name}=...") from None
    except UserError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{source}: not a readable YAML configuration ({_one_line(error)})") from None
    return parse_config(cls, values, source=source)


def _set(config: Any, override: str, cls: type[Config]) -> None:
    """Apply one `key=value`; a number in the key counts the items of a list, from 0."""
    if not re.match(r"\w+(\.\w+)*=", override):
        raise UserError(f"`{_one_line(override)}`: expected key=value, for example max_steps=1000")
    key = override.partition("=")[0]
    above, number, _ = re.split(r"\.(\d+)(?:\.|$)", key, maxsplit=1) if re.search(r"\.\d", key) else ("", "", "")
    try:
        if number and OmegaConf.select(config, above) is None:
            default = next((setting.default for setting in settings_of(cls) if setting.key == above), None)
            if isinstance(default, list):
                OmegaConf.update(config, above, default)
        value = OmegaConf.from_dotlist(["value" + override[len(key) :]])._get_node("value")
        OmegaConf.update(config, key, value, merge=True)
    except IndexError:
        length = len(OmegaConf.select(config, above))
        raise UserError(f"`{override}`: {above} has {length} items, counted from 0") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"`{_one_line(override)}`: cannot be set ({_one_line(error)})") from None


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The plain mapping that a YAML file holds.

    Raises:
        UserError: the file is missing, not YAML, or no mapping.
    """
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"{path}: expected `key: value` lines at the top level, found a list")
        return cast(dict[Any, Any], OmegaConf.to_container(loaded))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except UserError:
        raise
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not a readable YAML configuration ({_one_line(error)})") from None


def parse_config(cls: type[C], values: Mapping[Any, Any], source: str = "configuration") -> C:
    """Validate a plain mapping as `cls`.

    Raises:
        UserError: names each offending key, with the nearest known one for a misspelling.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        problems = "; ".join(_describe(cls, problem) for problem in error.errors(include_url=False))
        raise UserError(f"{source}: {_one_line(problems)}") from None


def fingerprint(*parts: Any) -> str:
    """A short hash that changes when any configuration (or other JSON-able part) changes."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


class Setting(NamedTuple):
    """A field of a configuration."""

    key: str
    """Dotted; N and NAME stand for the items of a list and of a mapping."""
    annotation: Any
    bounds: tuple[Any, ...]
    """What pydantic knows of its range: objects with `gt`, `ge`, `lt` or `le`."""
    description: str
    default: Any
    """Plain values, as in YAML."""
    is_required: bool
    """Whether the user must give a value, so that there is no default."""
    is_section: bool
    """Whether the settings below it follow."""

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def settings_of(cls: type[BaseModel], defaults: Mapping[str, Any] | None = None, prefix: str = "") -> list[Setting]:
    """All fields of a configuration and of the ones inside it, in the order of their definition."""
    found: dict[str, Setting] = {}
    for name, field in cls.model_fields.items():
        is_required = field.is_required() and name not in (defaults or {})
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        plain = (defaults or {}).get(name, TypeAdapter(Any).dump_python(default, mode="json"))
        models, items = _models_in(field.annotation), _items_of(field.annotation)
        about = " ".join((field.description or "").split())
        is_section = len(models) == 1 and not items
        bounds = tuple(field.metadata)
        settings = [Setting(prefix + name, field.annotation, bounds, about, plain, is_required, is_section)]
        below = plain if isinstance(plain, dict) and not items else None
        for model in models:
            settings += settings_of(model, below, f"{prefix}{name}{items}.")
        for setting in settings:
            if known := found.get(setting.key):  # the models of a union share it, such as `kind`
                setting = known._replace(annotation=known.annotation | setting.annotation)  # noqa: PLW2901
            found[setting.key] = setting
    return list(found.values())


def _items_of(annotation: Any) -> str:
    """How keys name an item: `.N` of a list, `.NAME` of a mapping; empty for a single value."""
    origins = [get_origin(annotation), *(get_origin(argument) for argument in get_args(annotation))]
    return ".N" if tuple in origins or list in origins else ".NAME" if dict in origins else ""


def _describe(cls: type[BaseModel], problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return _unknown(cls, location, problem["input"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"`{name}` is required"
    return f"`{name}` = {problem['input']!r}: {message}" if name else message


def _unknown(cls: type[BaseModel], location: Sequence[Any], value: Any) -> str:
    """One line on a key that does not exist, and the key that was probably meant."""
    parts = [str(part) for part in location]
    while isinstance(value, dict) and value:  # clips.fps is one unknown key, not `clips`
        key, value = next(iter(value.items()))
        parts.append(str(key))
    known, settings = _known_keys(cls, location[:-1]), settings_of(cls)
    names = {setting.name for setting in settings}
    near = nearest(parts[len(location) - 1], known)
    if parts[-1] not in names and near:
        hint = f"did you mean `{'.'.join([*parts[: len(location) - 1], near])}`?"
    else:
        hint = suggest_key(parts[-1], settings) or f"known keys: {', '.join(sorted(known))}"
    return f"unknown key `{'.'.join(parts)}`, {hint}"


def suggest_key(name: str, settings: Sequence[Setting]) -> str:
    """A question with the full keys of the settings that are called `name`, or nearly so; empty if there are none."""
    near = nearest(name, {setting.name for setting in settings})
    keys = [setting.key for setting in settings if setting.name == near]
    depth = min((key.count(".") for key in keys), default=0)
    shown = " or ".join(f"`{key}`" for key in keys if key.count(".") == depth)
    return f"did you mean {shown}?" if shown else ""


def _known_keys(cls: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Field names of the model that `location` points to (union members and list items looked through)."""
    model: type[BaseModel] | None = cls
    for part in location:
        field = model.model_fields.get(str(part)) if model else None
        if field is not None:
            model = next(iter(_models_in(field.annotation)), None)
    return list(model.model_fields) if model else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


def packaged(name: str) -> Path:
    """Path of a configuration file of the package, which may not exist; the article's own names are known as well."""
    if name.startswith(ARTICLE_NAME):
        name = f"article_{name.removeprefix(ARTICLE_NAME)}"
    return Path(str(resources.files(__package__) / "configs" / name))


def find_config(path: Path) -> Path:
    """A file of the user's, or else the packaged configuration of that name (with or without `.yaml`).

    Raises:
        UserError: there is neither.
    """
    own = packaged(path.name if path.suffix else f"{path.name}.yaml")
    if not path.exists() and not own.exists():
        names = sorted(file.stem for file in own.parent.glob("*.yaml") if not file.stem.startswith("compare_"))
        aliases = [name.replace("article_", ARTICLE_NAME) for name in names if name.startswith("article_")]
        hint = did_you_mean(path.stem, [*names, *aliases], f"packaged ones are {', '.join(names)}")
        raise UserError(f"{path}: no such configuration file; {hint}")
    return path if path.exists() else own
