"""run.html of a real training: what it says while the run goes on, when it is done, stopped, or cannot be written."""

import json
import logging
import os
import signal
from functools import partial

import pytest

from sat_ssvae.engine import run as engine_run
from sat_ssvae.errors import UserError
from sat_ssvae.training import run_page
from sat_ssvae.training.run_page import RunPage
from sat_ssvae.training.trainer import train

from .parsed_page import Parsed
from .test_trainer import CPU, before_step, configured


def page_of(folder):
    return Parsed((folder / "run.html").read_text())


def charts_of(page):
    drawn = [json.loads(text) for text in page.data if text.startswith("{")]
    titles = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg" and "aria-label" in attributes]
    return dict(zip(titles, drawn, strict=True))


@pytest.fixture(scope="module")
def monitored(tiny_shards, tmp_path_factory):
    """A finished run of 6 steps with evaluations of two clips at 2, 4 and 6, and the states of its page."""
    folder, states = tmp_path_factory.mktemp("runs") / "R&D", []
    write = RunPage.write

    def noted(self, state, step, max_steps):
        write(self, state, step, max_steps)
        states.append((state, step, page_of(self.folder).text))

    monitor = {"every": 2, "path": str(tiny_shards), "clips": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunPage, "write", noted)
        train(configured(tiny_shards, monitor=monitor, checkpoint_every=3), folder, CPU)
    return folder, states


def test_the_page_follows_the_run(monitored):
    _, states = monitored
    assert [one[:2] for one in states] == [("running", 2), ("running", 3), ("running", 4), ("running", 6), ("done", 6)]
    assert "running step 2 of 6 (33 %)" in states[0][2] and "Held-out clip 2" in states[0][2]
    assert (
        "sat-ssvae reconstruct --checkpoint" in states[-1][2] and "reconstruct" not in states[0][2].split("Held-out")[0]
    )


def test_losses_and_scores_are_those_of_the_logs(monitored):
    folder, _ = monitored
    page = page_of(folder)
    logged, evaluated = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "evaluations.jsonl")
    )
    charts = charts_of(page)
    assert {"PSNR", "SSIM", "Local correlation of the latents", "Total loss", "Pixel error", "LCR loss"} <= set(charts)
    assert "Adversarial loss" not in charts and "Skipped steps" not in charts
    training, heldout = charts["PSNR"]["lines"]
    assert training["x"] == [1, 2, 3, 4, 5, 6] and heldout["x"] == [2, 4, 6]
    assert training["y"] == pytest.approx([one["psnr"] for one in logged], rel=1e-4)
    assert heldout["y"] == pytest.approx([one["psnr"] for one in evaluated], rel=1e-4)
    assert charts["Total loss"]["lines"][0]["y"] == pytest.approx([one["total"] for one in logged], rel=1e-4)
    assert f"held-out PSNR {evaluated[-1]['psnr']:.2f} dB at step 6" in page.text
    for one in evaluated:
        assert len(one["psnr_by_clip"]) == 2 and sum(one["psnr_by_clip"]) / 2 == pytest.approx(one["psnr"], rel=1e-4)
        assert all(f"PSNR {value:.2f} dB" in page.text for value in one["psnr_by_clip"])
    assert "Training of R&D" in page.text and "lcr_weight: 0.1" in page.text


def test_pictures_are_the_evaluations_with_their_steps(monitored):
    page = page_of(monitored[0])
    slider = next(attributes for tag, attributes in page.tags if attributes.get("class") == "step")
    assert json.loads(slider["data-names"]) == ["2", "4", "6"]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 * (1 + 3) and len({one["src"] for one in images}) == 8
    assert page.words.count("original") == 2 and page.words.count("reconstruction") == 2
    assert "3 of 3 evaluations, 2 of 2 clips" in page.text
    assert all(source.startswith("data:") for source in page.sources)


@pytest.mark.parametrize("count", [1, 11, 12, 13, 50, 300])
def test_a_bounded_number_of_evaluations_with_the_first_and_the_last(monitored, tmp_path, monkeypatch, count):
    folder, _ = monitored
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text((folder / name).read_text())
    line = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[0])
    lines = [json.dumps({**line, "step": 10 * (number + 1)}) + "\n" for number in range(count)]
    (tmp_path / "evaluations.jsonl").write_text("".join(lines))
    (tmp_path / "evaluations").mkdir()
    for number in range(count):
        (tmp_path / "evaluations" / f"step_{10 * (number + 1)}.mp4").symlink_to(folder / "evaluations" / "step_2.mp4")
    page = RunPage(tmp_path)
    page.write("running", 10 * count, 10 * count)
    read = []
    monkeypatch.setattr(run_page, "read_frames", lambda path: read.append(path) or pytest.fail("read again"))
    page.write("done", 10 * count, 10 * count)  # pictures are kept
    parsed = page_of(tmp_path)
    sliders = [attributes for tag, attributes in parsed.tags if attributes.get("class") == "step"]
    steps = [int(name.replace(",", "")) for name in json.loads(sliders[0]["data-names"])] if sliders else [10]
    assert steps[0] == 10 and steps[-1] == 10 * count and len(steps) <= run_page.EVALUATIONS and not read
    assert len(steps) == count or len(steps) > run_page.EVALUATIONS // 2


def test_many_logged_steps_become_few_points(monitored, tmp_path):
    folder, _ = monitored
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    values = [None if step == 3 else step / 10 for step in range(1, 5001)]
    rows = [json.dumps({**line, "step": step, "total": value}) for step, value in enumerate(values, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 5001, "tot')
    RunPage(tmp_path).write("running", 5000, 10_000)
    (loss,) = charts_of(page_of(tmp_path))["Total loss"]["lines"]
    assert len(loss["x"]) == run_page.POINTS and loss["y"][-1] == pytest.approx(499.4, abs=0.3)
    assert "monitor.every=500" in page_of(tmp_path).text


def test_a_run_that_ends_early_says_so(tiny_shards, tmp_path):
    with before_step(1, partial(os.kill, os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit) as ended:
        train(configured(tiny_shards), tmp_path, CPU)
    assert ended.value.code == engine_run.TERMINATED
    page = page_of(tmp_path)
    assert "stopped step 2 of 6" in page.text and "the same command continues" in page.text
    train(configured(tiny_shards), tmp_path, CPU)
    assert "done step 6 of 6 (100 %)" in page_of(tmp_path).text


def test_a_page_that_fails_never_stops_a_training(tiny_shards, tmp_path, caplog, monkeypatch):
    def full(_path, _text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_page, "write_text", full)
    with caplog.at_level(logging.WARNING):
        train(configured(tiny_shards), tmp_path, CPU)
    assert (tmp_path / "done").exists() and not (tmp_path / "run.html").exists()
    (warning,) = [record.getMessage() for record in caplog.records if "run.html" in record.getMessage()]
    assert "training continues without it" in warning and "No space left" in warning


def test_a_training_that_fails_is_stopped(tiny_shards, tmp_path):
    def fail():
        raise UserError("no more")

    with before_step(0, fail), pytest.raises(UserError, match="no more"):
        train(configured(tiny_shards), tmp_path, CPU)
    assert "stopped step 0 of 6" in page_of(tmp_path).text
