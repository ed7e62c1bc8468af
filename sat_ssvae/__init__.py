"""SSVAE, the spectral-structured video autoencoder (arXiv 2512.05394), for CogVideoX's SAT code and on its own.

    vae = SSVAE.from_pretrained("ch48_256p_15w_512p_5w.ckpt").for_inference()
    latents = vae.encode(video).mode()      # video B 3 T H W in [-1, 1], latents b c t h w
    video = vae.decode(latents)

Every mistake that a user can fix is a `UserError`: one line that says what to do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .vae.autoencoder import SSVAE
    from .vae.config import SSVAEConfig

__version__ = "0.1.0"

__all__ = ["SSVAE", "SSVAEConfig", "UserError", "__version__"]

_HOMES = {"SSVAE": ".vae.autoencoder", "SSVAEConfig": ".vae.config"}


def __getattr__(name: str) -> Any:
    """The autoencoder's classes, imported on access: PyTorch takes seconds, and not every command needs it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
