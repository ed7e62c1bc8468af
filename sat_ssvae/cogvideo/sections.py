"""The sections of a CogVideoX configuration that name a class and its parameters: are they whole, is the class there?

    for mismatch in find_broken_sections(config, checkout):
        print(mismatch)

CogVideoX builds its parts from them one after the other, and ends in a traceback at the first that is not.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import did_you_mean
from .sat_config import EMBEDDERS, NETWORK, SATConfig

_PARTS = (
    "model.network_config",
    *(f"{NETWORK}.modules.{name}_config" for name in ("pos_embed", "patch_embed", "adaln_layer", "final_layer")),
)
"""Sections without which there is no transformer of CogVideoX's own class."""
_OTHERS = (
    f"{NETWORK}.modules.lora_config",
    *(f"model.{name}_config" for name in ("denoiser", "conditioner", "first_stage", "loss_fn")),
)
"""Sections that must be whole if they are there."""
_MAPPINGS = ("model", "args", "data", "deepspeed", f"{NETWORK}.transformer_args", f"{NETWORK}.modules")
"""Sections without a class."""
_NOT_NULL = (
    "model.scale_factor",
    "model.not_trainable_prefixes",
    *(f"data.params.{name}" for name in ("video_size", "fps", "max_num_frames", "skip_frms_num")),
)
"""Values in whose place CogVideoX has no default for null."""
_GIVEN_BY_CODE = frozenset(("self", "data_dir", "args"))
_OWN_PACKAGES = ("sat_ssvae", "sgm.sat_ssvae")


@dataclass(frozen=True)
class Mismatch:
    """A setting that does not fit the others."""

    key: str
    found: Any
    expected: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key} is {self.found}, must be {self.expected}: {self.reason}"


def find_broken_sections(config: SATConfig, checkout: Path | None) -> list[Mismatch]:
    """What is null or of another form than CogVideoX takes it for, and classes that are not there.

    `checkout` is CogVideoX's sat folder; without one the classes are not looked for.
    """
    return list(_broken(config, checkout))


def _broken(config: SATConfig, checkout: Path | None) -> Iterator[Mismatch]:
    for key in _MAPPINGS:
        if config.has(key) and not isinstance(config.section(key), dict):
            yield Mismatch(key, config.section(key), "a mapping", "null or a value there hides the whole section")
            return
    present = [key for key in _OTHERS if config.has(key)]
    if config.samples or config.section("model.sampler_config") is not None:
        present += ["model.sampler_config"] if config.has("model.sampler_config") else []
    if config.section("data.target") is not None and not config.samples:
        present.append("data")
    for key in (*(_PARTS[:1] if config.has_own_transformer else _PARTS), *present):
        yield from _section(key, config.section(key), checkout)
    if config.has("model.conditioner_config"):
        yield from _embedders(config, checkout)
    if config.samples:
        return
    for key in _NOT_NULL:
        if config.has(key) and config.section(key) is None:
            yield Mismatch(key, None, "a value, or no such line", "CogVideoX takes null for the value")


def _embedders(config: SATConfig, checkout: Path | None) -> Iterator[Mismatch]:
    found = config.section(EMBEDDERS)
    if not isinstance(found, list) or not found:
        yield Mismatch(EMBEDDERS, found, "a list with the text encoder", "without it there is no text")
        return
    for number, section in enumerate(found):
        yield from _section(f"{EMBEDDERS}[{number}]", section, checkout)


def _section(key: str, section: Any, checkout: Path | None) -> Iterator[Mismatch]:
    if not isinstance(section, dict):
        why = "it is missing; give the stock files before the overlay" if section is None else "CogVideoX builds it so"
        yield Mismatch(key, section, "a mapping of target and params", why)
        return
    target, params = section.get("target"), section.get("params", {})
    if not isinstance(target, str) or "." not in target.strip("."):
        yield Mismatch(f"{key}.target", target, "module.Class", "CogVideoX imports the class from there")
    elif not isinstance(params, dict):
        yield Mismatch(f"{key}.params", params, "a mapping, or left out", "they are the class's arguments")
    elif checkout is not None:
        yield from _class(key, target, params, checkout)


def _class(key: str, target: str, params: Mapping[str, Any], checkout: Path) -> Iterator[Mismatch]:
    """A class of the checkout that is not there, or does not take a parameter; other packages are not looked into."""
    module, name = target.rsplit(".", 1)
    root = checkout.joinpath(*module.split("."))
    file = next((path for path in (root.with_suffix(".py"), root / "__init__.py") if path.is_file()), None)
    top = module.split(".")[0]
    if file is None:
        if (checkout / top).is_dir() or (checkout / f"{top}.py").is_file():
            yield Mismatch(f"{key}.target", target, "a class of CogVideoX's", f"there is no {root}.py")
        return
    if module.startswith(_OWN_PACKAGES):
        return
    found = _definitions(file)
    if found is None:
        return
    names, signatures = found
    if name not in names:
        guess = did_you_mean(name, signatures)
        why = " ".join(filter(None, [f"{file} has no {name}", guess]))
        yield Mismatch(f"{key}.target", target, "a class that is there", why)
    taken = signatures.get(name)
    if taken is None:
        return
    for unknown in [str(word) for word in params if word not in taken][:1]:
        why = " ".join(filter(None, [f"{name} takes no such parameter", did_you_mean(unknown, taken)]))
        yield Mismatch(f"{key}.params.{unknown}", params[unknown], "left out", why)


def _definitions(file: Path) -> tuple[set[str], Mapping[str, frozenset[str]]] | None:
    """Names that a module may define, and the parameters of classes that take no others; None if nobody can tell."""
    try:
        module = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError:
        return None
    names: set[str] = set()
    for node in ast.walk(module):  # also inside of `if` and `try`
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            names.add(node.id)
    signatures: dict[str, frozenset[str]] = {}
    for node in module.body:
        body = node.body if isinstance(node, ast.ClassDef) else []
        start = next((part for part in body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
        if isinstance(node, ast.ClassDef) and start is not None and start.args.kwarg is None:
            given = {argument.arg for argument in (*start.args.args, *start.args.kwonlyargs)}
            signatures[node.name] = frozenset(given - _GIVEN_BY_CODE)
    return None if "*" in names else (names, signatures)
