"""Clips to latents: the loop that `encode`, `stats` and `compare` share.

    for clips, latents in encode_clips(vae, fixed_clips(data, stride=2), EncoderSettings(batch_size=4), device):
        ...                                              # b c t h w of these clips, on the device

`shards.py` stores them for training a diffusion model, `latent_set.py` for a comparison; `statistics.py` computes their
mean and standard deviation.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from pydantic import Field
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..config import Config
from ..data.shards import Clip


class EncoderSettings(Config):
    """How clips are encoded."""

    batch_size: int = Field(default=1, gt=0)
    """Clips encoded at once."""
    chunk_frames: int | None = Field(default=None, gt=0)
    """Frames encoded at once, for long clips; None for all. Does not change the result. For SSVAE alone."""
    tile_size: int | None = Field(default=None, gt=0)
    """Pixels a side of the tiles that large frames are encoded in; None for whole frames. The result is approximate."""


@torch.no_grad()
def encode_clips(
    vae: VideoAutoencoder, clips: Iterable[Clip], settings: EncoderSettings, device: torch.device
) -> Iterator[tuple[list[Clip], Tensor]]:
    """Batches of clips, in their order, with their posterior means `b c t h w`, float32 on `device`.

    Raises:
        UserError: a clip's size does not fit the autoencoder, or it cannot work in such chunks or tiles.
    """
    vae = vae.to(device).eval()
    remaining = iter(clips)
    while batch := list(islice(remaining, settings.batch_size)):
        video = torch.stack([clip.video for clip in batch]).to(device)
        yield batch, vae.encode(video, settings.chunk_frames, settings.tile_size).mode().float()
