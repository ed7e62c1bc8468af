"""A run's folder: one training at a time, one configuration, and what is said to whoever brings another."""

import os
import signal
import subprocess
import sys

import pytest

from sat_ssvae.errors import UserError
from sat_ssvae.training.run_folder import claimed_folder
from sat_ssvae.training.trainer import train

from .processes import unmeasured
from .test_trainer import CPU, configured

HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
if os.fork():
    print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_in_which_another_process_trains_is_refused_until_that_is_killed(tiny_shards, tmp_path):
    """Even while a process that was forked from it, as readers of data are, has not noticed."""
    config = configured(tiny_shards, max_steps=1)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(
        command, env=unmeasured(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="another process trains there; wait for it"):
                train(config, tmp_path, CPU)
            assert not (tmp_path / "config.json").exists()
            holder.kill()
            holder.wait()
            train(config, tmp_path, CPU)
        finally:
            os.killpg(holder.pid, signal.SIGKILL)
    assert (tmp_path / "done").exists()


def test_the_folder_is_held_while_it_trains_and_no_longer(tiny_shards, tmp_path):
    command = [sys.executable, "-c", HOLDER.partition("if os")[0], str(tmp_path / ".lock")]
    with claimed_folder(configured(tiny_shards), tmp_path):
        held = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, check=False)
    free = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, check=False)
    assert "BlockingIOError" in held.stderr and free.returncode == 0


def test_a_file_system_without_locks_is_used_without(tiny_shards, tmp_path, monkeypatch):
    def unknown(*_arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", unknown)
    train(configured(tiny_shards, max_steps=1), tmp_path, CPU)
    assert (tmp_path / "done").exists()


def test_what_differs_from_the_run_in_a_folder_is_named(tiny_shards, tmp_path):
    train(configured(tiny_shards, max_steps=1), tmp_path, CPU)
    longer = configured(tiny_shards, max_steps=2, optimizer={"clip_norm": 1.0, "warmup_steps": 2}, ema_decay=0.9)
    with pytest.raises(UserError) as refused:
        train(longer, tmp_path, CPU)
    message = str(refused.value)
    assert "max_steps: 1 there, 2 now; optimizer.clip_norm: 0.0 there, 1.0 now" in message
    assert "ema_decay: 0.0 there, 0.9 now)" in message
    assert f"resume_from={tmp_path}/latest.pth" in message


def test_a_damaged_configuration_is_one_line(tiny_shards, tmp_path):
    config = configured(tiny_shards, max_steps=1)
    (tmp_path / "config.json").write_text("")
    with pytest.raises(UserError, match=r"config.json: damaged .*; delete it, and the run continues"):
        train(config, tmp_path, CPU)
    (tmp_path / "config.json").unlink()
    train(config, tmp_path, CPU)
