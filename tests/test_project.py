"""The project as a whole: what is shipped, what it needs, and that the scripts tell users what to do."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sat_ssvae"
MODULES = sorted(PACKAGE.rglob("*.py"))
EXTRAS = ("compare", "diffusers", "reward", "hub", "ray")  # of users; a module of the package needs at most one of them
# Used where the user has them: lpips' own requirements would bring another torch, and wandb is a matter of taste.
OPTIONAL_IMPORTS = {"lpips", "wandb"}

IMPORT_EVERY_MODULE = """
import importlib, pathlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
home = pathlib.Path(package.__file__).parent
names = [found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    assert pathlib.Path(importlib.import_module(name).__file__).is_relative_to(home), name
assert sys.argv[1] == "sat_ssvae" or "sat_ssvae" not in sys.modules
print(home, len(names))
"""


def import_every_module(name: str, folder: Path) -> int:
    """Import package `name` from `folder` with all its modules in a new process; how many there are."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", IMPORT_EVERY_MODULE, name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home, count = done.stdout.splitlines()[-1].split()
    assert Path(home) == folder.joinpath(*name.split("."))
    return int(count)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built by the installed backend, so that no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in files}
    assert {".py", ".yaml", ".typed"} <= {Path(name).suffix for name in shipped}


def test_wheel_carries_licence_and_console_script(wheel):
    archive = zipfile.ZipFile(wheel)
    (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
    assert "Apache License" in archive.read(licence).decode()
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "sat-ssvae = sat_ssvae.cli:main" in archive.read(entry_points).decode()


@pytest.mark.slow
def test_every_module_of_the_wheel_imports(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert import_every_module("sat_ssvae", tmp_path) >= len(MODULES) - 1


@pytest.mark.slow
def test_every_module_imports_from_a_copy_inside_another_package(tmp_path):
    copy = tmp_path / "sgm" / "sat_ssvae"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sgm" / "__init__.py").touch()
    assert import_every_module("sgm.sat_ssvae", tmp_path) >= len(MODULES) - 1


def imported_names(path: Path) -> set[str]:
    """Top-level names of the absolute imports of a module, those inside functions included."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module]
    return {module.split(".")[0] for module in modules}


def test_package_never_imports_itself_by_name():
    offenders = [str(path) for path in MODULES if "sat_ssvae" in imported_names(path)]
    assert offenders == []


def declared(*extras: str) -> set[str]:
    """Distributions that an installation with these extras asks for, in lower case."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("sat-ssvae") or []]
    wanted = [{"extra": extra} for extra in ("", *extras)]
    return {
        requirement.name.lower().replace("_", "-")
        for requirement in requirements
        if requirement.marker is None or any(requirement.marker.evaluate(environment) for environment in wanted)
    }


@pytest.fixture(scope="module")
def providers() -> dict[str, set[str]]:
    """For each importable top-level name, the distributions that it comes from."""
    found: dict[str, set[str]] = {}  # importlib.metadata.packages_distributions misses most of them in Python 3.10
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-")
        for file in distribution.files or ():
            found.setdefault(file.parts[0].split(".")[0], set()).add(name)
    return found


def undeclared(paths: list[Path], providers: dict[str, set[str]], *extras: str) -> set[str]:
    wanted = declared(*extras)
    return {
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in imported_names(path) - sys.stdlib_module_names - OPTIONAL_IMPORTS
        if not providers.get(name, set()) & wanted
    }


def test_everything_imported_is_declared(providers):
    assert undeclared(MODULES, providers, *EXTRAS) == set()


def test_users_of_the_autoencoder_need_no_extra(providers):
    parts = {"vae", "spectral", "data", "training", "cogvideo"}
    paths = [path for path in MODULES if path.parent == PACKAGE or path.parent.name in parts]
    asked_for = {  # by name: a repository of the hub, and `sat-ssvae cogvideo export`
        "sat_ssvae/vae/hub.py: huggingface_hub",
        "sat_ssvae/cogvideo/export.py: diffusers",
        "sat_ssvae/cogvideo/export.py: transformers",
    }
    assert undeclared(paths, providers) == asked_for


def test_declared_extras_do_not_pull_a_second_torch():
    assert not {"torchvision", "torchaudio", "triton"} & declared(*EXTRAS, "test", "dev")


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_pin_every_version_exactly_and_torch_to_the_tested_one():
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins())
    assert [str(pin) for pin in pins() if pin.name == "torch"] == ["torch==2.13.0"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_constraints_cover_each_declared_package_once_for_each_python(python):
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    valid = [pin.name.lower() for pin in pins() if pin.marker is None or pin.marker.evaluate(environment)]
    assert len(valid) == len(set(valid))
    assert declared(*EXTRAS, "test", "dev") <= set(valid)


def test_installed_versions_are_the_pinned_ones():
    applicable = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate()]
    # Not all of sys.path: setuptools puts copies of its own on it.
    found = importlib.metadata.distributions(path=[sysconfig.get_paths()["purelib"]])
    installed = {package.name.lower().replace("_", "-"): package.version for package in found}
    wrong = {
        pin.name: installed[pin.name]
        for pin in applicable
        # pip's vendored tools are not ours, and a build suffix such as +cpu is the same version
        if pin.name in installed and not pin.specifier.contains(installed[pin.name].split("+")[0])
    }
    assert wrong == {}


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / name), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)


def one_line_error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("sat-ssvae: ")
    return line


@pytest.mark.parametrize("script", ["test.sh", "compare_convergence.sh"])
def test_scripts_say_so_when_there_is_no_usable_python(tmp_path, script):
    done = run_script(script, SAT_SSVAE_VENV=str(tmp_path / "venv"), PYTHON="/nowhere/python")
    assert "needs Python 3.10, 3.11 or 3.12" in one_line_error(done)
    assert not list((tmp_path / "venv").glob("bin"))


def test_scripts_never_touch_a_folder_that_they_did_not_make(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_script("compare_convergence.sh", SAT_SSVAE_VENV=str(tmp_path))
    assert "did not make" in one_line_error(done)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("arguments", [["--cogvideo", "CogVideo"], ["--cogvideo=CogVideo"]])
def test_the_comparison_on_cogvideox_runs_in_the_given_environment(tmp_path, arguments):
    done = run_script(
        "compare_convergence.sh", *arguments, SAT_SSVAE_VENV=str(tmp_path / "venv"), PYTHON="/nowhere/python"
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(f"pip could not install {ROOT} with /nowhere/python")


def test_training_script_without_a_name_prints_its_usage():
    assert "usage: bash scripts/train.sh CONFIG NAME" in one_line_error(run_script("train.sh", "demo.yaml"))


@pytest.mark.parametrize(
    "script",
    [*sorted((ROOT / "scripts").glob("*.sh")), *sorted((ROOT / "findings").glob("*.sh")), ROOT / ".ci" / "run"],
    ids=lambda path: path.name,
)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) or script.name.startswith("_")
