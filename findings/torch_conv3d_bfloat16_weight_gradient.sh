#!/usr/bin/env bash
# torch 2.13.0, CPU with AVX-512 BF16: the weight gradient of a padded bfloat16 Conv3d is wrong for clips shorter than its kernel.
#
# Input: N C T H W with a batch of two or more and fewer frames T than the kernel has in time; the convolution pads time itself, as in
# Conv3d(c, c, kernel_size=3, padding=1) on two frames. One would expect the gradients to differ from float32's by bfloat16's rounding (about
# 0.2 %), as the output and the input's gradient do, and as the weight's does if the same zeros are added with F.pad before a
# convolution that pads height and width only. Instead the weight's gradient is off by its own size, or infinite:
#
#   frames 2, padded by the convolution: output 0.002, input gradient 0.002, weight gradient 2.75
#   frames 2, padded before it:          output 0.002, input gradient 0.002, weight gradient 0.002
#   frames 5, padded by the convolution: output 0.002, input gradient 0.002, weight gradient 0.002
#
# (The wrong number differs from run to run.) A discriminator that sees clips, or a causal 3-D convolution that sees an image
# as one frame, trains on that gradient without a warning. Exits 1 if the behaviour has changed, 2 if this processor cannot show it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F

if "avx512_bf16" not in open("/proc/cpuinfo").read():
    print("this processor has no AVX-512 BF16")
    sys.exit(2)


def gradients(dtype, frames, pad_before):
    """Output, and gradients of input and weight, as float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, frames, 16, 16, generator=generator).bfloat16().to(dtype).requires_grad_()
    weight = (torch.randn(16, 16, 3, 3, 3, generator=generator) / 10).bfloat16().to(dtype).requires_grad_()
    if pad_before:
        y = F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 1)), weight, padding=(0, 1, 1))
    else:
        y = F.conv3d(x, weight, padding=1)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).bfloat16().to(dtype))
    return [tensor.detach().float() for tensor in (y, x.grad, weight.grad)]


def errors(frames, pad_before):
    exact = gradients(torch.float32, frames, pad_before)
    rounded = gradients(torch.bfloat16, frames, pad_before)
    return [((a - b).norm() / b.norm()).item() for a, b in zip(rounded, exact)]


changed = False
for frames, pad_before, wrong in ((2, False, True), (2, True, False), (5, False, False)):
    output, of_input, of_weight = errors(frames, pad_before)
    how = "padded before it:         " if pad_before else "padded by the convolution:"
    print(f"frames {frames}, {how} output {output:.3f}, input gradient {of_input:.3f}, weight gradient {of_weight:.3g}")
    changed |= max(output, of_input) > 0.01 or (not of_weight < 0.01) != wrong
sys.exit(changed)
PYTHON
