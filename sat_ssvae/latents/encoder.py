"""Clips to latents: the one loop under `encode`, `stats` and `compare`.

    for clips, latents in encode_clips(vae, fixed_clips(data, stride=2), EncoderSettings(batch_size=4), device):
        ...                                              # b c t h w of these clips, on the device

`shards.py` keeps them for training a diffusion model, `latent_set.py` for a comparison; `measure_stats` only looks.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from pydantic import Field
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..config import Config
from ..data.settings import DataConfig
from ..data.shards import Clip, fixed_clips
from ..progress import progress_bar
from ..vae.statistics import LatentStats, StatsMeter


class EncoderSettings(Config):
    """How clips are encoded."""

    batch_size: int = Field(default=1, gt=0)
    """Clips encoded at once."""
    chunk_frames: int | None = Field(default=None, gt=0)
    """Frames encoded at once, for long clips; None for all. Does not change the result. For SSVAE alone."""
    tile_size: int | None = Field(default=None, gt=0)
    """Pixels a side of the tiles that large frames are encoded in; None for whole frames. The result is approximate."""


class StatsConfig(EncoderSettings):
    """On which clips the statistics of latents are measured."""

    data: DataConfig
    """The clips."""
    stride: float = Field(default=2.0, gt=0)
    """Seconds between the starts of two clips of a video."""
    limit: int = Field(default=2048, gt=0)
    """At most this many clips, spread over all videos."""
    batch_size: int = Field(default=4, gt=0)
    """Clips encoded at once."""


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


def measure_stats(vae: VideoAutoencoder, config: StatsConfig, device: torch.device) -> LatentStats:
    """Mean and standard deviation of each latent channel over the clips of `config`.

    Raises:
        UserError: no usable clip, or sizes or settings that do not fit the autoencoder.
    """
    clips = fixed_clips(config.data, stride=config.stride, limit=config.limit)
    meter = StatsMeter(vae.latent_channels)
    with progress_bar(len(clips), "measuring latents", "clip") as bar:
        for batch, latents in encode_clips(vae, clips, config, device):
            meter.add(latents)
            bar.update(len(batch))
    return meter.result()
