"""Killed at any moment, also in the middle of a save, a run ends as if nothing had happened, bit for bit."""

import itertools
import json
import multiprocessing
import random
import time

import pytest
from safetensors.torch import load_file

from .ranks import free_port
from .test_stages import ADVERSARIAL, differing
from .test_trainer import rows, settings

KILLS = 12
RANK = """
import json, os, resource, signal, sys
from pathlib import Path
os.environ.update(json.loads(environment))
sys.stderr = open(log, "a")
os.dup2(sys.stderr.fileno(), 2)
import torch
from sat_ssvae import distributed
from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.training.trainer import TrainConfig, train
torch.set_num_threads(1)
if largest_file:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
distributed.initialize(torch.device("cpu"))
try:
    train(parse_config(TrainConfig, json.loads(settings)), Path(folder), torch.device("cpu"))
except UserError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(2)
os._exit(0)
"""


@pytest.fixture(scope="module")
def forkserver():
    """Starts processes that have the libraries loaded already; each is a process of its own to the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "sat_ssvae.training.trainer"])
    return context


def start(context, config, folder, world_size=1, largest_file=0):
    port = free_port()
    processes = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"} | {k: str(v) for k, v in place.items()}
        names = {
            "environment": json.dumps(environment),
            "settings": json.dumps(config),
            "folder": str(folder),
            "log": str(folder.with_suffix(".log")),
            "largest_file": largest_file,
        }
        processes.append(context.Process(target=exec, args=(RANK, names)))
        processes[-1].start()
    return processes


def finish(processes, folder, status=0):
    for process in processes:
        process.join(1200)
        assert process.exitcode == status, folder.with_suffix(".log").read_text()


def progress(folder):
    return len(rows(folder)) if (folder / "train.csv").exists() else 0


def wait_for(condition, processes):
    while not condition() and all(process.is_alive() for process in processes):
        time.sleep(0.0005)


def saving(folder):
    return any((folder / "checkpoints").glob("step_*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_at_random_points_it_ends_with_the_same_weights(forkserver, tiny_shards, tmp_path, world_size):
    config = settings(
        tiny_shards,
        max_steps=40,
        checkpoint_every=1,
        batch_size=1,
        adversarial=ADVERSARIAL,
        ema_decay=0.9,
        optimizer={"warmup_steps": 2, "zero_stage": 0 if world_size == 1 else 2},
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(forkserver, config, whole, world_size), whole)

    chance = random.Random(world_size)
    kills = torn_saves = 0
    for attempt in itertools.count():
        processes = start(forkserver, config, cut, world_size)
        if kills == KILLS:
            finish(processes, cut)
            break
        before = progress(cut)
        if attempt % 2:
            wait_for(lambda: progress(cut) > before and saving(cut), processes)  # noqa: B023 - called in this turn alone
            time.sleep(chance.uniform(0, 0.02))
        else:
            wait_for(lambda: progress(cut) > before, processes)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
        kills += all(process.is_alive() for process in processes)
        for process in chance.sample(processes, world_size):
            process.kill()
        for process in processes:
            process.join()
        torn_saves += saving(cut)
        assert attempt < 2 * KILLS and not (cut / "done").exists(), "it went on to the end between kills"
    assert torn_saves >= 2
    weights = [load_file(folder / "vae" / "model.safetensors") for folder in (whole, cut)]
    assert differing(*weights) == set()
    assert rows(cut) == rows(whole)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving_leaves_the_checkpoint_before(forkserver, tiny_shards, tmp_path):
    """A limit on the size of files is what a full disk looks like to a process; the critic makes the save too large."""
    adversarial = {**ADVERSARIAL, "base_channels": 32}  # joins at step 3
    config = settings(tiny_shards, max_steps=6, checkpoint_every=2, batch_size=1, adversarial=adversarial)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(forkserver, config, whole), whole)
    first = tmp_path / "probe"
    finish(start(forkserver, {**config, "max_steps": 3, "adversarial": {"weight": 0.0}}, first), first)
    largest = max(path.stat().st_size for path in (first / "checkpoints").rglob("*.pt"))

    finish(start(forkserver, config, cut, largest_file=2 * largest), cut, status=2)
    assert "error: " in cut.with_suffix(".log").read_text() and "make room" in cut.with_suffix(".log").read_text()
    complete = [path.name for path in (cut / "checkpoints").iterdir() if path.suffix != ".partial"]
    assert complete == ["step_2"]
    finish(start(forkserver, config, cut), cut)
    weights = [load_file(folder / "vae" / "model.safetensors") for folder in (whole, cut)]
    assert differing(*weights) == set()
    assert rows(cut) == rows(whole)
