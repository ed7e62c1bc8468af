#!/usr/bin/env bash
# PyAV 18.1.0: VideoFrame.to_ndarray(format="rgb24") is darker than the video, by an amount that depends on the chroma subsampling.
#
# Input: grey frames, whose exact RGB is (Y - 16) * 255 / 219 in all three channels (10 bit: Y / 4). One would expect the nearest integer, in
# yuv420p as in yuv444p, because chroma is neutral and constant. 4:4:4 does give it. 4:2:0 rounds down, half a grey level darker on
# average, and 10-bit 4:2:0 is 1.8 levels too dark: its white is 253.
#
#   yuv444p      mean error  0.00, white 255
#   yuv444p10le  mean error  0.00, white 255
#   yuv420p      mean error -0.49, white 255
#   yuv420p10le  mean error -1.77, white 253
#
# So PSNR between a 10-bit video and anything exact is capped near 43 dB. (swscale has another path for 4:2:0; its flags for accurate
# rounding and full chroma give the nearest integer.) Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np


def grey(pixel_format, y):
    """A frame of one grey; y is 8-bit luma, 16 black and 235 white."""
    ten_bit = pixel_format.endswith("10le")
    frame = av.VideoFrame(64, 64, pixel_format)
    for plane, value in zip(frame.planes, (y, 128, 128)):
        dtype = np.uint16 if ten_bit else np.uint8
        plane.update(np.full(plane.buffer_size // dtype().itemsize, value * (4 if ten_bit else 1), dtype).tobytes())
    return frame


changed = False
expected = {"yuv444p": (0.0, 255), "yuv444p10le": (0.0, 255), "yuv420p": (-0.49, 255), "yuv420p10le": (-1.77, 253)}
for pixel_format, (error, white) in expected.items():
    shown = [grey(pixel_format, y).to_ndarray(format="rgb24").astype(float).mean() for y in range(16, 236)]
    exact = [(y - 16) * 255 / 219 for y in range(16, 236)]
    mean = round(np.mean(np.subtract(shown, exact)), 2) + 0.0  # no -0.00
    print(f"{pixel_format:12} mean error {mean:5.2f}, white {shown[-1]:.0f}")
    changed |= abs(mean - error) > 0.1 or round(shown[-1]) != white
sys.exit(int(changed))
PYTHON
