#!/usr/bin/env bash
# imageio 2.38.1: with the PyAV plugin, imread(index=12) of a WebM at 30 frames a second is frame 13, and index=5 of an MPEG-TS is frame 10.
#
# Input: files of 40 grey frames, frame i of level 6 i, with a key frame every 10 and no B-frames (the documentation warns of those). One would expect
# the frame that reading the file from its start has at that place. But the plugin computes places from time stamps: it forgets the time at which the
# stream starts, and rounds down in containers whose clock does not hit the frames, such as the milliseconds of Matroska:
#
#   file                               right     index 5  12  15  25  29
#   MP4, 30 frames a second            40 of 40        5  12  15  25  29
#   WebM, 30 frames a second           29 of 40        5  13  16  25  29
#   MPEG-TS, 25 frames a second        5 of 40        10  20  20  30  30
#   Matroska that starts at 0.28 s     2 of 40         0   5   8  18  22
#
# Nothing warns; only the last nine indices of the MPEG-TS raise an error. With constant_framerate=False the ones shown are right. Exits 1 if the
# behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check imageio==2.38.1 av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import av
import imageio.v3 as iio
import numpy as np

FRAMES = 40


def write(path, codec, rate, first, options):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 6 * number, np.uint8), format="rgb24")
            frame.pts = number + first
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def place(path, index, **options):
    """Where the frame that imread() gives for an index is in the file; -1 if it gives none."""
    levels = np.array([picture.mean() for picture in iio.imiter(path, plugin="pyav", format="gray")])
    try:
        frame = iio.imread(path, plugin="pyav", index=index, format="gray", **options)
    except StopIteration:
        return -1
    return int(np.abs(levels - frame.mean()).argmin())


h264, vp9 = {"g": "10", "bf": "0"}, {"g": "10", "cpu-used": "5"}
cases = {
    "MP4, 30 frames a second": ("30.mp4", "libx264", 30, 0, h264),
    "WebM, 30 frames a second": ("30.webm", "libvpx-vp9", 30, 0, vp9),
    "MPEG-TS, 25 frames a second": ("25.ts", "libx264", 25, 0, h264),
    "Matroska that starts at 0.28 s": ("late.mkv", "libx264", 25, 7, h264),
}
shown = (5, 12, 15, 25, 29)
counts, slow = [], []
print(f"{'file':34} right     index", " ".join(f"{index:>{1 if index < 10 else 3}}" for index in shown))
for name, case in cases.items():
    write(*case)
    found = [place(case[0], index) for index in range(FRAMES)]
    counts.append(sum(index == where for index, where in enumerate(found)))
    slow += [place(case[0], index, constant_framerate=False) == index for index in shown]
    print(f"{name:34} {f'{counts[-1]} of {FRAMES}':9}    ", " ".join(f"{found[index]:>3}" for index in shown))
sys.exit(int(counts[0] != FRAMES or max(counts[1:]) > FRAMES - 5 or not all(slow)))
PYTHON
