#!/usr/bin/env bash
# DeepSpeed 0.19.8: a step changes the weights, but not their version counters, except in float32 at ZeRO 0.
#
# Input: one process, a linear layer, two steps of AdamW. PyTorch counts in-place changes of a tensor in `_version`; autograd's check that a saved
# tensor was not modified relies on it, and so do caches of what is derived from a weight (packed or quantised copies). One would expect every optimiser
# step to count. DeepSpeed writes the new weights through `.data`, which does not:
#
#   ZeRO 0 float32   changed, version moved
#   ZeRO 0 bfloat16  changed, version the same
#   ZeRO 2 float32   changed, version the same
#
# A cache that was tested at ZeRO 0 in float32 then serves old weights everywhere else. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6 setuptools==80.9.0 wheel
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


def moved(stage, dtype):
    model = nn.Linear(4, 4)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": dtype is torch.bfloat16},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    weight = model.weight
    before, version = weight.detach().clone(), weight._version
    for _ in range(2):
        engine.backward(engine(torch.ones(2, 4, dtype=dtype)).float().square().mean())
        engine.step()
    return not torch.equal(weight, before), weight._version != version


cases = {(0, torch.float32): True, (0, torch.bfloat16): False, (2, torch.float32): False}
found = {case: moved(*case) for case in cases}
for (stage, dtype), (changed, counted) in found.items():
    text = f"{'changed' if changed else 'unchanged'}, version {'moved' if counted else 'the same'}"
    print(f"ZeRO {stage} {str(dtype).removeprefix('torch.'):9} {text}")
sys.exit(int(found != {case: (True, counted) for case, counted in cases.items()}))
PYTHON
