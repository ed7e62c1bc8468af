#!/usr/bin/env bash
# webdataset 1.0.2: WebDataset's repeat, its seed when resampled, and listed()'s partial are accepted and do nothing.
#
# Input: 8 shards of 4 samples. From the docstrings one would expect repeat=True to go round without end, a seed to fix which shards are drawn with
# resampled=True, and partial=False to drop a last list that is too short, as it drops a last batch in batched(). None of the three is passed on:
#
#   repeat=True                    32 samples, then the end
#   resampled=True, seed=0         two datasets: different shards
#   listed(5, partial=False)       5 5 5 5 5 5 2
#   batched(5, partial=False)      5 5 5 5 5 5
#
# (What does work: .repeat(), ResampledShards(deterministic=True, seed=...) and batched(5, collation_fn=None, partial=False).) Exits 1 if the
# behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from itertools import islice

import webdataset

shards = [f"{number}.tar" for number in range(8)]
for number, path in enumerate(shards):
    with webdataset.TarWriter(path) as writer:
        for sample in range(4):
            writer.write({"__key__": f"{number}-{sample}", "txt": ""})


def dataset(**options):
    return webdataset.WebDataset(shards, shardshuffle=False, **options)


repeated = len(list(islice(dataset(repeat=True), 1000)))
drawn = [[sample["__key__"] for sample in islice(dataset(resampled=True, seed=0), 200)] for _ in range(2)]
listed = [len(samples) for samples in dataset().listed(5, partial=False)]
batched = [len(samples["txt"]) for samples in dataset().batched(5, partial=False)]
print(f"repeat=True                    {repeated} samples, then the end")
print(f"resampled=True, seed=0         two datasets: {'the same' if drawn[0] == drawn[1] else 'different'} shards")
print("listed(5, partial=False)      ", *listed)
print("batched(5, partial=False)     ", *batched)
changed = repeated != 32 or drawn[0] == drawn[1] or listed != [5] * 6 + [2] or batched != [5] * 6

fixed = [[shard["url"] for shard in islice(webdataset.ResampledShards(shards, deterministic=True, seed=0), 50)] for _ in range(2)]
dropped = [len(samples) for samples in dataset().batched(5, collation_fn=None, partial=False)]
changed |= len(list(islice(dataset().repeat(), 1000))) != 1000 or fixed[0] != fixed[1] or dropped != [5] * 6
sys.exit(int(changed))
PYTHON
