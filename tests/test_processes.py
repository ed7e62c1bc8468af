"""Members of a comparison side by side: the same result, also after kills; a failure of one ends all, in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from sat_ssvae.comparison.processes import Share, shared_out
from sat_ssvae.errors import UserError

from .small_comparison import ARMS, settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cores(monkeypatch):
    def are(cpus, gpus=0, threads=64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cpus))
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return are


@pytest.mark.parametrize(
    ("cpus", "members", "jobs", "share"),
    [
        (2, 2, None, Share(2, 1)),
        (2, 6, None, Share(2, 1)),
        (16, 2, None, Share(2, 8)),
        (1, 2, None, Share(1, 1)),
        (16, 2, 1, Share(1, 8)),
        (16, 2, 5, Share(2, 8)),
    ],
)
def test_a_members_threads_do_not_depend_on_the_number_of_jobs(cores, cpus, members, jobs, share):
    cores(cpus)
    assert shared_out(jobs, members, CPU) == share


def test_fewer_threads_are_the_users_choice(cores):
    cores(16, threads=3)
    assert shared_out(None, 2, CPU) == Share(2, 3)


def test_a_member_has_a_gpu_to_itself(cores):
    cores(16, gpus=1)
    assert shared_out(None, 2, CUDA).jobs == 1
    cores(16, gpus=4)
    assert shared_out(None, 6, CUDA) == Share(4, 4)
    with pytest.raises(UserError, match="jobs=5: each needs a GPU and there are 4 here"):
        shared_out(5, 6, CUDA)


def start(folder, shards, jobs=2, arms=ARMS):
    """`sat-ssvae compare` in `folder`."""
    long = settings(arms=arms, jobs=jobs)
    long["data"]["num_workers"] = 1  # which has to end with its member
    long["vae"] |= {"max_steps": 6, "checkpoint_every": 1}
    long["transformer"] |= {"max_steps": 6, "checkpoint_interval": 1}
    long["transformer"]["evaluation_steps"] = [2, 6]
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(long))
    command = ["compare", "--config", str(config), "--data", str(shards), "--output", str(folder / "run")]
    log = folder / "log"
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, "-m", "sat_ssvae.cli", *command], stderr=file, stdout=file), log


@pytest.fixture
def shards(tiny_shards, tmp_path):
    """The same clips to train on and to hold out."""
    both = tmp_path / "data"
    both.mkdir()
    for split in ("train", "heldout"):
        (both / split).symlink_to(tiny_shards)
    return both


def until(process, there):
    """Wait while the process runs."""
    while not there():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.05)


def members(process):
    """The processes of members; it has others, such as Python's resource tracker."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def results(folder):
    """Everything that a run computed, but for what tells time, and checkpoints on the way."""
    found = [path for kind in ("vae", "latents", "transformer") for path in (folder / "run" / kind).rglob("*")]
    kinds = {".safetensors", ".json", ".csv", ".npz"}
    kept = [path for path in found if path.suffix in kinds and "checkpoints" not in path.parts]
    return {str(path.relative_to(folder)): content(path) for path in kept}


def content(path):
    """Bytes; the names in the header of a safetensors file come in any order."""
    found = path.read_bytes()
    if path.suffix != ".safetensors":
        return found
    end = 8 + int.from_bytes(found[:8], "little")
    return json.loads(found[8:end]), found[end:]


@pytest.mark.slow
def test_two_at_a_time_killed_and_stopped_give_the_result_of_one(shards, tmp_path):
    alone, _ = start(tmp_path / "alone", shards, jobs=1)
    assert alone.wait() == 0
    killed, _ = start(tmp_path / "both", shards)
    run = tmp_path / "both" / "run"
    until(killed, lambda: list(run.glob("vae/*/checkpoints/step_*")))
    workers = members(killed)
    assert len(workers) == 2
    killed.kill()
    killed.wait()
    end = time.monotonic() + 60
    while any(map(is_alive, workers)):
        assert time.monotonic() < end, "the members go on without their parent"
        time.sleep(0.05)
    stopped, log = start(tmp_path / "both", shards)
    until(stopped, lambda: list(run.glob("transformer/*/checkpoints/step_*")))
    workers = members(stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143, log.read_text()
    assert not any(map(is_alive, workers))
    again, log = start(tmp_path / "both", shards)
    assert again.wait() == 0, log.read_text()
    assert results(tmp_path / "both") == results(tmp_path / "alone")
    said = log.read_text()
    assert "INFO: plan: 7 stages" in said and said.count("stage 7 of 7: report") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_a_member_that_fails_ends_the_others_in_one_line(shards, tmp_path):
    broken = ARMS | {"ssvae": {"settings": {"lr": 1e30, "max_steps": 1000, "max_skipped_steps": 1}}}
    endless = broken | {"stock": {"settings": ARMS["stock"]["settings"] | {"max_steps": 100_000}}}
    process, log = start(tmp_path / "fails", shards, arms=endless)
    assert process.wait() == 2
    said = log.read_text()
    assert said.count("error:") == 1 and "1 steps in a row without a finite" in said.splitlines()[-1]
    assert "Traceback" not in said and "ssvae-vae0: " in said
    minutes = json.loads((tmp_path / "fails" / "run" / "minutes.json").read_text())
    assert minutes["autoencoder stock"] > 0 and minutes["autoencoder ssvae"] > 0  # of what was stopped, too


@pytest.mark.slow
def test_a_member_that_is_killed_is_named(shards, tmp_path):
    endless = ARMS | {"stock": {"settings": ARMS["stock"]["settings"] | {"max_steps": 100_000}}}
    process, log = start(tmp_path / "dies", shards, arms=endless)
    run = tmp_path / "dies" / "run"
    until(process, lambda: list(run.glob("vae/stock-*/checkpoints/step_*")))
    os.kill(members(process)[0], signal.SIGKILL)
    assert process.wait() == 2
    assert (
        "-vae0: the process was ended by SIGKILL; if memory was short, set jobs=1" in log.read_text().splitlines()[-1]
    )
