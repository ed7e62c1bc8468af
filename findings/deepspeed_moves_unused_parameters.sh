#!/usr/bin/env bash
# DeepSpeed 0.19.8: a step also moves parameters that got no gradient, by weight decay and by what is left of the momentum.
#
# Input: one process, AdamW with a learning rate of 0.1 and a weight decay of 0.1, six steps. The loss never uses one layer, and another one only in the
# first two steps, as with a branch that is trained now and then. One would expect what PyTorch's optimisers do, and DeepSpeed is given here
# (torch_adam): a parameter whose gradient is None is skipped. But DeepSpeed puts zeros where gradients are missing, at ZeRO 0 in float32 too:
#
#            never used: weights x   used twice: moved in the four steps after by
#   PyTorch  1.000                   0.000
#   ZeRO 0   0.941                   0.228
#   ZeRO 2   0.941                   0.228
#
# To leave a parameter alone it is not enough that nothing uses it. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 setuptools==84.2.1 wheel
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation deepspeed==0.19.8
cd "$work"
DS_ACCELERATOR=cpu LOCAL_RANK=0 "$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PYTHON' || { tail -n 5 "$work/log" >&2; exit 1; }
import sys

import deepspeed
import torch
from torch import distributed, nn
from deepspeed.ops import __compatible_ops__ as compatible_ops

compatible_ops["deepspeed_shm_comm"] = False  # an optional extension, compiled at first use
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.never, self.twice = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, both):
        x = self.trunk(x)
        return (self.twice(x) if both else x).square().mean()


def moved(stage):
    """How the weights of the layer that was never used were scaled, and how far those of the other moved after its last use."""
    torch.manual_seed(0)
    model = Branches()
    never = model.never.weight.detach().clone()
    if stage is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    else:
        settings = {"lr": 0.1, "weight_decay": 0.1, "torch_adam": True}
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": settings},
        }
        engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    for step in range(6):
        if step == 2:
            twice = model.twice.weight.detach().clone()
        if stage is None:
            optimizer.zero_grad()
            model(torch.ones(2, 4), step < 2).backward()
            optimizer.step()
        else:
            engine.backward(engine(torch.ones(2, 4), step < 2))
            engine.step()
    scale = (model.never.weight.detach() / never).mean().item()
    return round(scale, 3), round((model.twice.weight.detach() - twice).abs().max().item(), 3)


cases = {None: "PyTorch", 0: "ZeRO 0", 2: "ZeRO 2"}
found = {}
print("         never used: weights x   used twice: moved in the four steps after by")
for stage, name in cases.items():
    found[stage] = moved(stage)
    print(f"{name:8} {found[stage][0]:<23.3f} {found[stage][1]:.3f}")
still = found[None] == (1.0, 0.0)
sys.exit(int(not (still and all(found[stage][0] == 0.941 and found[stage][1] > 0.1 for stage in (0, 2)))))
PYTHON
