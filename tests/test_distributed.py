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
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 WORLD_SIZE=2 is set, but not MASTER_ADDR and MASTER_PORT: "),
        ({"RANK": "1"}, "RANK=1 is set, but not WORLD_SIZE and MASTER_ADDR and MASTER_PORT: "),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "is set, but not RANK: "),
    ],
)
def test_a_process_that_cannot_find_the_others_says_so(environment, message):
    done = start(environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and done.stderr.endswith("or for a single one: unset RANK WORLD_SIZE\n")
