#!/usr/bin/env bash
# PyAV 18.1.0: neither a frame converted with dst_colorspace nor a stream set to BT.709 gives a BT.709 file; each alone changes the colours.
#
# Input: red, green, blue = 200, 60, 30 from an rgb24 frame to H.264 and back with to_ndarray(format="rgb24"), which does go by the matrix that the file
# names. One would expect the encoder to write down the matrix of the frames that it gets, and a stream's colorspace to apply where PyAV
# converts rgb24 to its pix_fmt. But the tag is the stream's only, and that conversion is always BT.601's:
#
#   frame            stream   file says    read back
#   rgb24            -        nothing      198  59  29
#   to BT.709        -        nothing      187  45  32
#   rgb24            BT.709   BT.709       210  71  26
#   to BT.709        BT.709   BT.709       199  58  29
#
# The frame itself does say BT.709 after the conversion. HD video in BT.709 needs both. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys

import av
import numpy as np

BT709 = 1  # AVCOL_SPC_BT709
picture = np.full((48, 64, 3), (200, 60, 30), np.uint8)


def written(convert, tag):
    """The matrix that the file names, and its colour."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if tag:
            stream.codec_context.colorspace = BT709
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        if convert:
            frame = frame.reformat(format="yuv420p", dst_colorspace="itu709")
            assert frame.colorspace == BT709
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        frame = next(container.decode(video=0))
        colour = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(0)
        return int(frame.colorspace) == BT709, [round(float(value)) for value in colour]


changed = False
print("frame            stream   file says    read back")
for convert, tag, error in ((False, False, 2), (True, False, 15), (False, True, 11), (True, True, 2)):
    says, colour = written(convert, tag)
    texts = "to BT.709" if convert else "rgb24", "BT.709" if tag else "-", "BT.709" if says else "nothing"
    print("{:16} {:8} {:12}".format(*texts), *(f"{value:3}" for value in colour))
    largest = max(abs(value - true) for value, true in zip(colour, (200, 60, 30)))
    changed |= says != tag or abs(largest - error) > 2
sys.exit(int(changed))
PYTHON
