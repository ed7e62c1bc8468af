#!/usr/bin/env bash
# webdataset 1.0.2: map() puts the old __key__ back into a sample that its function returns, but only if that is a new dictionary.
#
# Input: clips that are renamed in map(), for example because several shards use the same names. One would expect map() to pass on what the function
# returns. But it sets "__key__" of a returned dictionary to that of the dictionary that it gave to the function; if the function has changed
# this one itself, that is the new key. So of two ways to write the same function, one renames and the other does not:
#
#   sample["__key__"] = "a/0"; return sample   -> a/0
#   return {**sample, "__key__": "a/0"}        -> 0
#
# and two clips made of one sample keep the same name if written to shards again, where a name names one sample. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import webdataset

with webdataset.TarWriter("clips.tar") as writer:
    writer.write({"__key__": "0", "txt": "a clip"})


def changed(sample):
    sample["__key__"] = f"a/{sample['__key__']}"
    return sample


def copied(sample):
    return {**sample, "__key__": f"a/{sample['__key__']}"}


keys = []
for text, function in (('sample["__key__"] = "a/0"; return sample', changed), ('return {**sample, "__key__": "a/0"}', copied)):
    dataset = webdataset.WebDataset("clips.tar", shardshuffle=False).map(function)
    keys.extend(sample["__key__"] for sample in dataset)
    print(f"{text:42} -> {keys[-1]}")
sys.exit(int(keys != ["a/0", "0"]))
PYTHON
