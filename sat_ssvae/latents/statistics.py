"""The latents' mean and standard deviation per channel, measured on videos."""

import torch
from pydantic import Field

from ..autoencoders.protocol import VideoAutoencoder
from ..data.shards import DataConfig, fixed_clips
from ..progress import progress_bar
from ..vae.statistics import LatentStats, StatsMeter
from .encoding import EncoderSettings, encode_clips


class StatsConfig(EncoderSettings):
    """On which clips latents are measured."""

    data: DataConfig
    """The clips; `num_frames`, `fps` and `resolution` are those of the diffusion model."""
    stride: float = Field(default=2.0, gt=0)
    """Seconds between the starts of two clips of a video."""
    max_clips: int = Field(default=2048, gt=0)
    """At most this many clips, spread over all videos."""
    batch_size: int = Field(default=4, gt=0)
    """Clips encoded at once."""


def measure_stats(vae: VideoAutoencoder, config: StatsConfig, device: torch.device) -> LatentStats:
    """Statistics of the posterior means of clips.

    Raises:
        UserError: no usable clip, or sizes or settings that do not fit the autoencoder.
    """
    clips = fixed_clips(config.data, stride=config.stride, limit=config.max_clips)
    meter = StatsMeter(vae.latent_channels)
    with progress_bar(len(clips), "measuring latents", "clip") as bar:
        for batch, latents in encode_clips(vae, clips, config, device):
            meter.add(latents)
            bar.update(len(batch))
    return meter.result()
