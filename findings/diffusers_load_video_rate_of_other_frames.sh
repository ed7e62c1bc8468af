#!/usr/bin/env bash
# diffusers 0.42.1: load_video(return_fps=True) of a screen recording of 6.5 seconds gives frames and a rate that make 38.7 seconds.
#
# Input: videos of 60 frames, at a constant rate, or as screen recorders write them: 60 a second while something moves, then 5 a second. One would
# expect the frames of the file and their mean rate, or frames repeated to a constant rate and that rate; frames / fps is the duration either way. But
# the frames come from ffmpeg, which repeats them to 60 a second, and the rate is the mean of those in the file. In GIF files, which have a duration
# for each frame, it is the first frame's rate:
#
#   file                                   seconds  frames  load_video's  fps    frames / fps
#   MP4, 60 frames a second                1.00     60      60            60.00  1.00
#   MP4, 60 and then 5 frames a second     6.50     60      390           10.08  38.69
#   GIF, 25 frames a second                0.40     10      10            25.00  0.40
#   GIF, the first frame for a second      1.36     10      10            1.00   10.00
#
# Nothing warns; video that is edited and written with that rate is slower by as much. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check diffusers==0.42.1 imageio==2.38.1 imageio-ffmpeg==0.8.1 av==18.1.0 \
    pillow==13.0.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from fractions import Fraction

import av
import numpy as np
from diffusers.utils import load_video
from PIL import Image

CLOCK = 600  # ticks a second


def write_mp4(path, ticks):
    """An MP4 of a frame for each duration in ticks."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        for number in range(len(ticks)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base, frame.duration = sum(ticks[:number]), Fraction(1, CLOCK), ticks[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sum(ticks) / CLOCK


def write_gif(path, milliseconds):
    pictures = [Image.fromarray(np.full((16, 16), 20 * number, np.uint8)) for number in range(len(milliseconds))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds)
    return sum(milliseconds) / 1000


cases = {
    "MP4, 60 frames a second": (write_mp4, "constant.mp4", [10] * 60),
    "MP4, 60 and then 5 frames a second": (write_mp4, "screen.mp4", [10] * 30 + [120] * 30),
    "GIF, 25 frames a second": (write_gif, "constant.gif", [40] * 10),
    "GIF, the first frame for a second": (write_gif, "held.gif", [1000] + [40] * 9),
}
factors = []
print(f"{'file':38} seconds  frames  load_video's  fps    frames / fps")
for name, (write, path, durations) in cases.items():
    seconds = write(path, durations)
    frames, fps = load_video(path, return_fps=True)
    factors.append(len(frames) / fps / seconds)
    print(f"{name:38} {seconds:<7.2f}  {len(durations):<6}  {len(frames):<12}  {fps:<5.2f}  {len(frames) / fps:.2f}")
right = all(0.95 < factor < 1.05 for factor in factors[::2])
sys.exit(int(not (right and factors[1] > 3 and factors[3] > 3)))
PYTHON
