"""The command line: one grammar for all commands, and one line for every mistake that says what to type instead."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sat_ssvae
from sat_ssvae.cli import build_parser, main
from sat_ssvae.commands.grammar import Parser, add_command
from sat_ssvae.comparison.settings import CompareConfig
from sat_ssvae.config import load_config, packaged, read_yaml, settings_of
from sat_ssvae.training.settings import TrainConfig
from sat_ssvae.vae.autoencoder import SSVAE

SHORT = {"resolution": "data.resolution", "channels": "model.latent_channels", "lr": "optimizer.lr"}


def error_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    written = capsys.readouterr()
    assert caught.value.code == 2 and not written.out
    (line,) = written.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command `trian`, did you mean `train`?"),
        (["qqq"], "unknown command `qqq`, commands are compare, train,"),
        (["cogvideo", "chek"], "unknown command `chek`, did you mean `check`?"),
        (["--verbos", "train"], "unknown flag `--verbos`, did you mean `--verbose`?"),
        (["train", "--confg", "x", "--name", "y"], "unknown flag `--confg`, did you mean `--config`?"),
        (["reconstruct", "--checkpont=x"], "unknown flag `--checkpont`, did you mean `--checkpoint`?"),
        (["reconstruct", "--side_by_side"], "settings are key=value: did you mean `side_by_side`?"),
        (["stats", "vae", "--data", "x", "--num-frames", "17"], "key=value: did you mean `data.num_frames`?"),
        (["convert", "a", "b", "--qqq"], "unknown flag `--qqq`, flags are --help, --to, --latent_stats, --overwrite"),
        (["train", "--name", "y"], "the following arguments are required: --config"),
        (["train", "--config", "tiny_48p", "--name", "y", "stray"], "unexpected argument `stray`"),
        (["train", "--config", "tiny_48p", "--name", "y", "data.fps", "8"], "settings are key=value: data.fps=..."),
        (["train", "--config", "tiny_48p", "--name", "y", "data.pth=x"], "settings: unknown key `data.pth`, did you"),
        (["train", "--config", "tiny_48p", "--name", "y", "data.path=x", "resoluton=8"], "mean `data.resolution`?"),
        (["train", "--config", "ch48_LCR_256p", "--name", "y"], "did you mean `ch48_LCR_LMR_256p`?"),
        (["train", "--config", "qqq", "--name", "y"], "no such configuration file; packaged ones are "),
        (["compare", "--preset", "smok"], "choose from"),
        (["compare", "--vae", "a=stok", "--vae", "b=lcr"], "did you mean `stock`?"),
        (["compare", "clips.num_frames=9"], "unknown key `clips.num_frames`, did you mean `data.num_frames`?"),
        (["compare", "--config", "compare_smok"], "did you mean `compare_smoke`?"),
        (["compare", "fps=9"], "unknown key `fps`, did you mean `data.fps`?"),
        (["compare", "seed=9"], "unknown key `seed`, did you mean `seeds` or `scoring.seed`?"),
        (["compare", "vae.model.base_chanels=9"], "`vae.model.base_chanels`, did you mean `vae.model.base_channels`?"),
        (["init", "mine", "--config", "compare_defalt"], "did you mean `compare_default`?"),
        (["settings", "trian"], "did you mean `train`?"),
        (["settings", "cogvideo", "compar"], "did you mean `cogvideo compare`?"),
        (["settings"], "settings: name one of these commands: compare, train, "),
        (["settings", "convert"], "convert has flags alone"),
        (["compare", "transformer.optimizer.beta=9"], "did you mean `transformer.optimizer.betas`?"),
    ],
)
def test_a_misspelt_word_is_one_line_with_the_right_one(tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, *words)


DATA_COMMANDS = [
    ["stats", "VAE", "--data", "x"],
    ["check-data", "x"],
    ["encode", "VAE", "x", "y"],
    ["spectrum", "--vae", "a=VAE", "--data", "x"],
    ["compare"],
    ["train", "--config", "tiny_48p", "--name", "y", "data.path=x"],
]
MISSPELT = ["num_frames", "fps", "resolution", "dataa.fps", "data.fp"]


@pytest.mark.parametrize(
    ("words", "key"),
    # `resolution` is the article's short name for data.resolution, in `train` alone.
    [(words, key) for words in DATA_COMMANDS for key in MISSPELT if (words[0], key) != ("train", "resolution")],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_clips_have_the_same_keys_in_every_command(tmp_path, capsys, monkeypatch, words, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VAE").mkdir()
    right = f"data.{key.rpartition('.')[2].removesuffix('s')}"
    assert re.search(rf"unknown key `{key}`, did you mean `{right}s?`\?", error_of(capsys, *words, f"{key}=8"))


@pytest.fixture
def parse():
    def parsed(*words: str) -> argparse.Namespace:
        parser = Parser(prog="program")
        command = add_command(
            parser.add_subparsers(), "do", print, "do it", "program do x", settings="evaluation.spectra:SpectraConfig"
        )
        command.add_argument("inputs", nargs="+", type=Path)
        command.add_argument("--vae", action="append", default=[])
        command.add_argument("--base", nargs="+", type=Path, default=[])
        command.add_argument("--overwrite", action="store_true")
        return parser.parse_args(words)

    return parsed


@pytest.mark.parametrize(
    "words",
    [
        ("do", "a", "b", "steps=3", "--vae", "x=y"),
        ("do", "steps=3", "--vae", "x=y", "a", "b"),
        ("do", "a", "b", "--vae=x=y", "steps=3"),
        ("do", "a", "b", "--overwrite", "steps=3", "--vae", "x=y"),
        ("do", "--vae", "x=y", "a", "b", "--base", "c", "d", "steps=3"),
    ],
)
def test_settings_may_stand_anywhere(parse, words):
    options = parse(*words)
    assert options.overrides == ["steps=3"] and options.vae == ["x=y"]
    assert set(options.inputs) == {Path("a"), Path("b")}
    assert options.base in ([], [Path("c"), Path("d")])


def test_addresses_in_settings_arrive_as_they_were_typed(parse):
    assert parse("do", "a", "data.path=https://host//a.tar").overrides == ["data.path=https://host//a.tar"]


def test_a_file_with_an_equals_sign_is_a_file(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "take=1.mp4").touch()
    options = parse("do", "take=1.mp4", "take=2")
    assert options.inputs == [Path("take=1.mp4")] and options.overrides == ["take=2"]


def test_flags_may_be_written_with_hyphens(tmp_path, capsys):
    for flag in ("--latent-stats", "--latent_stats"):
        assert "missing: no such" in error_of(capsys, "convert", "missing", str(tmp_path / "out"), flag, "x.json")


@pytest.mark.parametrize("words", [["--version"], ["train", "--help"], ["settings"], ["tarin"]])
def test_answers_do_not_wait_for_pytorch(words):
    program = (
        "import sys; from sat_ssvae import cli\ntry: cli.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert "AssertionError" not in done.stderr and done.returncode in (0, 2)


def test_the_package_names_its_classes():
    assert sat_ssvae.SSVAE is SSVAE and set(sat_ssvae.__all__) <= set(dir(sat_ssvae))
    with pytest.raises(AttributeError, match="has no attribute 'SSVAEs'"):
        sat_ssvae.SSVAEs  # noqa: B018


def test_the_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sat-ssvae {sat_ssvae.__version__}\n"
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{sat_ssvae.__version__}"\n' in project


def commands() -> list[list[str]]:
    found: list[list[str]] = []
    for name, command in build_parser().commands.choices.items():
        below = command.commands.choices if command.commands else {"": None}
        found += [[name, *([task] if task else [])] for task in below]
    return found


@pytest.mark.parametrize("words", [[], ["cogvideo"], *commands()], ids=" ".join)
def test_every_help_has_a_description_and_an_example_that_parses(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    description = text.split("\n\n")[1]
    assert description[0].isupper() and description.endswith(".")
    assert f"  {' '.join(['sat-ssvae', *words])} " in text.partition("example")[2]
    assert not re.search(r"--\w+-\w", text.partition("example")[0]), "flags have underscores, hyphens become them"


def test_settings_lists_every_key_with_type_default_and_meaning(capsys):
    assert main(["settings", "train"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {setting.key for setting in settings_of(TrainConfig)} <= set(rows)
    assert re.fullmatch(r"max_steps +int > 0 +150000 +\S.*", rows["max_steps"])
    assert re.fullmatch(r"optimizer.warmup_steps +int >= 0 +1000 +\S.*", rows["optimizer.warmup_steps"])
    assert main(["settings", "compare"]) == 0
    assert capsys.readouterr().out.index("meaning") < 110, "one long default pushes every meaning off the screen"
    assert main(["settings", "cogvideo", "compare"]) == 0
    assert "evaluations" in capsys.readouterr().out
    assert main(["settings", "reward"]) == 0
    assert re.search(r"^api_key +secret text ", capsys.readouterr().out, re.MULTILINE)
    assert "name one of these commands: " in error_of(capsys, "settings", "convert")


def test_the_page_of_all_settings_is_what_the_types_say(capsys):
    """After a change of settings: sat-ssvae settings --markdown > docs/settings.md"""
    assert main(["settings", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert page == (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    for words in commands():
        assert not words_take_settings(words) or f"\n## sat-ssvae {' '.join(words)}\n" in page
    for line in page.splitlines():
        if line.startswith("| `"):
            assert line.rpartition(" | ")[2].removesuffix("|").strip(), f"no documentation: {line}"


def words_take_settings(words: list[str]) -> bool:
    parser = build_parser()
    for word in words:
        parser = parser.commands.choices[word]
    return parser.get_default("settings") is not None


@pytest.mark.parametrize("source", sorted(path.stem for path in packaged("").glob("*.yaml")))
def test_init_writes_the_settings_that_it_starts_from_and_all_others_as_comments(tmp_path, capsys, source):
    path = tmp_path / "mine.yaml"
    assert main(["init", str(tmp_path / "mine"), "--config", source]) == 0
    assert str(path) in capsys.readouterr().out
    cls = CompareConfig if source.startswith("compare_") else TrainConfig
    given = {"arms": {"a": {}, "b": {}}} if cls is CompareConfig else {}
    needed = [] if cls is CompareConfig else ["resume_from=x", "monitor.path=y"]
    if cls is TrainConfig:
        published = source.startswith("published")
        needed += ["data.sources.0.path=x", "data.sources.1.path=y"] if published else ["data.path=x"]
    start = load_config(cls, packaged(f"{source}.yaml"), needed, replace=given)
    assert load_config(cls, path, needed, replace=given) == start
    # Without the # of its defaults it says the same.
    text = re.sub(r"^( *)#(?=\w+:)(?!.*: required$)", r"\1", path.read_text(), flags=re.MULTILINE)
    (tmp_path / "all.yaml").write_text(text)
    given_short = read_yaml(path)  # the places that short names stand for hold the defaults
    changed = [f"{place}={given_short[name]}" for name, place in SHORT.items() if name in given_short]
    everything = load_config(cls, tmp_path / "all.yaml", [*needed, *changed], replace=given)
    unused = {"optimizer": {"lr"}}  # `lr` itself counts
    assert everything.model_dump(exclude=unused) == start.model_dump(exclude=unused)
    assert "exists; choose another name" in error_of(capsys, "init", str(path), "--config", source)
