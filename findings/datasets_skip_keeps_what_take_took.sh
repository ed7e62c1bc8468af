#!/usr/bin/env bash
# datasets 5.2.0: training on skip(40) sees most of the clips that take(40) has set aside for validation, from its second epoch or with more workers.
#
# Input: 400 clips in 8 shards, read as an IterableDataset. take() and skip() are how such a dataset is split; one would expect the two to have
# no clip in common whatever reads them. But how many to skip is divided among the workers of a DataLoader, or the nodes, each of which skips its
# share at the start of its own shards; and if the dataset was shuffled first, set_epoch(), which accelerate calls for each epoch, shuffles anew
# what skip() then counts off:
#
#                                                 of 40 validation clips, in training
#   training in one process                       0
#   training with a DataLoader of 4 workers       30
#   training on 4 nodes                           30
#   both with 4 workers                           0
#   shuffled, then split, first epoch             0
#   shuffled, then split, second epoch            24     after set_epoch(1)
#   split, then shuffled, second epoch            0
#
# Most of the validation loss is then that of training data, with no warning. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 datasets==5.2.0
cat > "$work/finding.py" <<'PYTHON'
import sys

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

SHARDS, CLIPS, VALIDATION = 8, 50, 40


def clips(shards):
    for shard in shards:
        for index in range(CLIPS):
            yield {"clip": shard * CLIPS + index}


def read(dataset, workers=0):
    return {int(sample["clip"]) for sample in DataLoader(dataset, batch_size=None, num_workers=workers)}


def common(name, validation, training):
    assert len(validation) == VALIDATION
    print(f"{name:46} {len(validation & training)}", flush=True)
    return len(validation & training)


whole = datasets.IterableDataset.from_generator(clips, gen_kwargs={"shards": list(range(SHARDS))})
validation, training = whole.take(VALIDATION), whole.skip(VALIDATION)
nodes = [read(split_dataset_by_node(training, rank, 4)) for rank in range(4)]
found = [
    common("training in one process", read(validation), read(training)),
    common("training with a DataLoader of 4 workers", read(validation), read(training, 4)),
    common("training on 4 nodes", read(validation), set.union(*nodes)),
    common("both with 4 workers", read(validation, 4), read(training, 4)),
]

shuffled = whole.shuffle(seed=0, buffer_size=100)
kept, rest = shuffled.take(VALIDATION), shuffled.skip(VALIDATION)
found.append(common("shuffled, then split, first epoch", read(kept), read(rest)))
rest.set_epoch(1)
found.append(common("shuffled, then split, second epoch", read(kept), read(rest)))
later = training.shuffle(seed=0, buffer_size=100)
later.set_epoch(1)
found.append(common("split, then shuffled, second epoch", read(validation), read(later)))
right = [found[0], found[3], found[4], found[6]] == [0, 0, 0, 0]
sys.exit(int(not (right and found[1:3] == [30, 30] and found[5] > VALIDATION / 2)))
PYTHON
"$work/venv/bin/python" -W ignore "$work/finding.py" 2>"$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
