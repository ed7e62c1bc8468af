"""Typed configuration: YAML plus `key=value` overrides become frozen objects; unknown keys are refused.

    config = load_config(TrainConfig, "ssvae_demo.yaml", ["lr=5e-5", "model.base_channels=16"])

Every component owns a subclass of `Config` next to the code that it configures; fields are documented under
themselves and ranges are checked when the object is built.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import UserError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of all configuration objects: immutable, typed, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def added_field(default: Any, **constraints: Any) -> Any:
    """A field that came to a configuration later: left out of dumps while it has its default.

    So a run that does not use it keeps its fingerprint and its folder.
    """
    return Field(default=default, exclude_if=lambda value: value == default, **constraints)


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
    source = "configuration" if path is None else str(path)
    for override in overrides:
        if not re.match(r"\w+(\.\w+)*=", override):
            raise UserError(f"`{_one_line(override)}`: expected key=value, for example max_steps=1000")
    values = ({} if path is None else read_yaml(path)) | dict(replace or {})
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(list(overrides)))
        values = cast(dict[Any, Any], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        name = str(error.full_key)
        raise UserError(f"{source}: `{name}` must be given, for example {name}=...") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{source}: not a readable YAML configuration ({_one_line(error)})") from None
    return parse_config(cls, values, source=source)


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


def _describe(cls: type[BaseModel], problem: Mapping[str, Any]) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(cls, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key `{name}`, {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"`{name}` is required"
    return f"`{name}` = {problem['input']!r}: {message}" if name else message


def _known_keys(cls: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Field names of the model that `location` points to (union members and list items looked through)."""
    model: type[BaseModel] | None = cls
    for part in location:
        field = model.model_fields.get(str(part)) if model else None
        if field is not None:
            model = next((kind for kind in _models_in(field.annotation)), None)
    return list(model.model_fields) if model else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


def packaged(name: str) -> Path:
    """Path of a configuration file of the package, which may not exist."""
    return Path(str(resources.files(__package__) / "configs" / name))


def find_config(path: Path) -> Path:
    """A file of the user's, or else the packaged configuration of that name (with or without `.yaml`).

    Raises:
        UserError: there is neither.
    """
    own = packaged(path.name if path.suffix else f"{path.name}.yaml")
    if not path.exists() and not own.exists():
        names = ", ".join(sorted(f.stem for f in own.parent.glob("*.yaml") if not f.stem.startswith("compare_")))
        raise UserError(f"{path}: no such configuration file; packaged ones are {names}")
    return path if path.exists() else own
