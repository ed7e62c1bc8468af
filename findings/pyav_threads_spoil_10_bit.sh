#!/usr/bin/env bash
# PyAV 18.1.0: of pictures of 854 x 480 that PyAV turns into 10-bit formats, one in ten or more gets wrong pixels; with threads=1 none does.
#
# Input: one picture, turned 300 times into another format, or written 300 times to a lossless file. One would expect equal results, whatever the number
# of threads, which is only about speed. But each thread converts some rows, in vectors that reach past the end of a row into the start of the next;
# where that is another thread's row, what is there already is sometimes overwritten. Widths that fill the vectors are right, and so is 8 bit:
#
#   results that differ from the usual one   848 x 480   854 x 480
#   rgb24 to yuv420p10le                     0           55
#   the same with threads=1                  0           0
#   gbrp10le to yuv420p10le                  0           65
#   yuv420p10le to yuv444p10le               0           96
#   rgb24 to yuv420p                         0           0
#   rgb24 written as yuv420p10le, by FFV1    0           109
#
# (About: it varies from run to run, and needs two processors.) A wrong pixel is some hundred of 1023 levels off. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys
from collections import Counter

import av
import numpy as np
from av.video.reformatter import VideoReformatter

HEIGHT, WIDTHS, TIMES = 480, (848, 854), 300


def pixels(frame):
    """Those of all planes, without what pads their rows."""
    kind = np.uint16 if "10" in frame.format.name else np.uint8
    planes = [np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes]
    return b"".join(plane.tobytes() for plane in planes)


def turned(picture, source, target, **options):
    frame = VideoReformatter().reformat(av.VideoFrame.from_ndarray(picture), format=source, threads=1)
    return [pixels(VideoReformatter().reformat(frame, format=target, **options)) for _ in range(TIMES)]


def written(picture):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p10le"
        for _ in range(TIMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return [pixels(frame) for frame in container.decode(video=0)]


def different(results):
    return len(results) - Counter(results).most_common(1)[0][1]


CASES = {
    "rgb24 to yuv420p10le": lambda picture: turned(picture, "rgb24", "yuv420p10le"),
    "the same with threads=1": lambda picture: turned(picture, "rgb24", "yuv420p10le", threads=1),
    "gbrp10le to yuv420p10le": lambda picture: turned(picture, "gbrp10le", "yuv420p10le"),
    "yuv420p10le to yuv444p10le": lambda picture: turned(picture, "yuv420p10le", "yuv444p10le"),
    "rgb24 to yuv420p": lambda picture: turned(picture, "rgb24", "yuv420p"),
    "rgb24 written as yuv420p10le": written,
}
random = np.random.default_rng(0)
pictures = [random.integers(0, 256, (HEIGHT, width, 3), dtype=np.uint8) for width in WIDTHS]
found = {name: [different(case(picture)) for picture in pictures] for name, case in CASES.items()}
print(f"{'results that differ':28}", *(f"{width} x {HEIGHT}" for width in WIDTHS), sep="   ")
for name, counts in found.items():
    print(f"{name:28}", *(f"{count:<9}" for count in counts), sep="   ")
right = {"the same with threads=1", "rgb24 to yuv420p"}
sys.exit(int(any((narrow > 0, wide > 0) != (False, name not in right) for name, (narrow, wide) in found.items())))
PYTHON
