#!/usr/bin/env bash
# torch 2.13.0, CPU: Conv3d takes longer for one clip than for two of them, and longer for a clip of 142 rows than for one of 143.
#
# Input: float32 clips N C T H W of 16 channels, a 3x3x3 kernel, one thread. One would expect a batch of one to take half the time of a batch of
# two, and time to grow with height. But for a batch of one, oneDNN's convolution is used only if C * T * H is above some 20480 (the width does
# not count); below, PyTorch takes its own slow_conv3d:
#
#   clips  rows  kernel               ms
#   2      142   mkldnn_convolution   38
#   1      142   slow_conv3d         134
#   1      143   mkldnn_convolution   16
#
# (Times of one run on a 2 GHz core with AVX2; only the kernels are checked.) So small models pay several times for taking a batch
# sample by sample. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
weight = torch.randn(16, 16, 3, 3, 3)
changed = False
print("clips  rows  kernel               ms")
for clips, rows, expected in ((2, 142, "mkldnn_convolution"), (1, 142, "slow_conv3d"), (1, 143, "mkldnn_convolution")):
    video = torch.randn(clips, 16, 9, rows, 32)
    with torch.profiler.profile() as profile:
        F.conv3d(video, weight, padding=1)
    known = {event.key.removeprefix("aten::") for event in profile.key_averages()}
    kernel = next(name for name in ("mkldnn_convolution", "slow_conv3d") if name in known)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        F.conv3d(video, weight, padding=1)
        seconds.append(time.perf_counter() - start)
    print(f"{clips:<6} {rows:<5} {kernel:<19} {1000 * min(seconds):4.0f}")
    changed |= kernel != expected
sys.exit(int(changed))
PYTHON
