#!/usr/bin/env bash
# SwissArmyTransformer 0.4.12: --lr-decay-style exponential does not decay, and linear and cosine stop short of their end by the share of the warm-up.
#
# Input: SAT's scheduler (the one that CogVideoX trains with) over 100 iterations, the first 20 of them warm-up (--warmup 0.2), learning rate 1,
# --lr-decay-ratio 0.1. One would expect linear to end at 0 ("from start to zero" says its docstring), cosine at 0.1, and exponential to fall. But the
# decay counts iterations after the warm-up and divides by all of them, and exponential returns the learning rate as it is:
#
#   iteration      10     20     40     60     80    100
#   linear      0.500  1.000  0.800  0.600  0.400  0.200
#   cosine      0.500  1.000  0.914  0.689  0.411  0.186
#   exponential 0.500  1.000  1.000  1.000  1.000  1.000
#
# Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0 numpy==2.2.6 setuptools==80.9.0 wheel
pip --no-build-isolation SwissArmyTransformer==0.4.12 deepspeed==0.19.8 scipy requests wandb # the last three it imports without asking for them
cd "$work"
DS_ACCELERATOR=cpu LOCAL_RANK=0 "$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PYTHON' || { tail -n 5 "$work/log" >&2; exit 1; }
import sys
import types

import torch

without_triton = types.ModuleType("sat.model.position_embedding.triton_rotary_embeddings")  # a GPU's, not used here
without_triton.FastRotaryEmbedding = None
sys.modules[without_triton.__name__] = without_triton
from sat.training.learning_rates import AnnealingLR

shown = (10, 20, 40, 60, 80, 100)
ends = {}
print("iteration  ", "".join(f"{iteration:7}" for iteration in shown))
for style in ("linear", "cosine", "exponential"):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = {"start_lr": 1.0, "warmup_iter": 20, "num_iters": 100, "decay_style": style, "decay_ratio": 0.1}
    scheduler = AnnealingLR(optimizer, **settings, auto_warmup_steps=0)
    rates = []
    for iteration in range(1, 101):
        scheduler.step(iteration)
        rates.append(optimizer.param_groups[0]["lr"])
    print(f"{style:11}", "".join(f"{rates[iteration - 1]:7.3f}" for iteration in shown))
    ends[style] = round(rates[-1], 3)
sys.exit(int(ends != {"linear": 0.2, "cosine": 0.186, "exponential": 1.0}))
PYTHON
