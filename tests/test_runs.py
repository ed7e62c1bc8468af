"""`sat-ssvae runs` on real trainings and a real comparison, finished, interrupted and running."""

import fcntl
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from sat_ssvae.cli import main
from sat_ssvae.comparison.experiment import compare
from sat_ssvae.comparison.runs import clean, list_runs, size_of
from sat_ssvae.comparison.settings import ClipSource
from sat_ssvae.errors import UserError
from sat_ssvae.training import run_folder
from sat_ssvae.training.trainer import train

from .processes import unmeasured
from .test_experiment import configured as comparison
from .test_run_folder import HOLDER
from .test_trainer import before_step, configured, rows

CPU = torch.device("cpu")


@contextmanager
def held(folder, how="lockf"):
    """Another process holds the folder's lock."""
    code = HOLDER.replace("fcntl.lockf", f"fcntl.{how}").replace("if os.fork():\n    ", "")
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(command, env=unmeasured(), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.kill()


def interrupt(shards, folder, step, **changes):
    """Train until this step, and no further."""

    def stop():
        raise KeyboardInterrupt

    with before_step(step, stop), pytest.raises(KeyboardInterrupt):
        train(configured(shards, **changes), folder, CPU)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_a_finished_training_keeps_its_result_and_milestones(tiny_shards, tmp_path, capsys):
    folder = tmp_path / "runs" / "done"
    train(configured(tiny_shards, keep_checkpoints=2, milestone_every=4, checkpoint_every=1), folder, CPU)
    assert checkpoints(folder) == ["step_4", "step_5"]
    (one,) = list_runs(tmp_path / "runs")
    assert (one.kind, one.state, one.step) == ("training", "finished", "6 of 6")
    assert re.fullmatch(r"PSNR -?\d+\.\d\d dB", one.score)
    assert one.unneeded == (folder / "checkpoints" / "step_5",) and one.size == size_of(folder)
    before = {path: path.read_bytes() for path in (folder / "vae").iterdir()}
    assert main(["runs", str(tmp_path / "runs"), "--clean"]) == 0
    shown = capsys.readouterr().out
    assert f"{folder}: deleted checkpoints/step_5 (" in shown and "in all" in shown
    assert checkpoints(folder) == ["step_4"] and one.size - size_of(folder) > 10_000
    assert before == {path: path.read_bytes() for path in (folder / "vae").iterdir()}
    assert main(["runs", str(folder), "--clean"]) == 0
    assert "deleted 0 B in all" in capsys.readouterr().out


def test_an_interrupted_training_continues_after_cleaning_as_without(tiny_shards, tmp_path):
    straight, cleaned = tmp_path / "straight", tmp_path / "runs" / "cleaned"
    settings = {"keep_checkpoints": 3, "checkpoint_every": 1}
    train(configured(tiny_shards, **settings), straight, CPU)
    interrupt(tiny_shards, cleaned, 4, **settings)
    assert checkpoints(cleaned) == ["step_2", "step_3", "step_4"]
    (cleaned / "checkpoints" / "step_5.partial").mkdir()
    (one,) = list_runs(tmp_path / "runs")
    assert (one.state, one.step) == ("interrupted", "4 of 6")
    assert {path.name for path in clean(one)} == {"step_2", "step_3", "step_5.partial"}
    assert checkpoints(cleaned) == ["step_4"]
    train(configured(tiny_shards, **settings), cleaned, CPU)
    assert rows(cleaned) == rows(straight)


@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_a_running_training_is_shown_and_never_cleaned(tiny_shards, tmp_path, capsys, how):
    folder = tmp_path / "busy"
    interrupt(tiny_shards, folder, 4, keep_checkpoints=3, checkpoint_every=1)
    (idle,) = list_runs(folder)
    with held(folder, how):
        (one,) = list_runs(folder)
        assert one.state == "running" and one.unneeded == ()
        assert main(["runs", str(tmp_path), "--clean"]) == 0
        shown = capsys.readouterr().out
        assert f"{folder}: left alone, it is running" in shown and "deleted 0 B in all" in shown
        if how == "lockf":
            with pytest.raises(UserError, match="another process trains there"):
                clean(idle)  # it was listed before the other process started
    assert checkpoints(folder) == ["step_2", "step_3", "step_4"]


def test_where_locks_are_unknown_nothing_is_cleaned(tiny_shards, tmp_path, monkeypatch, capsys):
    train(configured(tiny_shards), tmp_path / "run", CPU)

    def unknown(*_arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "fcntl", unknown)
    assert main(["runs", str(tmp_path), "--clean"]) == 0
    assert "left alone, it may be running" in capsys.readouterr().out
    assert checkpoints(tmp_path / "run") == ["step_4"]


def test_listing_takes_no_lock_from_a_training(tiny_shards, tmp_path):
    (tmp_path / ".lock").touch()
    with held(tmp_path):
        assert run_folder.is_held(tmp_path)
        assert run_folder.is_held(tmp_path)
    assert not run_folder.is_held(tmp_path) and not run_folder.is_held(tmp_path / "gone")


def test_folders_without_runs(tmp_path, capsys):
    for folder, message in ((tmp_path / "gone", "no such folder"), (tmp_path, "neither a training nor a comparison")):
        with pytest.raises(SystemExit) as ended:
            main(["runs", str(folder)])
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_is_one_run_and_is_found_finished_after_cleaning(tiny_shards, tmp_path, capsys):
    source = ClipSource.separate(tiny_shards, tiny_shards)
    output = tmp_path / "compare"
    compare(comparison(), output, CPU, "sat-ssvae compare", source)
    (one,) = list_runs(tmp_path)
    assert (one.kind, one.state) == ("comparison", "finished")
    assert one.step == "autoencoders 2 of 2, transformers 2 of 2"
    assert "ssvae" in one.score and ":" not in one.score
    assert {path.parts[-4] for path in one.unneeded} == {"transformer"}
    with held(output):
        (busy,) = list_runs(tmp_path)
        assert busy.state == "running" and busy.unneeded == ()
        with pytest.raises(UserError, match="another process trains there"):
            compare(comparison(), output, CPU, "sat-ssvae compare", source)
    assert main(["runs", str(tmp_path), "--clean"]) == 0
    assert "deleted transformer/" in capsys.readouterr().out
    assert not list(output.glob("*/*/checkpoints/step_*"))
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    compare(comparison(), output, CPU, "sat-ssvae compare", source)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    (one,) = list_runs(tmp_path)
    assert one.state == "finished"
    (output / "report" / "results.json").unlink()
    assert list_runs(tmp_path)[0].state == "interrupted"
