"""What a comparison says about its plan and the time left, with a clock that the test moves."""

import time

import pytest

from sat_ssvae.comparison.plan import Plan, Stage, in_minutes

STAGES = [
    Stage("autoencoder", "autoencoder stock", 100),
    Stage("autoencoder", "autoencoder ssvae", 200),
    Stage("transformer", "transformer stock, seed 0", 50),
    Stage("report", "report"),
]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_told_as_far_as_it_was_measured(tmp_path, clock, caplog):
    caplog.set_level("INFO")
    plan = Plan(tmp_path / "stages.json", STAGES)
    for stage, seconds in zip(STAGES, (300, 600, 1200, 0), strict=True):
        folder = tmp_path / stage.name
        with plan.stage(stage.name, folder / "done"):
            folder.mkdir()
            clock[0] += seconds
    unknown = "time left is known once one of each kind has run"
    lines = "\n".join(f"  {number}. {stage.name}" for number, stage in enumerate(STAGES, 1))
    assert caplog.messages == [
        f"plan: 4 stages, {unknown} (2 × autoencoder, 1 × transformer)\n{lines}",
        f"stage 1 of 4: autoencoder stock; {unknown} (2 × autoencoder, 1 × transformer)",
        "stage 2 of 4: autoencoder ssvae; about 10 min left and what is not measured yet (1 × transformer)",
        f"stage 3 of 4: transformer stock, seed 0; {unknown} (1 × transformer)",
        "stage 4 of 4: report; about 1 min left in all",
    ]


def test_a_later_run_knows_the_speed_and_leaves_out_what_is_done(tmp_path, clock, caplog):
    first = Plan(tmp_path / "stages.json", STAGES)
    for stage in STAGES[:3]:
        with first.stage(stage.name):
            clock[0] += 3 * stage.units
    caplog.set_level("INFO")
    caplog.clear()
    again = Plan(tmp_path / "stages.json", [STAGES[0]._replace(done=True), *STAGES[1:]])
    assert caplog.messages == [
        "plan: 4 stages, about 12 min left in all\n  1. autoencoder stock (done)\n"
        "  2. autoencoder ssvae (about 10 min)\n  3. transformer stock, seed 0 (about 2 min)\n  4. report"
    ]
    with again.stage("autoencoder stock"):
        pass
    (tmp_path / "done").touch()
    with again.stage("autoencoder ssvae", tmp_path / "done"):  # found done only now
        pass
    assert len(caplog.messages) == 1
    with again.stage("transformer stock, seed 0"):
        pass
    assert caplog.messages[1] == "stage 3 of 4: transformer stock, seed 0; about 2 min left in all"


def test_a_stage_that_continues_or_fails_is_not_measured(tmp_path, clock, caplog):
    (tmp_path / "half").mkdir()
    plan = Plan(tmp_path / "stages.json", STAGES)
    with plan.stage("autoencoder stock", tmp_path / "half" / "done"):
        clock[0] += 5
    with pytest.raises(KeyboardInterrupt), plan.stage("autoencoder ssvae"):
        raise KeyboardInterrupt
    assert not (tmp_path / "stages.json").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "1 min"), (700, "12 min"), (6000, "1 h 40 min"), (86_400, "24 h 0 min")]
)
def test_minutes_in_words(seconds, text):
    assert in_minutes(seconds) == text
