#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderKLHunyuanVideo encodes a clip of more than 16 frames in overlapping pieces also when tiling is off, and the latents are
# not those of one pass.
#
# Input: an autoencoder with random weights, whose use_tiling is False, and clips of 13 and 33 frames of 16x16. One would expect encode() to run the
# encoder once, as it does for the causal autoencoders of Wan and CogVideoX, whose pieces in time give the same result anyway. But
# use_framewise_encoding, True from the start and touched neither by enable_tiling() nor by disable_tiling(), cuts time into pieces of 16 frames, whose
# latents are blended; this encoder's group norms and attention see all frames of a piece, so every latent frame changes, the first one too:
#
#   frames  largest difference to one pass, in standard deviations of the latents
#   13      0.0
#   33      1.3   (0.0 with use_framewise_encoding = False)
#
# Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6 diffusers==0.42.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderKLHunyuanVideo

torch.manual_seed(0)
sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
model = AutoencoderKLHunyuanVideo(**sizes).eval()
model.disable_tiling()


@torch.no_grad()
def difference(frames):
    clip = torch.rand(1, 3, frames, 16, 16, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    once = model.quant_conv(model.encoder(clip)).chunk(2, dim=1)[0]
    return ((model.encode(clip).latent_dist.mode() - once).abs().max() / once.std()).item()


short, long = difference(13), difference(33)
model.use_framewise_encoding = False
print("frames  largest difference to one pass, in standard deviations of the latents")
print(f"13      {short:.1f}\n33      {long:.1f}   ({difference(33):.1f} with use_framewise_encoding = False)")
sys.exit(int(not (short < 1e-3 and long > 0.1 and difference(33) < 1e-3)))
PYTHON
