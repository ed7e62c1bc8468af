#!/usr/bin/env bash
# torch 2.13.0: the layout of a fake convolution's result, and so a memory estimate made with fake tensors, depends on the processor of
# the machine that makes the estimate.
#
# Input: a channels-last bfloat16 clip N C T H W and a 3x3x3 kernel, both fake tensors. They carry out nothing, so one would expect the same shapes
# and strides everywhere, and channels-last as from cuDNN or from the same convolution in float32. But the fake asks which kernel would run here;
# where oneDNN has no bfloat16 (no AVX-512 BF16; forced below, so that every machine shows it), that is slow_conv3d, and the result is contiguous.
# What copies it back to channels-last afterwards then counts: 0.5 of 22 GiB for a training step that was measured so, on machines alike but
# for the processor.
#
#   bfloat16  float32
#   False     True      (result is channels-last)
#
# Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

kept = []
for dtype in (torch.bfloat16, torch.float32):
    with FakeTensorMode():
        clip = torch.empty(2, 32, 5, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        result = F.conv3d(clip, torch.empty(32, 32, 3, 3, 3, dtype=dtype), padding=1)
        kept.append(result.is_contiguous(memory_format=torch.channels_last_3d))
print("bfloat16  float32\n{!s:9} {!s:9} (result is channels-last)".format(*kept))
sys.exit(int(kept != [False, True]))
PYTHON
