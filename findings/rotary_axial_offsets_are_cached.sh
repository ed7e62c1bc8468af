#!/usr/bin/env bash
# rotary-embedding-torch 0.9.1: get_axial_freqs() of the second chunk of a video is that of the first, and an offset in time also moves rows and columns.
#
# Input: chunks of 5 latent frames of 4 x 4 positions; the second begins at frame 5, which offsets=(5, 0, 0) says. One would expect its frames to have
# positions 5 to 9, and rows and columns 0 to 3. But frequencies are cached by length alone: those of a new length are kept as they
# were computed, offset included, and the next call, or the next axis, that is not longer gets them:
#
#                                        frames   rows     columns
#   first chunk, offsets (0, 0, 0)       0 ... 4  0 ... 3  0 ... 3
#   second, offsets (5, 0, 0)            0 ... 4  0 ... 3  0 ... 3   same object as for the first
#   second, new object                   5 ... 9  5 ... 8  5 ... 8
#   second, cache_if_possible=False      5 ... 9  0 ... 3  0 ... 3
#
# So a model that decodes or samples chunk by chunk does not see that time goes on. Frequencies for pixels (freqs_for="pixel") are not cached. The
# cache has the same fault with dtypes: positions of bfloat16 queries are rounded to bfloat16, so 1024 of them have 513 different ones, and float32
# queries rotated later by the same object get these: their relative error is 0.2. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 rotary-embedding-torch==0.9.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from rotary_embedding_torch import RotaryEmbedding

FRAMES, SIDE, DIM = 5, 4, 16


def positions(embedding, start):
    """Positions of frames, rows and columns: the first frequency of each axis is 1, so the angle is the position."""
    angles = embedding.get_axial_freqs(FRAMES, SIDE, SIDE, offsets=(start, 0, 0))
    axes = (angles[:, 0, 0, 0], angles[0, :, 0, DIM], angles[0, 0, :, 2 * DIM])
    return [axis.tolist() for axis in axes]


def row(name, values):
    print(f"{name:36}", *(f"{axis[0]:.0f} ... {axis[-1]:.0f} " for axis in values))
    return values


def rotate(embedding, queries):
    return embedding.rotate_queries_or_keys(queries).float()


print(f"{'':36} frames   rows     columns")
used = RotaryEmbedding(DIM)
first = row("first chunk, offsets (0, 0, 0)", positions(used, 0))
again = row("second, offsets (5, 0, 0)", positions(used, FRAMES))
fresh = row("second, new object", positions(RotaryEmbedding(DIM), FRAMES))
right = row("second, cache_if_possible=False", positions(RotaryEmbedding(DIM, cache_if_possible=False), FRAMES))

torch.manual_seed(0)
queries = torch.randn(1, 1, 1024, 64)
expected = rotate(RotaryEmbedding(64), queries)
used = RotaryEmbedding(64)
rotate(used, queries.bfloat16())
different = used.cached_freqs[:1024, 0].unique().numel()
error = ((rotate(used, queries) - expected).norm() / expected.norm()).item()
print(f"different positions of 1024 bfloat16 queries: {different}; error of float32 queries after them: {error:.2f}")

side = [float(position) for position in range(SIDE)]
shifted = [position + FRAMES for position in side]
frames = [float(position) for position in range(FRAMES)]
later = [position + FRAMES for position in frames]
same = [first, again, fresh, right] == [[frames, side, side]] * 2 + [[later, shifted, shifted], [later, side, side]]
sys.exit(int(not (same and different == 513 and error > 0.1)))
PYTHON
