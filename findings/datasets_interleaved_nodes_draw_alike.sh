#!/usr/bin/env bash
# datasets 5.2.0: on 8 GPUs, a mixture of half images and half videos gives each step 8 images or 8 videos, never both, if its shards divide by 8.
#
# Input: interleave_datasets() of images and videos, each with probability 0.5, given to 8 nodes by split_dataset_by_node(); one sample of each node makes
# a step. One would expect each node to draw for itself, as the workers of a DataLoader do, so a step to have 0 to 8 videos, 4 on average. But all nodes
# have the generator of the seed, and also that of shuffle(), so the n-th sample is of the same kind on all of them. With 15 shards in place of 16, the
# nodes take turns in one sequence, and the mixture is right:
#
#                                                shards 16       shards 15       drawn independently
#   steps of one kind                            1.00            0.01            0.01
#   standard deviation of the videos in a step   3.99            1.34            1.41
#   the same after shuffle(buffer_size=1000)     3.96            1.46            1.41
#   and with a DataLoader of 2 workers           4.00            1.43            1.41
#
# The gradient of a step is then that of images or of videos only, and varies as if one sample were drawn in place of eight. Exits 1 if the behaviour has
# changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 datasets==5.2.0
cat > "$work/finding.py" <<'PYTHON'
import itertools
import statistics
import sys

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

NODES, STEPS = 8, 400


def samples(shards, kind):
    for _ in shards:
        yield from ({"video": int(kind[0] == "video")} for _ in range(STEPS))


def source(kind, shards):
    return datasets.IterableDataset.from_generator(samples, gen_kwargs={"shards": list(range(shards)), "kind": (kind,)})


def videos_in_steps(shards, buffer=None, workers=0):
    mixture = datasets.interleave_datasets([source("image", shards), source("video", shards)], probabilities=[0.5, 0.5], seed=0)
    if buffer:
        mixture = mixture.shuffle(seed=0, buffer_size=buffer)
    nodes = []
    for rank in range(NODES):
        loader = DataLoader(split_dataset_by_node(mixture, rank, NODES), batch_size=None, num_workers=workers)
        nodes.append([int(sample["video"]) for sample in itertools.islice(loader, STEPS)])
    return [sum(step) for step in zip(*nodes, strict=True)]


def row(name, measure, settings, independent):
    values = [measure(videos_in_steps(shards, **settings)) for shards in (16, 15)]
    print(f"{name:46} {values[0]:<15.2f} {values[1]:<15.2f} {independent:.2f}", flush=True)
    return values


def of_one_kind(steps):
    return sum(count in (0, NODES) for count in steps) / len(steps)


deviation = (NODES * 0.25) ** 0.5
print(f"{'':46} shards 16       shards 15       drawn independently")
alike = row("steps of one kind", of_one_kind, {}, 2 * 0.5**NODES)
rows = [
    row("standard deviation of the videos in a step", statistics.pstdev, {}, deviation),
    row("the same after shuffle(buffer_size=1000)", statistics.pstdev, {"buffer": 1000}, deviation),
    row("and with a DataLoader of 2 workers", statistics.pstdev, {"buffer": 1000, "workers": 2}, deviation),
]
wrong = alike[0] == 1 and all(divisible > 3.9 for divisible, _ in rows)
right = alike[1] < 0.05 and all(abs(other - deviation) < 0.2 for _, other in rows)
sys.exit(int(not (wrong and right)))
PYTHON
"$work/venv/bin/python" -W ignore "$work/finding.py" 2>"$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
