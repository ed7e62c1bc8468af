#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8): average_rate of a GIF is far from its frames divided by its duration.
#
# Input: 24 frames written as GIF by the same library, 60 and 30 a second. One would expect average_rate to be about that, as it is for MP4, and as
# the file's own duration and number of frames say. GIF counts time in hundredths of a second, so that delays of 60 a second alternate
# between 1 and 2 of them; their mean is right, but what is told as the average follows the shortest:
#
#   written  average_rate  frames  duration  frames / duration
#   60       100           24      0.40 s    60.0
#   30       100/3         24      0.80 s    30.0
#
# Frames picked by average_rate are then too fast by up to two thirds. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys
from fractions import Fraction

import av
import numpy as np


def gif(rate):
    file = io.BytesIO()
    with av.open(file, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for number in range(24):
            picture = np.full((48, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return io.BytesIO(file.getvalue())


found = {}
print("written  average_rate  frames  duration  frames / duration")
for rate in (60, 30):
    with av.open(gif(rate)) as source:
        stream = source.streams.video[0]
        told, seconds = stream.average_rate, source.duration / av.time_base
        frames = sum(1 for _ in source.decode(stream))
    found[rate] = told, round(frames / seconds)
    print(f"{rate:<8} {told!s:13} {frames:<7} {seconds:.2f} s    {frames / seconds:.1f}")
sys.exit(int(found != {60: (Fraction(100), 60), 30: (Fraction(100, 3), 30)}))
PYTHON
