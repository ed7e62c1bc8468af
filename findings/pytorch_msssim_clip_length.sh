#!/usr/bin/env bash
# pytorch-msssim 1.0.0: the SSIM of a clip jumps from 0.52 to 0.79 where it has 11 frames in place of 10.
#
# Input: N C T H W, which ssim() takes as it takes N C H W; a picture of 64 x 64 that moves by 4 pixels a frame, and the same with noise. One would expect
# the mean of the frames' SSIM, or windows in time as well, but the same of the two for all lengths. From 11 frames on, the length of its window,
# it takes time into the window; shorter clips have windows of height and width only, which a warning tells, but not that the scale is another:
#
#   frames                   5     9     10    11    17
#   ssim of the clip         0.53  0.52  0.52  0.79  0.79
#   mean of the frames'      0.53  0.52  0.52  0.52  0.52
#
# The step depends on the motion: there is none for a still picture, and 8 pixels a frame give 0.86. So clips of 9 and of 17 frames, usual lengths of
# video autoencoders, are not to be compared. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pytorch-msssim==1.0.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from pytorch_msssim import ssim

torch.manual_seed(0)
picture = F.interpolate(torch.rand(1, 3, 8, 8), size=(64, 64), mode="bilinear")
clip = torch.stack([picture.roll(4 * t, 3) for t in range(17)], 2)
noisy = clip + 0.1 * torch.randn(clip.shape)
lengths = (5, 9, 10, 11, 17)
whole = [ssim(noisy[:, :, :n], clip[:, :, :n], data_range=1.0).item() for n in lengths]
frames = [ssim(noisy[:, :, t], clip[:, :, t], data_range=1.0).item() for t in range(17)]
means = [sum(frames[:n]) / n for n in lengths]
print(f"{'frames':24}", *(f"{n:<5}" for n in lengths))
for name, values in (("ssim of the clip", whole), ("mean of the frames'", means)):
    print(f"{name:24}", *(f"{value:<5.2f}" for value in values))
same = [abs(a - b) < 0.01 for a, b in zip(whole, means)]
sys.exit(int(same != [True, True, True, False, False] or min(whole[3:]) < max(whole[:3]) + 0.2))
PYTHON
