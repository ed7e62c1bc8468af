#!/usr/bin/env bash
# diffusers 0.42.1: AutoencoderKLCogVideoX decodes to the wrong size if enable_tiling() is given a tile size, also if that is a multiple of 8.
#
# Input: latents of 36 x 36, so a picture of 288 x 288, and square tiles of enable_tiling(tile_sample_min_height, tile_sample_min_width). One would expect
# 288 x 288 from any tile size that the compression of 8 divides, and an error from others. But the distance between tiles (tile x 5/6 and x 4/5) is
# rounded down in latents, and the part that is kept of each decoded tile in pixels, so they fit together only where both come out whole:
#
#   tile      decoded      288 x 288 encoded
#   64 x 64   318 x 308    37 x 39
#   96 x 96   288 x 303    36 x 37
#   128 x 128 294 x 302    37 x 36
#   240 x 240 288 x 288    36 x 36
#
# At each seam some rows or columns are shown twice. (The default of 240 x 360 fits.) Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from diffusers import AutoencoderKLCogVideoX

torch.manual_seed(0)
sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
model = AutoencoderKLCogVideoX(**sizes).eval()
picture, latents = torch.rand(1, 3, 1, 288, 288) * 2 - 1, torch.randn(1, 4, 1, 36, 36)
found = {}
print("tile      decoded      288 x 288 encoded")
for tile in (64, 96, 128, 240):
    model.enable_tiling(tile, tile)
    with torch.no_grad():
        decoded = model.decode(latents).sample.shape[3:]
        encoded = model.encode(picture).latent_dist.mode().shape[3:]
    found[tile] = *decoded, *encoded
    print("{0} x {0:<4} {1} x {2}    {3} x {4}".format(tile, *found[tile]))
expected = {64: (318, 308, 37, 39), 96: (288, 303, 36, 37), 128: (294, 302, 37, 36), 240: (288, 288, 36, 36)}
sys.exit(int(found != expected))
PYTHON
