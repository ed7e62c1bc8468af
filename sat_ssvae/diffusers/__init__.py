"""SSVAE in the pipelines of the diffusers library, which the extra `diffusers` installs.

Importing this makes the class known to diffusers: `diffusers.AutoModel.from_pretrained(FOLDER)` finds it.
"""

import diffusers

from .ssvae import AutoencoderSSVAE

diffusers.AutoencoderSSVAE = AutoencoderSSVAE  # where AutoModel looks classes up

__all__ = ["AutoencoderSSVAE"]
