#!/usr/bin/env bash
# diffusers 0.42.1: DiagonalGaussianDistribution.kl() of a video's latents is not one number per video, but one per video and column.
#
# Input: the posterior of 2 videos, N C T H W = 2 x 16 x 3 x 8 x 12, of the class that encode() of every video autoencoder there returns. One would
# expect the sum over all elements of a sample, of shape (2,), as for images; `kl().mean()`, or `kl().sum() / N`, is the term of the loss. But the
# dimensions are written down as 1, 2, 3, which leaves the width of a video:
#
#   image   kl() of shape (2,), mean: a sample's divergence / 1
#   video   kl() of shape (2, 12), mean: a sample's divergence / 12
#   turned  kl() of shape (2, 8), mean: a sample's divergence / 8
#
# So `kl().mean()` depends on the shape of a crop (a wide one weighs less than the same turned by 90 degrees), and a weight taken from an image
# autoencoder is that much too small. nll() does the same. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

torch.manual_seed(0)
found = {}
for name, shape in (("image", (2, 16, 8, 12)), ("video", (2, 16, 3, 8, 12)), ("turned", (2, 16, 3, 12, 8))):
    mean, logvar = torch.randn(shape), torch.randn(shape)
    exact = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
    divergence = DiagonalGaussianDistribution(torch.cat([mean, logvar], 1)).kl()
    found[name] = tuple(divergence.shape), round((exact.mean() / divergence.mean()).item(), 3)
    print(f"{name:7} kl() of shape {found[name][0]}, mean: a sample's divergence / {found[name][1]:g}")
sys.exit(int(found != {"image": ((2,), 1), "video": ((2, 12), 12), "turned": ((2, 8), 8)}))
PYTHON
