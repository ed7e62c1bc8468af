"""The sections of a CogVideoX configuration that name a class and its parameters: are they whole, is the class there?

    for mismatch in find_broken_sections(config, checkout):
        print(mismatch)

CogVideoX builds its parts from them one after the other, and ends in a traceback at the first that is not.
"""

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import did_you_mean, likeness
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
_TAKEN_BY_SAT = {"BaseModel": frozenset(("init_method_std", "params_dtype"))}
"""What the base class of the transformer takes, of what DiffusionTransformer passes on and SAT does not give itself."""
_OWN = re.compile(r"(?:sgm\.)?sat_ssvae(\..*)?\.(\w+)")
_PACKAGE = __name__.rsplit(".", 2)[0]
_INSTALLED = "sat_ssvae"
"""What this package is called where it is no copy in sgm/."""
_MISSPELT = 0.75
"""Likeness to a known key from which an unknown one is probably meant for it."""
_MODEL_KEY = re.compile(r"""model_config(?:\.get\(|\[)\s*["'](\w+)""")
_ARGUMENT = re.compile(r"""add_argument\(\s*["']--([\w-]+)""")


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
    else:
        yield from _class(key, target, params, checkout)
        if not _OWN.fullmatch(target):  # whose parameters may be left over from another class
            for name, inner in params.items():
                if str(name).endswith("_config") and isinstance(inner, dict):
                    yield from _section(f"{key}.params.{name}", inner, checkout)


def _class(key: str, target: str, params: Mapping[str, Any], checkout: Path | None) -> Iterator[Mismatch]:
    """A class that is not there, or does not take a parameter; packages besides these two are not looked into."""
    if (own := _OWN.fullmatch(target)) and not _is_own(own[1], own[2]):
        yield Mismatch(f"{key}.target", target, "a class that is there", f"sat_ssvae{own[1] or ''} has no {own[2]}")
        return
    if own and target.startswith(_INSTALLED) and importlib.util.find_spec(_INSTALLED) is None:
        why = f"{_INSTALLED} is a copy in sgm/ and not installed; for the first stage give copied.yaml last"
        yield Mismatch(f"{key}.target", target, f"sgm.{target}", why)
    if checkout is None:
        return
    module, name = target.rsplit(".", 1)
    root = checkout.joinpath(*module.split("."))
    file = next((path for path in (root.with_suffix(".py"), root / "__init__.py") if path.is_file()), None)
    top = module.split(".")[0]
    if file is None and ((checkout / top).is_dir() or (checkout / f"{top}.py").is_file()):
        yield Mismatch(f"{key}.target", target, "a class of CogVideoX's", f"there is no {root}.py")
    found = None if file is None or own else _definitions(file)
    if found is None:
        return
    names, classes = found
    if name not in names:
        guess = did_you_mean(name, classes)
        why = " ".join(filter(None, [f"{file} has no {name}", guess]))
        yield Mismatch(f"{key}.target", target, "a class that is there", why)
    taken = _parameters(name, classes)
    if taken is None:
        return
    for unknown in [str(word) for word in params if word not in taken][:1]:
        why = "; ".join(filter(None, [f"{name} takes no such parameter", did_you_mean(unknown, taken)]))
        yield Mismatch(f"{key}.params.{unknown}", params[unknown], "left out", why)


def _is_own(module: str | None, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module or ".", _PACKAGE), name)
    except ImportError:
        return False


def _definitions(file: Path) -> tuple[set[str], Mapping[str, ast.ClassDef]] | None:
    """Names that a module may define, and its classes; None if nobody can tell."""
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
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    return None if "*" in names else (names, classes)


def _parameters(name: str, classes: Mapping[str, ast.ClassDef]) -> frozenset[str] | None:
    """What a class's constructor takes, itself and by way of its base class; None if nobody can tell."""
    node = classes.get(name)
    if node is None:
        return _TAKEN_BY_SAT.get(name)
    start = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    taken: set[str] = set()
    if start is not None:
        inside = list(ast.walk(start))
        # Texts are keys of **kwargs, as in kwargs.pop("dtype").
        taken = {part.value for part in inside if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        taken |= {argument.arg for argument in (*start.args.args, *start.args.kwonlyargs)}
        if start.args.kwarg is None:
            return frozenset(taken - _GIVEN_BY_CODE)
        if not any(isinstance(part, ast.keyword) and part.arg is None for part in inside):  # not passed on
            return None
    if len(node.bases) != 1 or not isinstance(node.bases[0], ast.Name):
        return None
    inherited = _parameters(node.bases[0].id, classes)
    return None if inherited is None else inherited | taken


def find_misspelt(config: SATConfig, checkout: Path | None) -> list[str]:
    """Notes about keys that look like another one's misspelling: CogVideoX passes over keys that it does not know.

    `checkout` is CogVideoX's sat folder; without one there are no notes. Those of `args` need an installed SAT.
    """
    if checkout is None:
        return []
    known = {"": frozenset(("model", "args", "data", "deepspeed")), "model.": _found(_MODEL_KEY, checkout, "*.py")}
    sat = importlib.util.find_spec("sat")
    for place in (sat and sat.submodule_search_locations) or ():
        known["args."] = _found(_ARGUMENT, checkout, "arguments.py") | _found(_ARGUMENT, Path(place), "arguments.py")
    written = {"": config.sections, "model.": config.section("model"), "args.": config.section("args")}
    return [
        f"{section}{name} is ignored, CogVideoX knows no such key; {did_you_mean(name, words)}"
        for section, words in known.items()
        for name in (map(str, written[section] or ()))
        if name not in words and likeness(name, words) >= _MISSPELT
    ]


def _found(pattern: re.Pattern[str], folder: Path, files: str) -> frozenset[str]:
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob(files))]
    return frozenset(word.replace("-", "_") for text in texts for word in pattern.findall(text))
