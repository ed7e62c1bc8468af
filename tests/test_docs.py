"""What README and docs/ tell users: links lead somewhere, and commands parse, with settings that exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from sat_ssvae.cli import build_parser
from sat_ssvae.config import settings_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "findings" / "README.md"]
WITH_COMMANDS = [
    *PAGES,
    *sorted((ROOT / "cogvideo_configs").glob("*.yaml")),
    *sorted((ROOT / "sat_ssvae" / "configs").glob("*.yaml")),
]
SCRIPTS = {
    "scripts/train.sh": lambda words: ["train", "--config", words[0], "--name", *words[1:]],
    "scripts/compare_convergence.sh": lambda words: [
        *(["cogvideo", "compare"] if "--cogvideo" in words else ["compare"]),
        *words,
    ],
    "scripts/reconstruction.py": lambda words: ["reconstruct", *words],
    "scripts/eval_unified_reward.py": lambda words: ["reward", *words],
}


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_fits_one_screen_of_text():
    assert (ROOT / "README.md").stat().st_size <= 12_000


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w.]+|findings/README.md)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {names(page) for page in PAGES} - {"README.md"} <= linked


def command_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"`(sat-ssvae [^`]+|bash scripts/[^`]+|python scripts/[^`]+)`", text)
    if path.suffix == ".md":
        found = [line for line in found if "\n" not in line]
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            found += block.splitlines()
    else:
        found = [line.strip(" #`") for line in text.splitlines() if line.startswith("#")]
    starts = ("sat-ssvae ", "bash scripts/", "python scripts/")
    return [line for line in found if line.startswith(starts) and " ... " not in f"{line} "]


def command_of(line: str) -> list[str] | None:
    """The words after `sat-ssvae`, for a script those that it hands on; None for other scripts."""
    words = shlex.split(re.sub(r"\[(.*?)\]$", r"\1", line) if line.endswith("]") else line, comments=True)
    if words[0] == "sat-ssvae":
        return words[1:]
    assert (ROOT / words[1]).exists(), line
    hands_on = SCRIPTS.get(words[1])
    return hands_on(words[2:]) if hands_on and "--preset" not in words[2:3] else None


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=names)
def test_commands_parse_and_their_settings_exist(path, capsys):
    for line in command_lines(path):
        words = command_of(line)
        if not words or words[0] == "COMMAND" or words[-1] in ("--help", "COMMAND"):
            continue
        try:
            options = build_parser().parse_args(words)
        except SystemExit:
            error = capsys.readouterr().err
            named = (
                "the following arguments are required" in error and len(words) <= 2
            )  # `sat-ssvae stats` in a sentence
            assert named, f"{line}\n{error}"
            continue
        for override in getattr(options, "overrides", []):
            key = re.sub(r"\.\d+", ".N", override.partition("=")[0])
            known = {setting.key for setting in settings_of(options.settings())} | {"resolution", "channels"}
            assert key in known or key.startswith("vae."), line


def test_examples_name_the_published_file_as_it_is_called():
    for path in WITH_COMMANDS:
        assert not re.search(r"ssvae_ch48\.\w+", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_python_examples_compile_and_import_what_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        compile(block, page.name, "exec")
        for module, imported in re.findall(r"^from (sat_ssvae[\w.]*) import (.*)$", block, flags=re.MULTILINE):
            assert set(imported.split(", ")) <= set(dir(importlib.import_module(module)))
