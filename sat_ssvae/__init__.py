"""SSVAE, the spectral-structured video autoencoder, for CogVideoX's SAT code and on its own."""

from .errors import UserError
from .vae.autoencoder import SSVAE, SSVAEConfig

__all__ = ["SSVAE", "SSVAEConfig", "UserError"]
