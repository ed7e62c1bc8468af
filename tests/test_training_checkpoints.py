"""A training's checkpoints: what a dying machine cannot take along, room for them, and damaged ones."""

import shutil
from pathlib import Path

import pytest

from sat_ssvae import storage as durable
from sat_ssvae.engine.checkpoints import complete_steps, save_checkpoint
from sat_ssvae.errors import UserError
from sat_ssvae.training.trainer import train

from .test_stages import ADVERSARIAL
from .test_trainer import CPU, configured, rows


def test_checkpoints_logs_and_the_result_are_flushed_to_the_disk(tiny_shards, tmp_path, monkeypatch):
    """The rows of the log before the checkpoint that follows them, the autoencoder before the run counts as done."""
    synced = []

    def noting(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((str(path.relative_to(tmp_path)), complete_steps(tmp_path / "checkpoints"), path.stat().st_size))
        assert not (tmp_path / "done").exists()

    monkeypatch.setattr(durable.os, "fsync", noting)
    train(configured(tiny_shards, max_steps=3), tmp_path, CPU)
    for log in ("train.csv", "metrics.jsonl"):
        before, after = ([size for name, steps, size in synced if name == log and steps == s] for s in ([], [2]))
        assert before[-1] > 0 and after == [(tmp_path / log).stat().st_size]
    assert {"vae", "vae/model.safetensors", "vae/config.json"} <= {name for name, _, _ in synced}


class Engine:
    """Saves a file, and notes what else lay there when it did."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def save_checkpoint(self, folder, tag, **_options):
        self.seen += sorted(path.name for path in self.folder.iterdir())
        (self.folder / tag).mkdir()
        (self.folder / tag / "weights").touch()


def test_leftovers_of_a_killed_save_are_deleted_before_the_next(tmp_path):
    (tmp_path / "step_3.partial").mkdir()
    engine = Engine(tmp_path)
    save_checkpoint(engine, tmp_path, 4, {})
    assert engine.seen == [] and [path.name for path in tmp_path.iterdir()] == ["step_4"]


def test_a_half_deleted_checkpoint_does_not_count(tmp_path, monkeypatch):
    engine = Engine(tmp_path)
    save_checkpoint(engine, tmp_path, 1, {})
    counted = []
    monkeypatch.setattr(shutil, "rmtree", lambda *_a, **_k: counted.append(complete_steps(tmp_path)))
    save_checkpoint(engine, tmp_path, 2, {})
    assert counted[-1] == [2]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("mp_rank_00_model_states.pt", cut),
        ("mp_rank_00_model_states.pt", lambda path: path.write_bytes(b"")),
        ("mp_rank_00_model_states.pt", Path.unlink),
        ("critic/mp_rank_00_model_states.pt", cut),
        ("critic/mp_rank_00_model_states.pt", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_one_line_with_a_way_out(tiny_shards, tmp_path, file, damage):
    adversarial = {**ADVERSARIAL, "start_step": 1}
    changes = {"max_steps": 3, "checkpoint_every": 1, "keep_checkpoints": 2, "optimizer": {"zero_stage": 1}}
    config = configured(tiny_shards, **changes, adversarial=adversarial)
    train(config, tmp_path, CPU)
    (tmp_path / "done").unlink()
    expected = rows(tmp_path)
    newest = tmp_path / "checkpoints" / "step_2"
    damage(newest / file)
    advice = rf"cannot be read \(.+\); if it is damaged, delete {newest}, .* from step 1"
    with pytest.raises(UserError, match=rf"{advice}; {tmp_path}/latest.pth still has the weights"):
        train(config, tmp_path, CPU)
    (tmp_path / "latest.pth").unlink()  # as in the run of a diffusion model, which writes none
    with pytest.raises(UserError, match=rf"{advice}$"):
        train(config, tmp_path, CPU)
    shutil.rmtree(newest)  # as advised
    train(config, tmp_path, CPU)
    assert rows(tmp_path) == expected
