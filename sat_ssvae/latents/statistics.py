"""The latents' mean and standard deviation per channel, measured on videos."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from ..autoencoders.protocol import VideoAutoencoder
from ..config import fingerprint
from ..data.shards import DataConfig, FixedClips, fixed_clips
from ..data.skips import Skip, SkipLog
from ..distributed import default_device
from ..jobs.job import Advance, Item, Job
from ..jobs.ledger import Ledger, claimed, collect, merge
from ..jobs.settings import JobConfig
from ..vae.checkpoint import weights_digest
from ..vae.statistics import LatentStats, StatsMeter
from .encoding import EncoderSettings, encode_clips

CLIPS_IN_PIECE = 64
"""Clips that are summed together: a constant, since the last bits of the sums depend on it."""


class StatsConfig(EncoderSettings, JobConfig):
    """On which clips latents are measured."""

    data: DataConfig
    """The clips; `num_frames`, `fps` and `resolution` are those of the diffusion model."""
    stride: float = Field(default=2.0, gt=0)
    """Seconds between the starts of two clips of a video."""
    max_clips: int = Field(default=2048, gt=0)
    """At most this many clips, spread over all videos."""
    batch_size: int = Field(default=4, gt=0)
    """Clips encoded at once."""


def measure_stats(
    vae: VideoAutoencoder, config: StatsConfig, device: torch.device, folder: Path, *, merged: bool = False
) -> LatentStats | None:
    """Statistics of the posterior means of clips: the same bits however the clips are divided.

    `folder` keeps the sums of finished blocks, with which a killed run continues; of a `part` they stay there, and
    None is returned. `merged`: add up the sums of all parts instead of measuring. `device`: where the autoencoder
    runs; on a cluster, the workers decide.

    Raises:
        UserError: no usable clip, sizes or settings that do not fit the autoencoder, or missing parts.
    """
    skips = SkipLog(max_share=config.data.max_skip_share)
    clips = fixed_clips(config.data, stride=config.stride, limit=config.max_clips, skips=skips)
    edges = range(0, len(clips), CLIPS_IN_PIECE)
    items = [Item(f"clips {start}", len(clips[start : start + CLIPS_IN_PIECE]), start) for start in edges]
    identity = fingerprint(config.identity(), len(clips), weights_digest(vae.state_dict()))
    ledger = Ledger(folder / ".stats", identity)
    meter = StatsMeter(vae.latent_channels)
    with claimed(folder, "stats", config.chosen_part) as claim:
        job = Job(partial(_meter, vae, config, device, clips.noting(SkipLog())), uses_gpu=True)
        title = "measuring latents"
        results = merge(items, ledger) if merged else collect(job, items, config, ledger, claim, title, "clip")
        if results is None:
            return None
        for sums, skipped in results:
            meter.add_sums(*sums)
            for skip in skipped:
                skips.failed(Skip(*skip))
        skips.succeeded(len(clips) - skips.failures.total())
        skips.check()
        stats = meter.result()
        ledger.remove()
    return stats


@contextlib.contextmanager
def _meter(
    vae: VideoAutoencoder, config: StatsConfig, device: torch.device, clips: FixedClips, cpus: int | None
) -> Iterator[Callable[[int, Advance], Any]]:
    """Sums up the latents of a block of clips, see `Job.open`."""
    device = device if cpus is None else default_device()

    def measure(start: int, advance: Advance) -> Any:
        block, failed = clips.part(start, start + CLIPS_IN_PIECE, cpus)
        meter = StatsMeter(vae.latent_channels)
        for batch, latents in encode_clips(vae, block, config, device):
            meter.add(latents)
            advance(len(batch))
        return meter.sums(), list(map(astuple, failed))

    yield measure
