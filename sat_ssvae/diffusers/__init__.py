"""SSVAE in the pipelines of the diffusers library, which the extra `diffusers` installs."""

from .ssvae import AutoencoderSSVAE

__all__ = ["AutoencoderSSVAE"]
