"""The latents' mean and standard deviation per channel, measured on videos."""

from itertools import chain, islice

import torch
from pydantic import Field

from ..config import Config
from ..data.shards import DataConfig, fixed_clips
from ..progress import progress_bar
from ..vae.autoencoder import SSVAE
from ..vae.statistics import LatentStats, StatsMeter


class StatsConfig(Config):
    """On which clips latents are measured."""

    data: DataConfig
    """The clips; `num_frames`, `fps` and `resolution` are those of the diffusion model."""
    stride: float = Field(default=2.0, gt=0)
    """Seconds between the starts of two clips of a video."""
    max_clips: int = Field(default=2048, gt=0)
    """At most this many clips, spread over all videos."""
    batch_size: int = Field(default=4, gt=0)
    """Clips encoded together."""


@torch.no_grad()
def measure_stats(vae: SSVAE, config: StatsConfig, device: torch.device) -> LatentStats:
    """Statistics of the posterior means of clips.

    Raises:
        UserError: no usable clip.
    """
    vae = vae.to(device).for_inference()
    meter = StatsMeter(vae.config.latent_channels)
    clips = iter(
        progress_bar(fixed_clips(config.data, stride=config.stride, limit=config.max_clips), "latents", "clip")
    )
    for first in clips:
        batch = [clip.video for clip in chain([first], islice(clips, config.batch_size - 1))]
        meter.add(vae.encode(torch.stack(batch).to(device)).mean)
    return meter.result()
