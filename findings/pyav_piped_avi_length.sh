#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8): an AVI file that was written to a pipe says that it has 1,073,741,824 frames and lasts half a minute.
#
# Input: 12 pictures of MPEG-4, 24 a second, muxed as AVI into an output that cannot seek (a pipe, an HTTP response). The number of frames is written at
# the start of such a file and put right at the end, which needs seeking. One would expect the reader to say 0, PyAV's word for unknown, as it does for
# Matroska and FLV from a pipe. But the muxer leaves 2**30 there, the reader passes it on, and derives a duration that is as wrong:
#
#            frames      duration  decoded
#   AVI      1073741824  27.3 s    12
#   Matroska 0           unknown   12
#
# A sanity check of "not 0" takes that for a fact. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys

import av
import numpy as np


class Pipe(io.RawIOBase):
    """A file object that takes bytes in order only."""

    def __init__(self):
        self.taken = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.taken += data
        return len(data)


def piped(container):
    pipe = Pipe()
    with av.open(pipe, "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return io.BytesIO(pipe.taken)


found = {}
print("         frames      duration  decoded")
for name, container in (("AVI", "avi"), ("Matroska", "matroska")):
    with av.open(piped(container)) as source:
        stream = source.streams.video[0]
        seconds = source.duration and source.duration / av.time_base
        found[name] = stream.frames, seconds, sum(1 for _ in source.decode(stream))
    told = f"{seconds:.1f} s" if seconds else "unknown"
    print(f"{name:8} {found[name][0]:<11} {told:9} {found[name][2]}")
frames, seconds, decoded = found["AVI"]
changed = frames != 2**30 or seconds is None or seconds < 2 or decoded != 12 or found["Matroska"] != (0, None, 12)
sys.exit(int(changed))
PYTHON
