#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts the backward pass of a depthwise Conv3d with 64 channels as 65 times its forward pass; it is twice.
#
# Input: a Conv3d of 64 channels and 3 x 3 x 3 positions, in 1, 8 and 64 groups. One would expect the backward pass to cost two forward passes, one for the
# gradient of the input and one for that of the weight, as it is counted for one group and for linear layers. But the weight's gradient is counted as if
# each output channel saw all input channels, so it does not become cheaper with groups. The same layer written as one Conv3d per group, with
# the same output and gradients, is counted as expected:
#
#   groups                           1        8        64
#   forward, MFLOP                   56.6     7.1      0.9
#   backward / forward               2.0      9.0      65.0
#   one Conv3d per group             2.0      2.0      2.0
#
# So a video model with depthwise convolutions seems to cost many times what it costs to train, and its GPU to be used better than it is. Exits 1 if
# the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

CHANNELS = 64


def count(layer, x):
    """FLOP of forward and backward, the output and the gradients."""
    x = x.detach().requires_grad_()
    with FlopCounterMode(display=False) as forward:
        y = layer(x, weight)
    with FlopCounterMode(display=False) as backward:
        gradients = torch.autograd.grad(y.square().sum(), (x, weight))
    return forward.get_total_flops(), backward.get_total_flops(), (y, *gradients)


torch.manual_seed(0)
clip = torch.randn(1, CHANNELS, 4, 8, 8, dtype=torch.float64)
costs, ratios, apart = [], [], []
for groups in (1, 8, 64):
    weight = torch.randn(CHANNELS, CHANNELS // groups, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def grouped(x, w):
        return F.conv3d(x, w, padding=1, groups=groups)

    def one_by_one(x, w):
        return torch.cat([F.conv3d(a, b, padding=1) for a, b in zip(x.chunk(groups, 1), w.chunk(groups, 0))], 1)

    forward, backward, values = count(grouped, clip)
    same_forward, same_backward, same_values = count(one_by_one, clip)
    assert forward == same_forward and all(torch.allclose(a, b) for a, b in zip(values, same_values))
    costs.append(forward / 1e6)
    ratios.append(backward / forward)
    apart.append(same_backward / same_forward)
print(f"{'groups':32} 1        8        64")
for name, row in (("forward, MFLOP", costs), ("backward / forward", ratios), ("one Conv3d per group", apart)):
    print(f"{name:32}", *(f"{value:<8.1f}" for value in row))
sys.exit(int(ratios != [2, 9, 65] or apart != [2, 2, 2]))
PYTHON
