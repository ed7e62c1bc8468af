#!/usr/bin/env bash
# PyAV 18.1.0: RGB pictures written as H.264 and read back with libswscale's accurate flags lose half a pixel of colour, each time.
#
# Input: a red and blue wave across 128 columns, encoded by libx264 (yuv420p) from an rgb24 frame, decoded, converted to rgb24 with the same
# interpolation flags. One would expect the wave where it was: both conversions are libswscale's, and flags for accuracy should not be
# worse than none. But the conversion to yuv420p puts colour samples between two columns, and the decoder marks H.264's as lying on the
# left one, which only the path of these flags takes into account.
#
#   flags                                   after 1 encoding   after 4
#   none                                     0.0 pixels          0.0
#   bicubic, accurate, full chroma          -0.5 pixels         -1.9
#
# The writer here halves colour itself, with samples on the left. Exits 1 if the behaviour has changed.
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
from av.video.reformatter import VideoReformatter

ACCURATE = 0x4 | 0x40000 | 0x2000  # SWS_BICUBIC, SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT
wave = 60 * np.sin(2 * np.pi * np.arange(128) / 32)
picture = np.full((64, 128, 3), 120.0)
picture[..., 0] += wave
picture[..., 2] -= wave


def again(rgb, flags):
    """Written as H.264, and read."""
    file, scaler = io.BytesIO(), VideoReformatter()
    options = {} if flags is None else {"interpolation": flags}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
        container.mux(stream.encode(scaler.reformat(frame, format="yuv420p", **options)))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        frame = next(container.decode(video=0))
        return scaler.reformat(frame, format="rgb24", **options).to_ndarray()


def shift(rgb):
    """Pixels to the right, by the phase of the wave."""
    shown = rgb.astype(float).mean(0) @ [1, 0, -1]
    return -np.angle(np.fft.fft(shown)[4] / np.fft.fft(wave)[4]) * 32 / (2 * np.pi)


changed = False
for name, flags, expected in (("none", None, (0.0, 0.0)), ("accurate", ACCURATE, (-0.5, -1.95))):
    shown, shifts = picture.astype(np.uint8), []
    for _ in range(4):
        shown = again(shown, flags)
        shifts.append(shift(shown))
    print(f"{name:9} after 1 encoding {shifts[0]:5.2f} pixels, after 4 {shifts[3]:5.2f}")
    changed |= abs(shifts[0] - expected[0]) > 0.1 or abs(shifts[3] - expected[1]) > 0.2
sys.exit(int(changed))
PYTHON
