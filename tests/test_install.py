"""The installer on checkouts that hold the patched lines alone, at their places; real CogVideoX: test_cogvideo.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_project import ROOT

ERAS = ["v1.0", "main"]


def hunks(patch):
    """(first old line's number, old lines, new lines) of a zero-context patch."""
    found = []
    for line in patch.read_text().splitlines():
        if line.startswith("@@"):
            found.append((int(line.split()[1].split(",")[0][1:]), [], []))
        elif found:
            found[-1][1 if line[0] == "-" else 2].append(line[1:])
    return found


@pytest.fixture(params=ERAS)
def checkout(request, tmp_path):
    """A folder with files that hold what the era's patches replace; filler elsewhere."""
    (tmp_path / "sat" / "sgm").mkdir(parents=True)
    for name in ("sample_video", "diffusion_video"):
        patch = ROOT / "patches" / request.param / f"{name}.patch"
        lines = [f"# line {number}" for number in range(1, 300)]
        for start, old, _ in hunks(patch) if patch.exists() else []:
            lines[start - 1 : start - 1 + len(old)] = old
        (tmp_path / "sat" / f"{name}.py").write_text("\n".join(lines) + "\n")
    return tmp_path


def install(checkout, *arguments, **environment):
    command = ["bash", str(ROOT / "scripts" / "install_into_cogvideo.sh"), str(checkout), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def contents(checkout):
    return {path.relative_to(checkout): path.read_bytes() for path in sorted(checkout.rglob("*")) if path.is_file()}


def patches_of(checkout):
    era = "main" if "fake_cp_size" in (checkout / "sat/diffusion_video.py").read_text() else "v1.0"
    return sorted((ROOT / "patches" / era).glob("*.patch"))


def test_a_patch_quotes_only_what_it_changes():
    for patch in ROOT.glob("patches/*/*.patch"):
        for line in patch.read_text().splitlines():
            assert line.startswith(("--- a/", "+++ b/", "-", "+")) or line.split("@@")[2] == "", line


def test_every_hunk_is_found_by_its_lines():
    """In both directions, wherever they moved: an insertion or deletion without context has only a line number."""
    for patch in ROOT.glob("patches/*/*.patch"):
        assert all(old and new for _, old, new in hunks(patch)), patch


def test_copy_patches_and_copies_twice_the_same_and_revert_undoes_it(checkout):
    before = contents(checkout)
    assert install(checkout, "--copy").returncode == 0
    installed = contents(checkout)
    for patch in patches_of(checkout):
        text = installed[Path("sat", f"{patch.stem}.py")].decode()
        assert all("\n".join(new) in text for _, _, new in hunks(patch))
    package = {path.relative_to(ROOT) for path in (ROOT / "sat_ssvae").rglob("*") if path.is_file()}
    copied = {path.relative_to("sat/sgm") for path in installed if path.is_relative_to("sat/sgm/sat_ssvae")}
    assert copied == {path for path in package if "__pycache__" not in path.parts}
    assert not any("__pycache__" in path.parts for path in installed)
    assert install(checkout, "--copy").returncode == 0
    assert contents(checkout) == installed
    assert install(checkout, "--revert").returncode == 0
    assert contents(checkout) == before
    assert install(checkout, "--revert").returncode == 0


def test_check_changes_nothing(checkout):
    before = contents(checkout)
    done = install(checkout, "--check")
    assert done.returncode == 0
    assert f"{len(patches_of(checkout))} fit, 0 do not fit" in done.stderr
    assert contents(checkout) == before


def test_lines_that_moved_are_found(checkout):
    path = checkout / "sat/sample_video.py"
    path.write_text("# a line more\n" * 7 + path.read_text())
    before = contents(checkout)
    assert install(checkout, "--copy").returncode == 0
    assert "spatial_factor" in path.read_text()
    assert install(checkout, "--revert").returncode == 0
    assert contents(checkout) == before


def test_an_unknown_version_is_left_alone_and_told_how(checkout):
    (_, (old, *_), (new, *_)) = hunks(patches_of(checkout)[-1])[0]
    path = checkout / "sat/sample_video.py"
    path.write_text(path.read_text().replace(old, f"{old}  # edited"))
    before = contents(checkout)
    done = install(checkout, "--copy")
    assert done.returncode == 1
    assert contents(checkout) == before
    assert f"replace  {old}" in done.stderr
    assert f"by       {new}" in done.stderr
    assert "nothing was changed" in done.stderr.splitlines()[-1]


def test_what_is_no_checkout_is_refused(tmp_path):
    for arguments in ([], ["--chek"]):
        done = install(tmp_path, *arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "give the folder of a CogVideo checkout" in line or line.startswith("sat-ssvae: usage:")


@pytest.mark.slow
def test_pip_installs_into_the_named_python(checkout, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "tested.pth").write_text("\n".join(packages))  # what pip would otherwise fetch
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": ""}
    done = install(checkout, PYTHON=str(venv / "bin/python"), **offline)
    assert done.returncode == 0, done.stderr
    assert "spatial_factor" in (checkout / "sat/sample_video.py").read_text()
    assert list(site.glob("sat_ssvae-*.dist-info"))


def test_a_failed_pip_leaves_the_checkout_alone(checkout):
    before = contents(checkout)
    done = install(checkout, PYTHON="/nowhere/python")
    assert "nothing was changed" in done.stderr.splitlines()[-1]
    assert contents(checkout) == before
