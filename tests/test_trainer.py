"""The training loop, on real shards: what it writes, exact continuation, bad losses, wrong configurations."""

import contextlib
import csv
import itertools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sat_ssvae import SSVAE
from sat_ssvae.config import parse_config
from sat_ssvae.engine import run
from sat_ssvae.errors import UserError
from sat_ssvae.training import trainer
from sat_ssvae.training.trainer import TrainConfig, train

CPU = torch.device("cpu")


def settings(shards, **changes):
    return {
        "batch_size": 2,
        "lr": 1e-3,
        "lcr_weight": 0.1,
        "lmr_mask_ratio": 0.5,
        "max_steps": 6,
        "resolution": 32,
        "channels": 4,
        "model": {
            "base_channels": 4,
            "channel_multipliers": [1, 2, 2],
            "temporal_downsample": [True, True],
            "num_res_blocks": 1,
            "num_mid_blocks": 1,
        },
        "data": {"path": str(shards), "num_frames": 5, "fps": 8, "num_workers": 0},
        "reconstruction": {"perceptual_weight": 0},
        "optimizer": {"warmup_steps": 2},
        "log_every": 1,
        "checkpoint_every": 2,
        **changes,
    }


def configured(shards, **changes):
    return parse_config(TrainConfig, settings(shards, **changes))


@contextlib.contextmanager
def before_step(step, what):
    """Trainings started in the block call this when they want the batch of a step (counted from 0)."""
    original = trainer.training_batches

    def batches(*args, start_batch, **options):
        for number, batch in enumerate(original(*args, start_batch=start_batch, **options), start_batch):
            if number == step:
                what()
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "training_batches", batches)
        yield


def rows(folder):
    with (folder / "train.csv").open() as file:
        return list(csv.DictReader(file))


def details(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_lowers_the_loss_and_writes_a_model_that_loads(tiny_shards, tmp_path):
    config = configured(tiny_shards, max_steps=90, lr=5e-3, lmr_mask_ratio=0.2, log_every=5, checkpoint_every=50)
    finished = train(config, tmp_path / "run", CPU)
    logged = rows(tmp_path / "run")
    assert [int(row["step"]) for row in logged] == list(range(5, 91, 5))
    assert float(logged[-1]["error"]) < 0.85 * float(logged[0]["error"])
    assert float(logged[0]["lcr_weight"]) > 0
    vae = SSVAE.from_pretrained(finished)
    assert vae.config.latent_channels == 4
    weights = load_file(finished / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_the_perceptual_distance_is_part_of_the_loss(tiny_shards, tmp_path):
    train(configured(tiny_shards, max_steps=2, reconstruction={"perceptual_weight": 1.0}), tmp_path, CPU)
    last = rows(tmp_path)[-1]
    assert 0 < float(last["perceptual"]) < 2
    weights = load_file(tmp_path / "vae" / "model.safetensors")
    assert not any(name.startswith("perceptual") for name in weights)


def test_a_row_is_the_mean_over_micro_batches(tiny_shards, tmp_path, monkeypatch):
    original = trainer.Objective.forward
    seen = []

    def noting(self, video, generator, *critic):
        seen.append(original(self, video, generator, *critic))
        return seen[-1]

    monkeypatch.setattr(trainer.Objective, "forward", noting)
    optimizer = {"accumulation_steps": 2}
    train(configured(tiny_shards, max_steps=2, batch_size=1, optimizer=optimizer, lcr_weight=0.0), tmp_path, CPU)
    for row, pair in zip(rows(tmp_path), zip(seen[::2], seen[1::2], strict=True), strict=True):
        assert pair[0].error != pair[1].error
        for name in ("total", "error", "kl", "correlation"):
            assert float(row[name]) == pytest.approx(sum(getattr(one, name).item() for one in pair) / 2, rel=1e-6)


def test_a_row_is_the_mean_of_the_discriminators_micro_batches_as_well(tiny_shards, tmp_path, monkeypatch):
    original, forward, objectives = trainer.critic_step, trainer.Objective.forward, []
    seen = []

    def noting(*given):
        loss = original(*given)
        seen.append((loss.item(), objectives[-1].applied_adversarial_weight.item()))
        return loss

    monkeypatch.setattr(trainer, "critic_step", noting)
    monkeypatch.setattr(
        trainer.Objective, "forward", lambda self, *given: objectives.append(self) or forward(self, *given)
    )
    adversarial = {"weight": 0.5, "start_step": 1, "base_channels": 8, "num_layers": 2}
    changes = {"adversarial": adversarial, "optimizer": {"accumulation_steps": 2}, "batch_size": 1, "max_steps": 2}
    # A mean, whose gradient leaves the weight below its limit.
    changes["reconstruction"] = {"perceptual_weight": 0, "reduction": "mean"}
    train(configured(tiny_shards, **changes), tmp_path, CPU)
    for line, pair in zip(details(tmp_path), zip(seen[::2], seen[1::2], strict=True), strict=True):
        for name, (first, second) in zip(("critic", "adversarial_weight"), zip(*pair, strict=True), strict=True):
            assert first != second and line[name] == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_finished_run_is_not_repeated_and_another_configuration_is_refused(tiny_shards, tmp_path):
    train(configured(tiny_shards, max_steps=1), tmp_path, CPU)
    written = (tmp_path / "vae" / "model.safetensors").stat().st_mtime_ns
    train(configured(tiny_shards, max_steps=1), tmp_path, CPU)
    assert (tmp_path / "vae" / "model.safetensors").stat().st_mtime_ns == written
    changes = [{"max_steps": 2}, {"seed": 1}, {"batch_size": 1}, {"resolution": 16}, {"optimizer": {"clip_norm": 1.0}}]
    for change in changes:
        with pytest.raises(UserError, match="holds a run with another configuration"):
            train(configured(tiny_shards, **{"max_steps": 1, **change}), tmp_path, CPU)


LIMITED = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
LIMITED += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"


def test_no_space_for_a_checkpoint_is_one_line(tiny_shards, tmp_path):
    """The process may write files of 100 kB at most, which is what a full disk looks like to it."""
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(settings(tiny_shards)))
    script = LIMITED + "import sys; from sat_ssvae.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--config", str(config), "--name", "run", "--output", str(tmp_path)]
    # Without coverage, whose own file would not fit either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "error: " in done.stderr and "make room" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_last_checkpoint(tiny_shards, tmp_path, monkeypatch):
    saved = []
    original = run.save_checkpoint

    def fail_at_the_second(engine, folder, step, state, **options):
        if saved:
            (folder / "step_4.partial").mkdir()
            raise OSError(28, "No space left on device")
        saved.append(step)
        original(engine, folder, step, state, **options)

    monkeypatch.setattr(run, "save_checkpoint", fail_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        train(configured(tiny_shards), tmp_path, CPU)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_2", "step_4.partial"]
    monkeypatch.setattr(run, "save_checkpoint", original)
    train(configured(tiny_shards), tmp_path, CPU)
    assert [int(row["step"]) for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_bad_losses_are_skipped_and_end_the_run_with_advice(tiny_shards, tmp_path, monkeypatch):
    original = trainer.Objective.forward

    def not_a_number(self, video, generator, *critic):
        losses = original(self, video, generator, *critic)
        return losses._replace(total=losses.total * float("nan"))

    monkeypatch.setattr(trainer.Objective, "forward", not_a_number)
    for steps_between, advice in (
        (99, "under another name; lower lr"),
        (8, f"with resume_from={tmp_path}/b/latest.pth"),
    ):
        folder = tmp_path / ("a" if steps_between == 99 else "b")
        with pytest.raises(UserError, match=f"10 steps in a row .* the last one 10: train .*{advice}"):
            train(configured(tiny_shards, max_steps=50, checkpoint_every=steps_between), folder, CPU)
    # The advice can be followed.
    monkeypatch.setattr(trainer.Objective, "forward", original)
    advised = {"lr": 5e-5, "batch_size": 1, "max_steps": 1, "optimizer": {"clip_norm": 1.0}}
    train(configured(tiny_shards, **advised, resume_from=str(folder / "latest.pth")), tmp_path / "c", CPU)
    assert rows(tmp_path / "c")[0]["error"] != "nan"


def test_a_run_knows_after_an_interruption_how_many_steps_it_skipped(tiny_shards, tmp_path, monkeypatch):
    """From step 3 on the loss is not a number; steps 3 and 4 are in the checkpoint, and again after it has stopped."""
    original = trainer.Objective.forward
    calls = []

    def from_the_third_on(self, video, generator, *critic):
        calls.append(1)
        losses = original(self, video, generator, *critic)
        return losses._replace(total=losses.total * float("nan")) if len(calls) > 2 else losses

    monkeypatch.setattr(trainer.Objective, "forward", from_the_third_on)
    config = configured(tiny_shards, max_steps=6, max_skipped_steps=3)
    for attempt in (1, 2):
        with pytest.raises(UserError, match="3 steps in a row without a finite loss, the last one 5"):
            train(config, tmp_path, CPU)
        assert len(calls) == 4 + attempt
    monkeypatch.setattr(trainer.Objective, "forward", original)
    train(config, tmp_path, CPU)
    assert [line["skipped_steps"] for line in details(tmp_path)] == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_one_bad_loss_leaves_the_weights_and_goes_on(tiny_shards, tmp_path, monkeypatch, caplog, zero_stage):
    original = trainer.Objective.forward
    calls = []

    def sometimes(self, video, generator, *critic):
        losses = original(self, video, generator, *critic)
        calls.append(1)
        return losses._replace(total=losses.total * float("nan")) if len(calls) == 3 else losses

    monkeypatch.setattr(trainer.Objective, "forward", sometimes)
    changes = {"max_steps": 4, "checkpoint_every": 9, "optimizer": {"zero_stage": zero_stage}}
    finished = train(configured(tiny_shards, **changes), tmp_path, CPU)
    assert "step 3 skipped: the loss is infinite or NaN" in caplog.text
    assert all(value.isfinite().all() for value in load_file(finished / "model.safetensors").values())
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [skip["cause"] for skip in listed] == ["infinite or NaN loss"] * 2
    assert details(tmp_path)[-1]["skipped_steps"] == 1


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_step_with_a_bad_gradient_changes_nothing(tiny_shards, tmp_path, monkeypatch, zero_stage):
    """The weights and the optimiser go on as if the step had not been there: as in a run that began one step later."""
    original = trainer.Objective.forward
    weights = []

    def overflowing(self, video, generator, *critic):
        weights.append({name: value.clone() for name, value in self.vae.state_dict().items()})
        losses = original(self, video, generator, *critic)
        return losses._replace(total=Overflow.apply(losses.total)) if len(weights) in (1, 3) else losses

    monkeypatch.setattr(trainer.Objective, "forward", overflowing)
    optimizer = {"zero_stage": zero_stage, "warmup_steps": 2}
    train(configured(tiny_shards, max_steps=5, checkpoint_every=9, optimizer=optimizer), tmp_path, CPU)
    changed = [
        any(not torch.equal(one[name], other[name]) for name in one) for one, other in itertools.pairwise(weights)
    ]
    assert changed == [False, True, False, True]
    rates = [float(row["lr"]) for row in rows(tmp_path)]  # a row shows the rate of the step to come
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 2e-3 / 3, 1e-3, 7.5e-4])
    assert [line["skipped_steps"] for line in details(tmp_path)] == [1, 1, 2, 2, 2]
    causes = [json.loads(line)["cause"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert set(causes) == {"infinite or NaN gradient"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lcr_wieght": 0.1}, "unknown key `lcr_wieght`, did you mean `lcr_weight`?"),
        ({"max_steps": 0}, "`max_steps` = 0"),
        ({"channels": 4, "model": {"latent_channels": 8}}, "`channels` and `model.latent_channels` differ"),
        ({"optimizer": {"lr": 0.1}}, "`lr` and `optimizer.lr` differ"),
        ({"precision": "float8"}, "`precision` = 'float8'"),
    ],
)
def test_wrong_settings_are_named(tiny_shards, changes, message):
    with pytest.raises(UserError) as caught:
        configured(tiny_shards, **changes)
    assert message in str(caught.value)


def test_the_data_must_fit(tiny_shards, tmp_path):
    with pytest.raises(UserError, match="too small"):
        train(configured(tiny_shards, resolution=512), tmp_path / "a", CPU)
    with pytest.raises(UserError, match=r"no such|does not exist"):
        train(configured(tmp_path / "nowhere"), tmp_path / "b", CPU)


def test_the_log_has_the_psnr_of_the_error(tiny_shards, tmp_path):
    reconstruction = {"perceptual_weight": 0, "error": "mse"}
    train(configured(tiny_shards, max_steps=2, reconstruction=reconstruction), tmp_path, CPU)
    for row, line in zip(rows(tmp_path), details(tmp_path), strict=True):
        assert line["psnr"] == pytest.approx(10 * math.log10(4 / float(row["error"])), rel=1e-6)
