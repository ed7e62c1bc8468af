#!/usr/bin/env bash
# torchmetrics 1.9.0: VMAF of RGB video is about 2 points below libvmaf's, because it is computed from luma that has the full range.
#
# Input: 9 frames of a moving texture and what x264 makes of them, compared as files by libvmaf (in the ffmpeg of imageio-ffmpeg 0.8.1), and as RGB in
# [0, 1] by torchmetrics. One would expect scores that hardly differ, as those of the library that it calls do (vmaf-torch 1.1.0) if it gets the luma
# of the files. But video is stored with luma from 16 to 235, and libvmaf compares that; torchmetrics makes luma from 0 to 255 of the RGB, so that
# contrast, motion and error are 255 / 219 times as large. Its documentation does not say so.
#
#   crf                              26     32     38     44
#   libvmaf                          86.56  63.98  31.68  13.00
#   vmaf-torch, luma of the files    86.56  63.98  31.67  13.00
#   torchmetrics                     86.39  62.32  29.38  11.16
#
# (About.) So these scores are not to be compared with published ones. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 vmaf-torch==1.1.0 \
    imageio-ffmpeg==0.8.1 av==18.1.0 einops==0.8.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import json
import subprocess
import sys

import av
import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics.functional.video.vmaf import video_multi_method_assessment_fusion
from vmaf_torch import VMAF

WIDTH, HEIGHT, FRAMES = 320, 240, 9
CRFS = (26, 32, 38, 44)


def ffmpeg(*arguments, pictures=None):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *arguments], input=pictures, check=True)


def write_reference():
    """A texture with detail at four scales that moves by 6 and 4 pixels a frame, as YUV without subsampled colour."""
    random = torch.Generator().manual_seed(0)
    size = (2 * HEIGHT, 2 * WIDTH)
    layers = ((6, 0.5), (24, 0.25), (96, 0.15), (192, 0.1))
    picture = sum(
        weight * F.interpolate(torch.rand(1, 3, cells, cells, generator=random), size=size, mode="bicubic")[0]
        for cells, weight in layers
    )
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    picture = (255 * picture.permute(1, 2, 0)).round().byte().numpy()
    clip = b"".join(picture[4 * t : 4 * t + HEIGHT, 6 * t : 6 * t + WIDTH].tobytes() for t in range(FRAMES))
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "25", "-i", "-")
    convert = "scale=out_color_matrix=bt601:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    ffmpeg(*raw, "-vf", convert, "-pix_fmt", "yuv444p", "reference.y4m", pictures=clip)


def planes(path):
    """The Y, U and V of a file, as T 3 H W."""
    with av.open(path) as container:
        return torch.tensor(np.stack([frame.to_ndarray() for frame in container.decode(video=0)])).float()


def rgb(yuv):
    """BT.601 of limited range as RGB in [0, 1], as 1 3 T H W."""
    y, u, v = (yuv[:, 0] - 16) / 219, (yuv[:, 1] - 128) / 224, (yuv[:, 2] - 128) / 224
    colours = torch.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u])
    return colours.clamp(0, 1)[None]


def scores(reference, crf):
    ffmpeg("-i", "reference.y4m", "-c:v", "libx264", "-crf", str(crf), "-threads", "1", "-pix_fmt", "yuv444p", "coded.mp4")
    ffmpeg("-i", "coded.mp4", "-pix_fmt", "yuv444p", "coded.y4m")
    ffmpeg("-i", "coded.y4m", "-i", "reference.y4m", "-lavfi", "libvmaf=log_fmt=json:log_path=vmaf.json", "-f", "null", "-")
    with open("vmaf.json") as file:
        libvmaf = json.load(file)["pooled_metrics"]["vmaf"]["mean"]
    coded = planes("coded.y4m")
    with torch.no_grad():
        direct = VMAF().compute_vmaf_score(reference[:, :1], coded[:, :1]).mean().item()
        metric = video_multi_method_assessment_fusion(rgb(coded), rgb(reference)).mean().item()
    return libvmaf, direct, metric


write_reference()
reference = planes("reference.y4m")
table = list(zip(*(scores(reference, crf) for crf in CRFS)))
print(f"{'crf':32}", *(f"{crf:<6}" for crf in CRFS))
for name, values in zip(("libvmaf", "vmaf-torch, luma of the files", "torchmetrics"), table):
    print(f"{name:32}", *(f"{value:<6.2f}" for value in values))
libvmaf, direct, metric = table
same = max(abs(a - b) for a, b in zip(libvmaf, direct)) < 0.1
lower = all(a - b > 1 for a, b in zip(libvmaf[1:], metric[1:]))
sys.exit(int(not (same and lower)))
PYTHON
