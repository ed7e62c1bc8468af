#!/usr/bin/env bash
# DeepSpeed 0.19.8: initialize() fails for a model that has a parameter without dimensions, or convolution weights in channels-last format.
#
# Input: one process, ZeRO 0, a Conv2d alone; with a learned scale that is a scalar (`nn.Parameter(torch.ones(()))`); and after
# `.to(memory_format=torch.channels_last)`. All three train in plain PyTorch and under DDP, so one would expect no difference. But DeepSpeed sends
# every parameter, frozen ones too, to the other ranks as `view(torch.uint8)`, also where there are no others, and such tensors have no such view:
#
#   plain          trains
#   scalar         RuntimeError: self.dim() cannot be 0 to view Float as Byte (different element sizes)
#   channels-last  RuntimeError: self.stride(-1) must be 1 to view Float as Byte (different element sizes), but got 3
#
# The messages name no parameter. Exits 1 if the behaviour has changed.
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


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.scale = nn.Parameter(scale)

    def forward(self, x):
        return (self.scale * self.conv(x)).square().mean()


def outcome(model):
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    try:
        engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
        engine.backward(engine(torch.ones(2, 3, 8, 8)))
        engine.step()
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "trains"


found = {
    "plain": outcome(Scaled(torch.ones(1))),
    "scalar": outcome(Scaled(torch.ones(()))),
    "channels-last": outcome(Scaled(torch.ones(1)).to(memory_format=torch.channels_last)),
}
for name, text in found.items():
    print(f"{name:14} {text}")
kinds = [text.partition(":")[0] for text in found.values()]
sys.exit(int(kinds != ["trains", "RuntimeError", "RuntimeError"]))
PYTHON
