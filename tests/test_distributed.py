"""How a process starts its group: alone, or as one of several that a launcher started. Each test is a real process."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
import torch
import torch.distributed as dist
from sat_ssvae import UserError, distributed
try:
    distributed.initialize(torch.device("cpu"))
except UserError as error:
    sys.exit(f"error: {error}")
total = distributed.mean_over_ranks(torch.tensor(2.0))
print(dist.is_initialized(), distributed.rank(), distributed.world_size(), float(total))
"""
EXPORTED = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # for CogVideoX's scripts
PLACE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def start(environment):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {},
        EXPORTED,
        {"RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"MASTER_PORT": "29500"},
        EXPORTED | {"MASTER_ADDR": "localhost"},
        EXPORTED | {"MASTER_ADDR": "a.host.that.is.gone.invalid", "MASTER_PORT": "29500"},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "PMI_SIZE": "2"},
    ],
)
def test_half_a_launchers_environment_is_one_process(environment):
    done = start(environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "0", "1", "2.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "=0 is set, but not MASTER_ADDR and MASTER_PORT: "),
        ({"RANK": "1"}, "RANK=1 is set, but not WORLD_SIZE and LOCAL_RANK and MASTER_ADDR and MASTER_PORT: "),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "is set, but not RANK and LOCAL_RANK: "),
        ({"RANK": "1", "WORLD_SIZE": "2"} | PLACE, "is set, but not LOCAL_RANK: "),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | PLACE, "numbers, with RANK below WORLD_SIZE: "),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | PLACE, "numbers, with RANK below WORLD_SIZE: "),
        ({"RANK": "1", "WORLD_SIZE": "two", "LOCAL_RANK": "0"} | PLACE, "numbers, with RANK below WORLD_SIZE: "),
    ],
)
def test_a_process_that_cannot_find_the_others_says_so(environment, message):
    done = start(environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and done.stderr.endswith("or for a single one: unset RANK WORLD_SIZE\n")


@pytest.mark.slow
def test_others_that_cannot_be_reached_are_one_line():
    numbers = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    done = start(numbers | {"MASTER_ADDR": "localhost", "MASTER_PORT": "70000"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: cannot join the other processes at localhost:70000 (" in done.stderr.splitlines()[-1]
