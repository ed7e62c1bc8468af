"""Typed configuration: YAML plus `key=value` overrides become frozen objects; unknown keys are refused.

    config = load_config(TrainConfig, "ssvae_demo.yaml", ["lr=5e-5", "model.base_channels=16"])

Every component has a subclass of `Config` next to the code that it configures; each field is documented below
itself, and ranges are checked when the object is built.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from .errors import UserError, did_you_mean, likeness, nearest, one_line

C = TypeVar("C", bound="Config")

ARTICLE_NAME = "ch48_LCR_LMR_"
"""The article's prefix of the configurations that are called article_* here."""

_COMPARISON = "compare_"
"""Prefix of the packaged configurations of comparisons."""

_VERY_ALIKE = 0.8
"""A word at least this alike is proposed even if another section has a key of exactly the typed name."""


class Config(BaseModel):
    """Base of all configuration objects: immutable, typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
    short_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Top-level keys that are short for the key of a section."""


def load_config(
    cls: type[C], path: str | Path | None, overrides: Sequence[str] = (), replace: Mapping[str, Any] | None = None
) -> C:
    """Read a YAML file, apply dotted `key=value` overrides, and validate the result as `cls`.

    Without a `path`, the defaults of `cls` count. `replace` has values of top-level keys that replace the file's;
    overrides are applied last.

    Raises:
        UserError: the file is missing or not YAML, or a key or value does not fit (named in the message).
    """
    source = "settings" if path is None else str(path)
    values = ({} if path is None else read_yaml(path)) | dict(replace or {})
    try:
        merged = OmegaConf.create(values)
        for override in overrides:
            for one in _under_all_names(override, cls):
                _set(merged, one, cls)
        values = cast(dict[Any, Any], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        refuse_unknown_keys(cls, cast(dict[Any, Any], OmegaConf.to_container(merged)))  # it may be misspelt
        name = str(error.full_key)
        raise UserError(f"{source}: `{name}` must be given, for example {name}=...") from None
    except UserError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{source}: not a readable YAML configuration ({one_line(error)})") from None
    typed = [one.partition("=")[0] for override in overrides for one in _under_all_names(override, cls)]
    return parse_config(cls, values, source=source, typed=typed)


def _under_all_names(override: str, cls: type[Config]) -> list[str]:
    """The override for the short and the full key, whichever is typed: the file may have either."""
    key, equals, value = override.partition("=")
    names = next((pair for pair in cls.short_names.items() if key in pair), (key,))
    return [name + equals + value for name in names]


def _set(config: Any, override: str, cls: type[Config]) -> None:
    """Apply one `key=value`; a number in the key counts the items of a list, from 0."""
    if not re.match(r"\w+(\.\w+)*=", override):
        raise UserError(f"`{one_line(override)}`: expected key=value, for example max_steps=1000")
    key = override.partition("=")[0]
    above, number, _ = re.split(r"\.(\d+)(?:\.|$)", key, maxsplit=1) if re.search(r"\.\d", key) else ("", "", "")
    try:
        if number and OmegaConf.select(config, above) is None:
            default = next((setting.default for setting in settings_of(cls) if setting.key == above), None)
            if isinstance(default, list):
                OmegaConf.update(config, above, default)
        OmegaConf.update(config, key, _value(key, override[len(key) + 1 :], cls), merge=True)
    except IndexError:
        length = len(OmegaConf.select(config, above))
        raise UserError(f"`{override}`: {above} has {length} items, counted from 0") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"`{one_line(override)}`: cannot be set ({one_line(error)})") from None


def _value(key: str, written: str, cls: type[Config]) -> Any:
    """The value of `key=written`, read as YAML; for a path or another text setting, always a text."""
    pattern = re.compile(
        r"\.".join(r"(N|NAME|\d+)" if part.isdecimal() else rf"({part}|NAME)" for part in key.split("."))
    )
    if not any(_is_text(setting.annotation) for setting in settings_of(cls) if pattern.fullmatch(setting.key)):
        return OmegaConf.from_dotlist([f"value={written}"])._get_node("value")
    if written.strip() in ("", "~", "null", "Null", "NULL"):
        return None
    try:
        parsed = yaml.load(written, yaml.BaseLoader)  # which knows texts only
    except yaml.YAMLError:
        return written
    quoted = isinstance(parsed, str) and written.lstrip()[0] in "'\""
    return parsed if quoted or isinstance(parsed, list) else written


def _is_text(annotation: Any) -> bool:
    """Whether a setting is a text, a path, or several of these."""
    kinds, origin = [kind for kind in get_args(annotation) if kind not in (type(None), ...)], get_origin(annotation)
    if origin in (dict, Literal):
        return False
    return all(map(_is_text, kinds)) if kinds else annotation in (str, Path)


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
        raise UserError(f"{path}: not a readable YAML configuration ({one_line(error)})") from None


def parse_config(
    cls: type[C], values: Mapping[Any, Any], source: str = "configuration", typed: Sequence[str] = ()
) -> C:
    """Validate a plain mapping as `cls`.

    `source`: where the values come from, for messages; the keys in `typed` come from the command line instead.

    Raises:
        UserError: names each offending key, with the nearest known one for a misspelling.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        if all(_concerns(problem["loc"], typed) for problem in problems):
            source = "settings"
        raise UserError(f"{source}: {one_line('; '.join(_describe(cls, one) for one in problems))}") from None


def refuse_unknown_keys(cls: type[BaseModel], values: Mapping[Any, Any], section: str = "") -> None:
    """Check the keys alone, before their values are complete.

    `section`: where in the file they are, with a trailing dot.

    Raises:
        UserError: names each unknown key, with the nearest known one.
    """
    try:
        cls.model_validate(dict(values))
    except ValidationError as error:
        unknown = [one for one in error.errors(include_url=False) if one["type"] == "extra_forbidden"]
        if unknown:
            texts = [_unknown(cls, one["loc"], one["input"], section) for one in unknown]
            raise UserError(f"settings: {one_line('; '.join(texts))}") from None


def _concerns(location: Sequence[Any], keys: Sequence[str]) -> bool:
    """Whether a problem lies in one of these keys, or above it."""
    name = ".".join(map(str, location))
    return any(f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") for key in keys)


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
    """Its range, in pydantic's objects with `gt`, `ge`, `lt` or `le`."""
    description: str
    default: Any
    """Plain values, as in YAML."""
    is_required: bool
    """Whether it has no default, so that the user must give a value."""
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


def _unknown(cls: type[BaseModel], location: Sequence[Any], value: Any, section: str = "") -> str:
    """One line about a key that does not exist, with the key that was probably meant."""
    parts = [str(part) for part in location]
    while isinstance(value, dict) and value:  # clips.fps is one unknown key, not `clips`
        key, value = next(iter(value.items()))
        parts.append(str(key))
    above, (word, *below) = parts[: len(location) - 1], parts[len(location) - 1 :]
    known, settings = _known_keys(cls, location[:-1]), settings_of(cls)
    near = nearest(word, known)
    beside = ".".join([*above, near or word, *below])
    exists = near is not None and (not below or any(setting.key == beside for setting in settings))
    elsewhere = likeness(parts[-1], {setting.name for setting in settings})
    if not exists or (not below and elsewhere > likeness(word, known)):
        meant = keys_like(parts[-1], settings)
        if exists and likeness(word, known) > _VERY_ALIKE:
            meant = [beside, *meant]
    else:
        meant = [beside]
    question = " or ".join(f"`{section}{key}`" for key in meant)
    hint = f"did you mean {question}?" if meant else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key `{section}{'.'.join(parts)}`, {hint}"


def keys_like(name: str, settings: Sequence[Setting]) -> list[str]:
    """The full keys of the outermost settings with the name `name`, or nearly that."""
    near = nearest(name, {setting.name for setting in settings})
    keys = [setting.key for setting in settings if setting.name == near]
    depth = min((key.count(".") for key in keys), default=0)
    return [key for key in keys if key.count(".") == depth]


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


def packaged(name: str) -> Path:
    """Path of a configuration file of the package, which may not exist; the article's own names are known as well."""
    if name.startswith(ARTICLE_NAME):
        name = f"article_{name.removeprefix(ARTICLE_NAME)}"
    return Path(str(resources.files(__package__) / "configs" / name))


def find_config(path: Path, *, compared: bool | None = None) -> Path:
    """The user's file, or else the packaged configuration of that name (with or without `.yaml`).

    `compared`: suggest only configurations of comparisons (True) or of single trainings (False).

    Raises:
        UserError: there is neither.
    """
    own = packaged(path.name if path.suffix else f"{path.name}.yaml")
    if not path.is_file() and not own.exists():
        names = sorted(file.stem for file in own.parent.glob("*.yaml"))
        names = [name for name in names if compared in (None, name.startswith(_COMPARISON))]
        aliases = [name.replace("article_", ARTICLE_NAME) for name in names if name.startswith("article_")]
        hint = did_you_mean(path.stem, [*names, *aliases], f"packaged ones are {', '.join(names)}")
        raise UserError(f"{path}: no such configuration file; {hint}")
    return path if path.is_file() else own
