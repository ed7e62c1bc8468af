"""The answer of a comparison for scripts."""

import json
import subprocess
import sys

import pytest

from sat_ssvae.comparison.answer import PRIMARY, answer
from sat_ssvae.comparison.verdict import judge

from .comparisons import comparison


def test_a_faster_arm_is_given_with_interval_and_cost():
    results = comparison([3.0], psnr=(23.0, 22.5))
    found = answer(results, judge(results), "abc")
    primary = found["primary"]
    assert primary["measure"] == PRIMARY
    assert 1 < primary["low"] < primary["speed_up"] < primary["high"]
    assert primary["speed_up"] == pytest.approx(3, rel=0.25)
    assert (primary["autoencoder_seeds"], primary["transformer_seeds"]) == (1, 3)
    assert found["psnr_difference_db"] == pytest.approx(-0.5, abs=0.1)
    assert (found["command"], found["commit"]) == (results.command, "abc")
    json.loads(json.dumps(found, allow_nan=False))


def test_every_arm_has_its_answer():
    results = comparison([3.0, 0.3], names=["stock", "fast", "slow"])
    found = answer(results, judge(results), None)
    assert list(found["arms"]) == ["fast", "slow"]
    assert found["primary"] == found["arms"]["fast"]["primary"]
    assert found["arms"]["slow"]["primary"]["speed_up"] is None


def test_a_score_that_is_not_reached_has_no_speed_up():
    results = comparison([0.3])
    primary = answer(results, judge(results), None)["primary"]
    assert primary["speed_up"] is None
    assert primary["status"] == "not reached"
    assert primary["high"] < 1


def test_the_commit_is_that_of_the_checkout_the_code_lies_in(tmp_path):
    package = tmp_path / "checkout/sat_ssvae/comparison"
    package.mkdir(parents=True)
    script = f"""
import sat_ssvae.comparison.answer as module
module.__file__ = {str(package / "answer.py")!r}
print(module.commit())
"""

    def commit():
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit() == "None"
    git = ["git", "-C", str(tmp_path / "checkout"), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (package / "answer.py").write_text("")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], check=True)
    clean = commit()
    assert len(clean) >= 10 and not clean.endswith("+")
    (package / "answer.py").write_text("x = 1\n")
    assert commit() == clean + "+"
