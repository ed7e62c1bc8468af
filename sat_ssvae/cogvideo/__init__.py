"""SSVAE in CogVideoX's SAT code: the first stage and the data set that its configuration files name.

Nothing here needs SAT's or CogVideoX's packages to be imported.
"""

from typing import TYPE_CHECKING, Any

from .first_stage import FirstStageConfig, SSVAEFirstStage

if TYPE_CHECKING:
    from ..latents.dataset import LatentDataset

__all__ = ["FirstStageConfig", "LatentDataset", "SSVAEFirstStage"]


def __getattr__(name: str) -> Any:
    """LatentDataset brings the libraries that read videos, so it is imported when it is asked for."""
    if name != "LatentDataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..latents.dataset import LatentDataset

    return LatentDataset
