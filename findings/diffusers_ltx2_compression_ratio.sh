#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderKLLTX2Video tells twice its compression where its configuration does not name it.
#
# Input: the class with its default arguments (small widths here), so with the default spatial_compression_ratio=None. One would expect the
# attributes spatial_compression_ratio and temporal_compression_ratio, which pipelines size their latents by, to be what the encoder does. They
# count every block that downsamples as one that halves height, width and time, but the default blocks are "spatial", "temporal" and two
# "spatiotemporal":
#
#   tells 64 x 64 pixels and 16 frames a latent, encodes 9 x 128 x 128 to 2 x 4 x 4: 32 x 32 pixels and 8 frames
#
# AutoencoderKLLTXVideo with the blocks of LTX-Video 0.9.5 does the same. Configurations from before these arguments existed do not name them.
# Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6 diffusers==0.42.1
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderKLLTX2Video

vae = AutoencoderKLLTX2Video(
    latent_channels=8,
    block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(16, 32, 64),
    layers_per_block=(1,) * 5,
    decoder_layers_per_block=(1,) * 4,
).eval()
with torch.no_grad():
    t, h, w = vae.encode(torch.rand(1, 3, 9, 128, 128) * 2 - 1).latent_dist.mode().shape[2:]
told = vae.spatial_compression_ratio, vae.temporal_compression_ratio
print(f"tells {told[0]} x {told[0]} pixels and {told[1]} frames a latent, encodes 9 x 128 x 128 to {t} x {h} x {w}")
sys.exit(int(told != (64, 16) or (t, h, w) != (2, 4, 4)))
PYTHON
