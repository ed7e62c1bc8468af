#!/usr/bin/env bash
# schedulefree 1.4.1: a layer unfrozen after 1000 steps takes a first step of 25 learning rates, and its average counts those 1000 steps.
#
# Input: two layers in one AdamWScheduleFree with its default betas, the second one frozen at 0 for the first part of training and then fitted to
# targets of mean 1 with a learning rate of 0.01. One would expect its training to begin as with torch's AdamW, which counts the steps of each
# parameter, so that it does not matter whether the optimiser is made anew. But steps are counted for the whole group: the second moment of the layer
# is not corrected for its beginning at zero, so its first step of z, at step k, is sqrt((1 - beta2^k) / (1 - beta2)) learning rates long, and the
# average that is evaluated gives z the weight 1 / k:
#
#                                         first step of z /     mean of the weights that are evaluated, after
#                                         learning rate         100    300    1000 steps of the layer
#   AdamW, made anew                      1.0                   0.56   0.93   1.00
#   AdamW, kept                           1.0                   0.56   0.93   1.00
#   AdamWScheduleFree, made anew          1.0                   0.32   0.76   1.09
#   kept, unfrozen at step 1001           25.2                  0.18   0.69   1.36
#   kept, unfrozen at step 4001           31.3                  0.06   0.27   0.96
#
# (AdamW has one set of weights, which stands for z.) So the layer that is evaluated or saved lags, and may overshoot later. Exits 1 if the behaviour
# has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 schedulefree==1.4.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import schedulefree
import torch

RATE, BETA2, SIZE = 0.01, 0.999, 256
READ = (100, 300, 1000)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0)


def schedule_free(parameters):
    return schedulefree.AdamWScheduleFree(parameters, lr=RATE)


def loss(layer):
    return (layer - 1 - torch.randn(SIZE)).square().sum() / 2


def switch(optimizer, mode):
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def evaluated(optimizer, layer):
    switch(optimizer, "eval")
    return layer.mean().item()


def train(make, frozen, anew):
    """First step of the layer that was frozen, in learning rates, and its mean weight as it is evaluated."""
    torch.manual_seed(0)
    early, late = (torch.nn.Parameter(torch.zeros(SIZE)) for _ in range(2))
    late.requires_grad_(False)
    optimizer, means = make([early, late]), []
    for step in range(frozen + READ[-1]):
        if step == frozen:
            late.requires_grad_(True)
            optimizer = make([early, late]) if anew else optimizer
        switch(optimizer, "train")
        optimizer.zero_grad()
        (loss(early) + loss(late) if late.requires_grad else loss(early)).backward()
        optimizer.step()
        if step == frozen:
            first = optimizer.state[late].get("z", late).abs().mean().item() / RATE
        if step + 1 - frozen in READ:
            means.append(evaluated(optimizer, late))
    return first, means


def row(name, make, frozen, anew):
    first, means = train(make, frozen, anew)
    print(f"{name:37} {first:<21.1f}", "   ".join(f"{mean:.2f}" for mean in means), flush=True)
    return first, means


expected = [row("AdamW, made anew", adamw, 1000, True), row("AdamW, kept", adamw, 1000, False)]
anew = row("AdamWScheduleFree, made anew", schedule_free, 1000, True)
kept = {frozen: row(f"kept, unfrozen at step {frozen + 1}", schedule_free, frozen, False) for frozen in (1000, 4000)}
predicted = {frozen: ((1 - BETA2 ** (frozen + 1)) / (1 - BETA2)) ** 0.5 for frozen in kept}
print("predicted first steps:", *(f"{first:.1f}" for first in predicted.values()))
same = expected[0] == expected[1] and abs(anew[0] - 1) < 0.01
jumps = all(abs(kept[frozen][0] - predicted[frozen]) < 0.5 for frozen in kept)
late = all(means[0] < anew[1][0] - 0.1 for _, means in kept.values())
sys.exit(int(not (same and jumps and late)))
PYTHON
