#!/usr/bin/env bash
# ema-pytorch 0.8.3: with update_every=10, as in its README, PostHocEMA averages over most of training, whatever its sigma_rel asks for.
#
# Input: 10000 updates of a model whose only weight is the share of training that is done, so that an average of it says when its weights are from.
# sigma_rel is the relative width of the window (arXiv 2312.02696): .05 averages the last tenth or so, and the mean is (gamma + 1) / (gamma + 2). One
# would expect update_every to save time only: ten steps are a thousandth of training. But the decay of one step is applied once in update_every
# steps (by default 100), so weights stay that much longer, and what is synthesised afterwards inherits it:
#
#   sigma_rel                      .05    .10    .28    synthesised .10
#   as the paper has it            0.947  0.888  0.539  0.888
#   update_every=1                 0.947  0.888  0.539  0.888
#   update_every=10                0.642  0.442  0.105  0.351
#   update_every=100               0.151  0.073  0.012  0.070
#
# At 100 the average is little but the initial weights, and no error shows it. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 ema-pytorch==0.8.3
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from ema_pytorch import PostHocEMA
from ema_pytorch.post_hoc_ema import KarrasEMA

STEPS = 10000
WIDTHS = (0.05, 0.1, 0.28)


def averages(update_every):
    """The average for each width, and one of width .1 synthesised from the first and the last of them."""
    model = torch.nn.ParameterDict({"done": torch.zeros(1, dtype=torch.float64)})
    emas = [KarrasEMA(model, sigma_rel=width, update_every=update_every) for width in WIDTHS]
    settings = {"checkpoint_dtype": torch.float64, "checkpoint_folder": f"every{update_every}"}
    post_hoc = PostHocEMA(model, sigma_rels=(WIDTHS[0], WIDTHS[-1]), update_every=update_every, **settings)
    for step in range(1, STEPS + 1):
        model["done"].data.fill_(step / STEPS)
        for ema in (*emas, post_hoc):
            ema.update()
    return [ema.ema_model["done"].item() for ema in (*emas, post_hoc.synthesize_ema_model(sigma_rel=0.1))]


def row(name, values):
    print(f"{name:30}", *(f"{value:<6.3f}" for value in values))


gammas = [KarrasEMA(torch.nn.Linear(1, 1), sigma_rel=width).gamma for width in (*WIDTHS, 0.1)]
paper = [(gamma + 1) / (gamma + 2) for gamma in gammas]
print(f"{'sigma_rel':30} .05    .10    .28    synthesised .10")
row("as the paper has it", paper)
found = {}
for update_every in (1, 10, 100):
    found[update_every] = averages(update_every)
    row(f"update_every={update_every}", found[update_every])
right = max(abs(a - b) for a, b in zip(found[1], paper)) < 0.001
wrong = all(max(found[10][i], 4 * found[100][i]) < 0.75 * paper[i] for i in range(4))
sys.exit(int(not (right and wrong)))
PYTHON
