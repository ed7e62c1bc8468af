#!/usr/bin/env bash
# What only a GPU can show, in at most 8 minutes:  bash scripts/gpu_check.sh [--published CHECKOUT] [--output FOLDER]
#
# Writes FOLDER/gpu_check.json and FOLDER/gpu_check.md (default: gpu_check) and exits with 1 if a part failed.
# `--tiny` runs the same parts at tiny sizes, on a CPU if there is no GPU.
#
# The machine needs PyTorch, pytest and hypothesis, and no network. Beside what constraints.txt brings along with them:
#   av deepspeed diffusers omegaconf antlr4-python3-runtime pydantic pydantic-core annotated-types typing-inspection
#   webdataset braceexpand tensorboardX hjson imageio einops safetensors scipy filelock tqdm pytorch-msssim
#   universal_pathlib pathlib_abc importlib-metadata beartype (the last for --published alone)
# as wheels (`pip wheel --no-deps -c constraints.txt -w WHEELS NAMES` where there is a network; deepspeed and antlr4
# come as source), installed with `python3 -m pip install --no-index --no-deps --target SITE WHEELS/*.whl` and found by
# PYTHONPATH=SITE. The weights of the perceptual network come from the network or the cache of sat-ssvae; without them
# the perceptual term is off, and the rows say so.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" "$root/scripts/gpu_check.py" "$@"
