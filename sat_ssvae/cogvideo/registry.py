"""SSVAE among SAT's models.

save_sat(vae, "ssvae_sat")                # what `sat-ssvae convert IN ssvae_sat --to sat` does

register()                                # adds SSVAEFirstStage to SAT's model_registry
from sat.model import AutoModel
first_stage, args = AutoModel.from_pretrained("ssvae_sat")
"""

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UserError
from ..storage import write_json
from ..vae.autoencoder import SSVAE
from .first_stage import SSVAEFirstStage
from .sat_transformer import write_sat_checkpoint

MODEL_CLASS = "SSVAEFirstStage"
"""Name in SAT's registry, and `model_class` in a folder's model_config.json."""

_TRITON_MODULE = "sat.model.position_embedding.triton_rotary_embeddings"
_ITERATION = "1"


class SATFirstStage(SSVAEFirstStage):
    """`SSVAEFirstStage` built the way SAT builds its models, from the arguments in model_config.json."""

    def __init__(self, args: argparse.Namespace, params_dtype: torch.dtype = torch.float32, **params: Any) -> None:
        """Build from `args.first_stage`, updated by `params`; SAT loads the weights afterwards."""
        super().__init__(**{**args.first_stage, **params})
        _start_model_parallel()
        self.to(params_dtype)

    @classmethod
    def get_args(cls, **values: Any) -> argparse.Namespace:
        """SAT's defaults, which AutoModel adds to the folder's own arguments."""
        return argparse.Namespace(**values)

    def disable_untrainable_params(self) -> None:
        """Freeze everything; SAT calls this before training."""
        self.requires_grad_(False)


def register() -> None:
    """Register SSVAEFirstStage with SAT's model_registry. Call this before `AutoModel.from_pretrained`.

    Raises:
        UserError: SAT, or a package that its import needs, is not installed.
    """
    import_sat().model_registry.register(MODEL_CLASS)(SATFirstStage)


def import_sat() -> ModuleType:
    """Import SAT's registry module; works without triton.

    SAT imports a triton kernel for rotary embeddings that only some of its language models use. Without triton, an
    empty module takes that kernel's place before SAT is imported.

    Raises:
        UserError: SAT, or a package that its import needs, is not installed.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed, which SAT imports, insists on it
    if importlib.util.find_spec("triton") is None and _TRITON_MODULE not in sys.modules:
        stand_in = ModuleType(_TRITON_MODULE)
        stand_in.FastRotaryEmbedding = None  # type: ignore[attr-defined]
        sys.modules[_TRITON_MODULE] = stand_in
    try:
        return importlib.import_module("sat.model.registry")
    except ModuleNotFoundError as error:
        raise UserError(
            f"SAT needs {error.name}, which is not installed; run: pip install 'sat-ssvae[cogvideo]'"
        ) from None


def _start_model_parallel() -> None:
    """Start SAT's model-parallel groups, as its own models do; it needs this process's rank to load weights."""
    from sat.arguments import initialize_distributed

    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    launch = argparse.Namespace(
        distributed_backend="nccl" if cuda else "gloo",
        device=local_rank if cuda else "cpu",
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        model_parallel_size=1,
        deepspeed=False,
    )
    initialize_distributed(launch)


def save_sat(vae: SSVAE, folder: str | Path) -> None:
    """Write `vae` and its latent statistics to a folder that SAT's AutoModel reads.

    Raises:
        UserError: the autoencoder has no latent statistics.
    """
    if vae.latent_stats is None:
        raise UserError("SAT's format needs latent statistics, the autoencoder has none; measure them: sat-ssvae stats")
    folder = Path(folder)
    first_stage = {
        "random_init": True,  # SAT loads the weights after the model is built
        "model": vae.config.model_dump(mode="json"),
        "latent_mean": vae.latent_stats.mean.tolist(),
        "latent_std": vae.latent_stats.std.tolist(),
    }
    module = {f"vae.{name}": value.detach().cpu().contiguous() for name, value in vae.state_dict().items()}
    config = {"model_class": MODEL_CLASS, "model_parallel_size": 1, "first_stage": first_stage}
    write_json(folder / "model_config.json", config)
    write_sat_checkpoint(module, folder, _ITERATION)
