"""The prompts that a CogVideoX configuration samples from, as sample_video.py will read them.

    problems = inspect_prompts(config)

A line without its image stops sampling midway, after the models are loaded, with a message that does not name it.
"""

from collections.abc import Iterator
from pathlib import Path

from ..errors import and_more
from .sat_config import SATConfig
from .sections import Mismatch

KEY = "args.input_file"
SEPARATOR = "@@"
"""Between a prompt and the path of its image."""


def inspect_prompts(config: SATConfig) -> list[Mismatch]:
    """What stops sampling in `args.input_file`; nothing is read for configurations that train or ask for prompts."""
    kind = config.get("args.input_type") or "cli"
    if not config.samples or kind == "cli":
        return []
    if kind != "txt":
        return [Mismatch("args.input_type", kind, "txt or cli", "sample_video.py knows no other")]
    path = Path(str(config.get(KEY) or "input.txt"))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"{error.strerror}, from {Path.cwd()}"
        return [Mismatch(KEY, path, "a text file with a prompt on each line", why)]
    if not lines:
        return [Mismatch(KEY, path, "a text file with a prompt on each line", "it is empty, so nothing is sampled")]
    problems = list(_images(path, lines)) if config.get("args.image2video") else []
    return [Mismatch(KEY, *problem[:-1], problem[-1] + and_more(problems)) for problem in problems[:1]]


def _images(path: Path, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """(where, expected, reason) of lines that do not name an image."""
    for number, line in enumerate(lines, start=1):
        where, parts = f"line {number} of {path}", line.strip().split(SEPARATOR)
        if len(parts) != 2:
            yield where, f"text{SEPARATOR}image.png", "image to video takes an image for every prompt"
        elif not Path(parts[1]).is_file():
            yield where, f"text{SEPARATOR}image.png", f"there is no image {parts[1]!r} in {Path.cwd()}"
