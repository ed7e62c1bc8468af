#!/usr/bin/env bash
# decord 0.6.0: in an MP4 that was trimmed without re-encoding, get_batch([0, 10, 20, 30, 40, 50]) goes back in time at its fourth frame.
#
# Input: 60 grey frames, frame i of level 4 i, H.264 with a key frame every 30, of which ffmpeg -ss 0.48 -c copy cuts off 12. An edit list then says
# that the file shows frames 12 to 59; those before stay in it, as they are needed to decode. One would expect 48 frames, or all 60, and that an index
# is one frame however it is reached. decord counts 60 but starts at frame 12, and where it seeks to a key frame, the index is the whole file's:
#
#   index                           0   10  20  30  40  50  59
#   PyAV, from the start            12  22  32  42  52  -   -
#   decord, every index in turn     12  22  32  42  52  59  59
#   decord, these in one batch      12  22  32  30  40  50  59
#
# So index 30 is another frame if index 29 was read before, and read in turn the last twelve stand still. Nothing warns. It is the same without
# B-frames, and in eva-decord 0.6.1. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check decord==0.6.0 av==18.1.0 imageio-ffmpeg==0.8.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import subprocess
import sys

import av
import imageio_ffmpeg
import numpy as np
from decord import VideoReader

SHOWN = [0, 10, 20, 30, 40, 50, 59]


def write(path, b_frames):
    with av.open("whole.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "30", "bf": str(b_frames)})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    trim = ["-y", "-loglevel", "error", "-ss", "0.48", "-i", "whole.mp4", "-c", "copy", path]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *trim], check=True)


def number(picture):
    return round(float(picture.mean()) / 4)


def row(name, numbers):
    print(f"{name:31}", *(f"{value:<3}" for value in numbers))


right = []
print(f"{'index':31}", *(f"{index:<3}" for index in SHOWN))
for b_frames in (2, 0):
    path = f"trimmed{b_frames}.mp4"
    write(path, b_frames)
    with av.open(path) as container:
        shown = [number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    reader = VideoReader(path)
    in_turn = [number(reader[index].asnumpy()) for index in range(len(reader))]
    batch = [number(picture) for picture in VideoReader(path).get_batch(SHOWN).asnumpy()]
    row("PyAV, from the start", [shown[index] if index < len(shown) else "-" for index in SHOWN])
    row("decord, every index in turn", [in_turn[index] for index in SHOWN])
    row("decord, these in one batch", batch)
    right += [shown == list(range(12, 60)), in_turn == shown + [59] * 12, batch == [12, 22, 32, 30, 40, 50, 59]]
sys.exit(int(not all(right)))
PYTHON
