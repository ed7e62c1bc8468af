"""Scripts that measure and estimate run to the last row of their tables, at sizes that say nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = ["model={base_channels: 8}", "resolution=32", "data.num_frames=5", "batch_size=2", "lmr.kind=block"]


def last_line(name, *arguments):
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_scaling_is_what_was_counted_over_rate_and_bandwidth():
    """The packaged setting has a perceptual network, whose gradient is taken inside the step."""
    cells = last_line(
        "estimate_scaling.py",
        *SMALL,
        *("--tflops", "2", "--bandwidth", "1e9", "--ranks", "1", "4"),
        *("--configs", "article_256p"),
    ).split("|")
    counted, one, four = float(cells[3]), *(float(cell.split(",")[0]) for cell in cells[4:6])
    assert counted == pytest.approx(0.0503, rel=0.02)  # .0242 of it the autoencoder's, as by FlopCounterMode
    assert one == pytest.approx(counted / 2, rel=0.01) == four


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("check_scaling.py --ranks 2 --stages 1 --steps 5", "| 1 | 2 |"),
        ("bench_index.py --samples 40 --shards 2", "beside the shards"),
        ("bench_training.py --preset default --rounds 1 --only published", "sample by sample, checkpointed"),
    ],
)
def test_a_table_is_complete(command, row):
    assert row in last_line(*command.split())
