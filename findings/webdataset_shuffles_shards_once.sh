#!/usr/bin/env bash
# webdataset 1.0.2: WebDataset(shardshuffle=...) puts the shards in the same order in every epoch, so with_epoch() never reaches most of them.
#
# Input: 8 shards of 4 samples, read in one process. One would expect a new order each time that a shuffled dataset is iterated over, as from shuffle()
# for samples, and the option detshuffle=True ("deterministic") for who wants an order that repeats. It is the other way round: the plain shuffle
# of shards makes a new generator from the same seed in every epoch, detshuffle adds the epoch's number to it.
#
#   shardshuffle=8                   first shards of three epochs: 4 4 4
#   shardshuffle=8, detshuffle=True  first shards of three epochs: 6 2 0
#
# with_epoch(n) starts each epoch at the beginning, which is harmless with a new order, but not with the same:
#
#   shardshuffle=8, with_epoch(8), 50 epochs: samples of 2 of 8 shards
#
# (Which ones differs from run to run; a seed of one's own changes nothing else.) Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import webdataset

shards = [f"{number}.tar" for number in range(8)]
for number, path in enumerate(shards):
    with webdataset.TarWriter(path) as writer:
        for sample in range(4):
            writer.write({"__key__": f"{number}-{sample}", "txt": ""})


def read(dataset):
    """The numbers of the shards, in the order that they were read."""
    return list(dict.fromkeys(sample["__key__"][0] for sample in dataset))


orders = {}
for text, options in (("shardshuffle=8", {}), ("shardshuffle=8, detshuffle=True", {"detshuffle": True})):
    dataset = webdataset.WebDataset(shards, shardshuffle=8, **options)
    epochs = [read(dataset) for _ in range(3)]
    orders[text] = len({tuple(order) for order in epochs})
    print(f"{text:32} first shards of three epochs:", *(order[0] for order in epochs))
dataset = webdataset.WebDataset(shards, shardshuffle=8).with_epoch(8)
seen = {shard for _ in range(50) for shard in read(dataset)}
print(f"shardshuffle=8, with_epoch(8), 50 epochs: samples of {len(seen)} of 8 shards")
sys.exit(int(list(orders.values()) != [1, 3] or len(seen) != 2))
PYTHON
