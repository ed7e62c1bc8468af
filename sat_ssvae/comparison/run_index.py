"""The finished transformers of a comparison and what each of them works on: `transformers.json` in its folder.

index = RunIndex.read(Path("runs/compare"))
index.find("ssvae").folder          # where the transformer is
"""

import json
from pathlib import Path

from ..config import Config, parse_config
from ..diffusion.process import DiffusionProcess
from ..errors import UserError
from ..storage import write_text
from .settings import ClipsConfig

INDEX_NAME = "transformers.json"


class TrainedTransformer(Config):
    """A finished transformer and the latents that it was trained on. Paths are relative to the comparison's folder."""

    arm: str
    """Name of the arm."""
    seed: int
    """Of the transformer's training."""
    vae_seed: int = 0
    """Of the autoencoder's training."""
    folder: str
    """Where `load_dit` finds it."""
    autoencoder: str
    """What `open_autoencoder` takes."""
    weights: str
    """`weights_digest` of that autoencoder."""
    diffusion: DiffusionProcess
    """The process that it denoises."""
    latent_mean: tuple[float, ...]
    """Of each channel of the training latents."""
    latent_std: tuple[float, ...]
    """Of each channel of the training latents."""


class RunIndex(Config):
    """What a comparison's last run has finished."""

    clips: ClipsConfig
    """What the transformers were trained on."""
    text_length: int
    """Tokens of a caption, for those trained with text."""
    transformers: tuple[TrainedTransformer, ...]
    """In the order in which they were finished."""

    def write(self, folder: Path) -> None:
        """Write it into a comparison's folder."""
        write_text(folder / INDEX_NAME, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "RunIndex":
        """Read what a comparison's folder holds.

        Raises:
            UserError: no such folder, no finished transformer in it, or a damaged index.
        """
        path = folder / INDEX_NAME
        try:
            return parse_config(cls, json.loads(path.read_text(encoding="utf-8")), source=str(path))
        except (FileNotFoundError, NotADirectoryError):
            what = "no finished transformer there" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {what}; give the --output of a `sat-ssvae compare` that trained one") from None
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: not readable ({error}); run the comparison again to rewrite it") from None

    def find(self, arm: str, seed: int | None = None) -> TrainedTransformer:
        """The transformer of an arm, the first one if no seed is given.

        Raises:
            UserError: there is none; the message names the existing ones.
        """
        of_arm = [one for one in self.transformers if one.arm == arm]
        if not of_arm:
            known = ", ".join(dict.fromkeys(one.arm for one in self.transformers))
            raise UserError(f"no arm `{arm}` with a finished transformer; there are: {known}")
        for one in of_arm:
            if seed in (None, one.seed):
                return one
        seeds = ", ".join(str(one.seed) for one in of_arm)
        raise UserError(f"arm {arm}: no finished transformer of seed {seed}; there are: {seeds}")
