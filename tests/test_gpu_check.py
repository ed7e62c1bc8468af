"""scripts/gpu_check.sh runs to its end at tiny sizes, and reports what fails beside what passes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(output, *arguments, **environment):
    """Exit status and rows."""
    command = ["bash", str(ROOT / "scripts/gpu_check.sh"), "--tiny", "--output", str(output), *arguments]
    place = {**os.environ, "PYTHON": sys.executable, **environment}
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
    return done, json.loads((output / "gpu_check.json").read_text())["rows"]


@pytest.mark.slow
def test_every_part_runs_and_passes(tmp_path):
    done, rows = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    trained = [row for row in rows if row["part"].startswith("train")]
    assert {row["part"] for row in trained} == {
        f"train {name}"
        for name in ("article_256p", "article_512p", "article_1080p", "published_256p", "published_512p")
    }
    assert all(0.7 < row["peak_over_estimate"] < 1.4 for row in trained)
    assert {row["model"] for row in rows if row["part"] == "speed 512"} == {
        "this project",
        "Wan 2.2 (diffusers)",
        "CogVideoX (diffusers)",
    }
    table = (tmp_path / "gpu_check.md").read_text()
    assert all(f"| {row['part']} | yes |" in table for row in rows)


@pytest.mark.slow
def test_a_part_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    """A checkout that is none ends the process of its part, after the rows it had."""
    parts = ["--only", "speed 256", "one rank", "--published", str(tmp_path / "nowhere")]
    done, rows = check(tmp_path, *parts)
    assert done.returncode == 1
    failed = [row for row in rows if not row["ok"]]
    assert len(failed) == 1 and "no such file" in failed[0]["error"]
    assert [row["ok"] for row in rows if row["part"] == "one rank"] == [True]
    assert f"| {failed[0]['part']} | NO |" in (tmp_path / "gpu_check.md").read_text()
