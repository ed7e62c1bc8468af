#!/usr/bin/env bash
# torchmetrics 1.9.0: the bootstrap's standard error of a score is 0 if clips are given to it one at a time, and too small if batches are of one film.
#
# Input: BootStrapper(MeanMetric(), sampling_strategy="multinomial") with 400 replicates, and the scores of 200 clips in batches. It is said to bootstrap
# each batch as an approximation of all data, and one would expect their size to matter little, as it does not for the metric itself. But one clip
# can only be resampled to that clip, so all replicates are the same, and what differs between batches, not within them, is never in the standard
# error:
#
#                                         multinomial    within batches    over all data
#   independent clips, in ones            0.00           0.00              0.22
#   in twos                               0.14           0.14              0.22
#   in fours                              0.17           0.18              0.22
#   all 200                               0.22           0.22              0.22
#   20 films of 10 clips, film by film    0.07           0.07              0.19
#
# The last two columns are calculated from the scores. Clips of video are often scored one by one, and every difference of two models then looks
# certain. The other strategy, "poisson", does not depend on batches: 0.22 for clips in ones. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from torchmetrics import MeanMetric
from torchmetrics.wrappers import BootStrapper

CLIPS, REPLICATES = 200, 400


def bootstrap(scores, size, strategy):
    torch.manual_seed(0)
    replicates = BootStrapper(MeanMetric(), num_bootstraps=REPLICATES, sampling_strategy=strategy)
    for batch in scores.split(size):
        replicates.update(batch)
    return replicates.compute()["std"].item()


def standard_error(scores, size):
    """Standard error of the mean if each batch of clips is resampled by itself."""
    return (scores.view(-1, size).var(1, correction=0).mean() / len(scores)).sqrt().item()


def row(name, scores, size):
    values = bootstrap(scores, size, "multinomial"), standard_error(scores, size), standard_error(scores, CLIPS)
    print(f"{name:37} {values[0]:<14.2f} {values[1]:<17.2f} {values[2]:.2f}", flush=True)
    return values


torch.manual_seed(1)
clips = 30 + 3 * torch.randn(CLIPS)
films = 30 + 3 * torch.randn(20).repeat_interleave(10) + torch.randn(CLIPS)
print(f"{'':37} multinomial    within batches    over all data")
rows = [
    row("independent clips, in ones", clips, 1),
    row("in twos", clips, 2),
    row("in fours", clips, 4),
    row("all 200", clips, CLIPS),
    row("20 films of 10 clips, film by film", films, 10),
]
poisson = bootstrap(clips, 1, "poisson")
print(f"poisson, clips in ones: {poisson:.2f}")
as_batches = all(abs(found - within) < 0.02 for found, within, _ in rows)
too_small = rows[0][0] < 1e-4 and rows[4][0] < rows[4][2] / 2
sys.exit(int(not (as_batches and too_small and abs(poisson - rows[0][2]) < 0.02)))
PYTHON
