#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderKLKVAEVideo decodes some lengths to three frames fewer than were encoded.
#
# Input: a video of 4k + 1 frames, the lengths that its compression of 4 in time is made for. One would expect as many frames back, which 5, 9,
# 13, 17, 25, 29 and 33 frames do give. 21, 37, 53, ... come back as 18, 34, 50: encoder and decoder work in segments of 16 frames after the
# first 17, and a last segment of one latent frame is decoded as if it were the first of a video.
#
#   17 frames -> 5 latent frames -> 17 frames
#   21 frames -> 6 latent frames -> 18 frames
#   25 frames -> 7 latent frames -> 25 frames
#
# Nothing warns; a comparison with the original, frame by frame, is off by three frames from there on. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6 diffusers==0.42.1
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderKLKVAEVideo

vae = AutoencoderKLKVAEVideo(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4).eval()
found = {}
with torch.no_grad():
    for frames in (17, 21, 25, 33, 37):
        latents = vae.encode(torch.rand(1, 3, frames, 32, 32) * 2 - 1).latent_dist.mode()
        found[frames] = vae.decode(latents).sample.shape[2]
        print(f"{frames} frames -> {latents.shape[2]} latent frames -> {found[frames]} frames")
sys.exit(int(found != {17: 17, 21: 18, 25: 25, 33: 33, 37: 34}))
PYTHON
