#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8): the first video stream of an animated AVIF file is one still picture.
#
# Input: twelve pictures, 80 ms each, written as an AVIF sequence by Pillow 13. One would expect `decode(video=0)`, which gives every picture of a GIF,
# an APNG or an MP4 file, to give twelve. A sequence also has its first picture as an item of its own, for viewers that do not move, and FFmpeg
# tells both as video streams of the same size, the still one first and both marked as default:
#
#   stream  frames told  decoded  duration  default
#   0       1            1        none      yes
#   1       12           12       0.96 s    yes
#
# `streams.best("video")` is the second. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 pillow==13.0.0
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys

import av
from av.stream import Disposition
from PIL import Image

pictures = [Image.new("RGB", (64, 48), (20 * number, 0, 0)) for number in range(12)]
file = io.BytesIO()
pictures[0].save(file, "AVIF", save_all=True, append_images=pictures[1:], duration=80)
found = []
print("stream  frames told  decoded  duration  default")
for number in range(2):
    with av.open(io.BytesIO(file.getvalue())) as source:
        stream = source.streams.video[number]
        lasts = None if stream.duration is None else float(stream.duration * stream.time_base)
        default = bool(stream.disposition & Disposition.default)
        row = stream.frames, sum(1 for _ in source.decode(stream)), lasts, default
        print(f"{number:<7} {row[0]:<12} {row[1]:<8} {'none' if lasts is None else f'{lasts:.2f} s':<9} {'yes' if default else 'no'}")
        found.append(row)
with av.open(io.BytesIO(file.getvalue())) as source:
    best = source.streams.best("video").index
print(f"best: {best}")
sys.exit(int(found != [(1, 1, None, True), (12, 12, 0.96, True)] or best != 1))
PYTHON
