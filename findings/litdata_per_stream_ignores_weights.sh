#!/usr/bin/env bash
# litdata 0.2.76: with batching_method="per_stream", half of the batches come from each of two datasets, whatever their weights.
#
# Input: a CombinedStreamingDataset of images and videos, whose batches have to be of one kind, as the shapes differ; 300 batches of 8. The dataset
# of a batch is said to be selected at random, and one would expect its share of batches to be its weight, as its share of samples is with
# "stratified" batches. But the dataset of the next batch is drawn until it is another than that of the last one. So two datasets take strict turns, and
# of more of them one with weight w has a share in proportion to w (1 - w):
#
#   weights              stratified           per_stream           w (1 - w)
#   0.80 0.20            0.79 0.21            0.50 0.50            0.50 0.50
#   0.95 0.05            0.95 0.05            0.50 0.50            0.50 0.50
#   0.80 0.10 0.10       0.79 0.10 0.11       0.47 0.25 0.28       0.47 0.26 0.26
#
# Each worker of a loader takes turns, too. Without weights, when an epoch goes through all data, 304 videos among 3000 images are all in the first
# 76 of 413 batches, with none in the rest. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 litdata==0.2.76
cat > "$work/finding.py" <<'PYTHON'
import contextlib
import itertools
import sys

import litdata

SAMPLES, VIDEOS, BATCHES, BATCH = 3000, 304, 300, 8


def sample(index):
    return index


def write(folder, source, count=SAMPLES):
    with contextlib.redirect_stdout(sys.stderr):
        first = source * SAMPLES
        inputs = list(range(first, first + count))
        litdata.optimize(fn=sample, inputs=inputs, output_dir=folder, chunk_size=500, num_workers=1)
    return folder


def batches(folders, weights, method, workers=0):
    """The source of each sample, batch by batch."""
    datasets = [litdata.StreamingDataset(folder) for folder in folders]
    mixture = litdata.CombinedStreamingDataset(datasets, seed=0, weights=weights, iterate_over_all=False, batching_method=method)
    loader = litdata.StreamingDataLoader(mixture, batch_size=BATCH, num_workers=workers)
    return [(batch // SAMPLES).tolist() for batch in itertools.islice(loader, BATCHES)]


def ends_of_epoch(folders):
    """The number of batches with videos, the last of these, and the number of all batches if all data is read."""
    mixture = litdata.CombinedStreamingDataset([litdata.StreamingDataset(folder) for folder in folders], batching_method="per_stream")
    loader = litdata.StreamingDataLoader(mixture, batch_size=BATCH, num_workers=0)
    videos = [bool((batch >= SAMPLES).any()) for batch in loader]
    return sum(videos), max(number for number, is_video in enumerate(videos, 1) if is_video), len(videos)


def shares(sources, count):
    flat = list(itertools.chain.from_iterable(sources))
    return [flat.count(source) / len(flat) for source in range(count)]


def close(values, expected):
    return max(abs(value - other) for value, other in zip(values, expected, strict=True)) < 0.05


def main(work):
    folders = [write(f"{work}/{source}", source) for source in range(3)]
    print(f"{'weights':20} {'stratified':20} {'per_stream':20} w (1 - w)")
    same = True
    for weights in ((0.8, 0.2), (0.95, 0.05), (0.8, 0.1, 0.1)):
        used = folders[: len(weights)]
        stratified = shares(batches(used, weights, "stratified"), len(weights))
        streams = batches(used, weights, "per_stream")
        of_one_kind = all(len(set(batch)) == 1 for batch in streams)
        total = sum(weight * (1 - weight) for weight in weights)
        predicted = [weight * (1 - weight) / total for weight in weights]
        found = shares(streams, len(weights))
        columns = (" ".join(f"{share:.2f}" for share in row) for row in (weights, stratified, found, predicted))
        print(" ".join(f"{column:20}" for column in columns).rstrip(), flush=True)
        same = same and of_one_kind and close(stratified, weights) and close(found, predicted)
    loaded = shares(batches(folders[:2], (0.8, 0.2), "per_stream", workers=2), 2)
    print("per_stream with weights 0.80 0.20 and 2 workers:", *(f"{share:.2f}" for share in loaded))
    ends = ends_of_epoch([folders[0], write(f"{work}/few", 1, VIDEOS)])
    print("whole epoch: {} batches of videos, the last is number {} of {}".format(*ends))
    in_turns = ends[0] == VIDEOS // BATCH and ends[1] <= 2 * ends[0]
    return same and close(loaded, (0.5, 0.5)) and in_turns


if __name__ == "__main__":
    sys.exit(int(not main(sys.argv[1])))
PYTHON
"$work/venv/bin/python" -W ignore "$work/finding.py" "$work" 2>"$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
