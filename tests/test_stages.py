"""What a run of several stages needs: discriminators, a frozen encoder, weights handed on, averages, stopping."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from sat_ssvae.cli import main
from sat_ssvae.engine.run import TERMINATED
from sat_ssvae.errors import UserError
from sat_ssvae.training import trainer
from sat_ssvae.training.trainer import train
from sat_ssvae.vae.autoencoder import SSVAE

from .test_trainer import CPU, configured, details, rows, settings

ADVERSARIAL = {"weight": 0.5, "start_step": 3, "base_channels": 8, "num_layers": 2}


def weights_of(folder):
    return load_file(folder / "vae" / "model.safetensors")


def differing(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_discriminators_join_at_their_step_and_change_nothing_before(tiny_shards, tmp_path, monkeypatch):
    built = []
    original = trainer.Discriminator
    monkeypatch.setattr(trainer, "Discriminator", lambda *a: built.append(1) or original(*a))
    for name, changes in (("plain", {}), ("late", {"adversarial": {**ADVERSARIAL, "start_step": 9}})):
        train(configured(tiny_shards, max_steps=4, **changes), tmp_path / name, CPU)
    assert not built and differing(weights_of(tmp_path / "plain"), weights_of(tmp_path / "late")) == set()
    train(configured(tiny_shards, max_steps=4, adversarial=ADVERSARIAL), tmp_path / "joined", CPU)
    assert built == [1]
    plain, joined = rows(tmp_path / "plain"), rows(tmp_path / "joined")
    assert "adversarial" not in plain[0]
    assert [row["error"] for row in joined[:3]] == [row["error"] for row in plain[:3]]
    assert joined[3]["error"] != plain[3]["error"]
    assert [float(row["adversarial"]) != 0 for row in joined] == [False, False, True, True]
    measured = details(tmp_path / "joined")
    assert "critic" not in measured[1] and 0.5 < measured[2]["critic"] < 1.5
    assert measured[2]["adversarial_weight"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_with_everything_on_continues_bit_for_bit(tiny_shards, tmp_path, zero_stage, precision):
    """Both optimisers, the average, or float16's loss scale are in the checkpoint; accumulation is on."""
    # float16 takes no step before it has found a scale that it tolerates, which is sooner without these.
    found = {"lcr_weight": 0.0, "lmr_mask_ratio": 0.0, "adversarial": {"weight": 0.0}, "batch_size": 1}
    found |= {"max_steps": 13, "checkpoint_every": 11}
    changes = {
        "max_steps": 6,
        "precision": precision,
        "adversarial": ADVERSARIAL,
        "ema_decay": 0.9,
        "optimizer": {"warmup_steps": 2, "zero_stage": zero_stage, "accumulation_steps": 2, "clip_norm": 1.0},
        "checkpoint_every": 4,
        **(found if precision == "float16" else {}),
    }
    config = configured(tiny_shards, **changes)
    train(config, tmp_path / "whole", CPU)
    train(config, tmp_path / "cut", CPU)
    for leftover in ("done", "vae", "latest.pth"):
        path = tmp_path / "cut" / leftover
        path.rename(path.with_name(f"first {leftover}"))
    train(config, tmp_path / "cut", CPU)  # from its last checkpoint
    assert differing(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")) == set()
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    scales, continued = ([line["loss_scale"] for line in details(tmp_path / name)] for name in ("whole", "cut"))
    assert continued == scales and (scales[-3] not in (1, 2**16)) == (precision == "float16")
    assert details(tmp_path / "cut")[-1]["gradient_norm"] is not None  # steps are taken
    latest = torch.load(tmp_path / "cut" / "latest.pth", weights_only=True)
    assert differing(weights_of(tmp_path / "cut"), latest) == set()


def test_settings_that_change_no_step_may_change_in_a_run(tiny_shards, tmp_path):
    """Such as the number of workers on another machine."""
    train(configured(tiny_shards), tmp_path / "whole", CPU)
    train(configured(tiny_shards), tmp_path / "cut", CPU)
    (tmp_path / "cut" / "done").unlink()
    operated = {
        "log_every": 3,
        "checkpoint_every": 1,
        "keep_checkpoints": 2,
        "milestone_every": 2,
        "max_skipped_steps": 3,
        "monitor": {"tensorboard": True},
    }
    reading = {"num_workers": 1, "max_skip_share": 0.5, "cache": str(tmp_path / "cache"), "cache_gib": 1.0}
    config = configured(tiny_shards, **operated, data={**settings(tiny_shards)["data"], **reading})
    train(config, tmp_path / "cut", CPU)  # from the checkpoint of step 4
    assert differing(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")) == set()
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    assert cut == [*whole[:4], whole[5]]
    held = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert held == json.loads(config.model_dump_json()) and held["data"]["num_workers"] == 1


def test_zero_stages_agree(tiny_shards, tmp_path):
    weights = []
    for stage in (0, 1, 2):
        optimizer = {"warmup_steps": 2, "zero_stage": stage, "accumulation_steps": 2, "clip_norm": 10.0}
        train(configured(tiny_shards, max_steps=3, optimizer=optimizer), tmp_path / str(stage), CPU)
        weights.append(weights_of(tmp_path / str(stage)))
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_float16_finds_its_loss_scale(tiny_shards, tmp_path, zero_stage):
    """Gradients of a summed loss overflow at the first scale; those steps are neither taken nor counted as bad."""
    optimizer = {"warmup_steps": 0, "zero_stage": zero_stage, "clip_norm": 1.0}
    changes = {"precision": "float16", "max_steps": 24, "log_every": 1, "checkpoint_every": 99, "optimizer": optimizer}
    train(configured(tiny_shards, lmr_mask_ratio=0.0, lcr_weight=0.0, **changes), tmp_path, CPU)
    measured = details(tmp_path)
    scales = [line["loss_scale"] for line in measured]
    assert scales[0] < 2**16 and scales[-1] == scales[-2]
    assert measured[-1]["skipped_steps"] == 0
    assert float(rows(tmp_path)[-1]["error"]) < float(rows(tmp_path)[0]["error"])
    assert 0 < measured[-1]["gradient_norm"] < 1e6


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_frozen_encoder_stays_bit_for_bit_and_has_no_optimiser_state(tiny_shards, tmp_path, monkeypatch, zero_stage):
    train(configured(tiny_shards, max_steps=2), tmp_path / "one", CPU)
    engines = []
    original = trainer.build_engine
    monkeypatch.setattr(trainer, "build_engine", lambda *a, **k: engines.append(original(*a, **k)) or engines[-1])
    changes = {
        "max_steps": 3,
        "freeze_encoder": True,
        "resume_from": str(tmp_path / "one" / "latest.pth"),
        "optimizer": {"warmup_steps": 0, "zero_stage": zero_stage, "weight_decay": 0.1},
    }
    train(configured(tiny_shards, **changes), tmp_path / "two", CPU)
    changed = differing(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))
    decoder = {name for name in weights_of(tmp_path / "one") if not name.startswith("encoder.")}
    assert changed == decoder
    optimizer = getattr(engines[0].optimizer, "optimizer", engines[0].optimizer)
    held = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    trained = sum(p.numel() for name, p in engines[0].module.named_parameters() if not name.startswith("vae.encoder."))
    assert held == pytest.approx(trained, abs=16)  # ZeRO pads
    assert all(float(row["lcr_weight"]) == 0 for row in rows(tmp_path / "two"))


def test_weights_of_another_architecture_are_refused(tiny_shards, tmp_path):
    config = configured(tiny_shards)
    other = SSVAE(config.model.model_copy(update={"latent_channels": 6}))
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"another architecture than configured; set model.latent_channels=6"):
        train(configured(tiny_shards, resume_from=str(tmp_path / "other.pth")), tmp_path / "run", CPU)
    with pytest.raises(UserError, match="no such checkpoint"):
        train(configured(tiny_shards, resume_from="gone.pth"), tmp_path / "run2", CPU)


def test_checkpoints_that_stay(tiny_shards, tmp_path):
    changes = {"max_steps": 8, "checkpoint_every": 1, "keep_checkpoints": 2, "milestone_every": 3}
    train(configured(tiny_shards, **changes), tmp_path, CPU)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_3", "step_6", "step_7"]


def test_the_average_is_what_is_handed_over(tiny_shards, tmp_path):
    for decay in (0.0, 0.999):
        train(configured(tiny_shards, max_steps=4, lr=1e-2, ema_decay=decay), tmp_path / str(decay), CPU)
    raw, average = weights_of(tmp_path / "0.0"), weights_of(tmp_path / "0.999")
    assert differing(raw, average) == set(raw)
    assert [row["error"] for row in rows(tmp_path / "0.0")] == [row["error"] for row in rows(tmp_path / "0.999")]
    latest = torch.load(tmp_path / "0.999" / "latest.pth", weights_only=True)
    assert differing(average, latest) == set()
    assert SSVAE.from_pretrained(tmp_path / "0.999" / "latest.pth").config.latent_channels == 4


def test_sigterm_saves_and_stops(tiny_shards, tmp_path, capfd):
    config = configured(tiny_shards, max_steps=100_000, checkpoint_every=100_000)

    def terminate():
        while not (tmp_path / "train.csv").exists() or len(rows(tmp_path)) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        train(config, tmp_path, CPU)
    thread.join()
    assert "SIGTERM: saving after this step" in capfd.readouterr().err
    assert stopped.value.code == TERMINATED and signal.getsignal(signal.SIGTERM) == before
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{rows(tmp_path)[-1]['step']}"
    assert (tmp_path / "latest.pth").exists() and not (tmp_path / "done").exists()


def test_the_articles_flags(tiny_shards, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(settings(tiny_shards, max_steps=1)))
    common = ["train", "--config", str(file), "--output", str(tmp_path)]
    assert main([*common, "--name", "one"]) == 0
    flags = ["--freeze_encoder", "True", "--resume_from", str(tmp_path / "one" / "latest.pth")]
    assert main([*common, "--name", "two", *flags, "lr=0.01"]) == 0
    assert "autoencoder: " in capsys.readouterr().out
    changed = differing(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))
    assert changed and not any(name.startswith("encoder.") for name in changed)
