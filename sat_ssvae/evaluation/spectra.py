"""What an autoencoder's latents look like to a diffusion model, and how its decoder copes with disturbed ones.

    clips = load_clips(config)
    measured = [measure_latents(name, vae, clips, config, device) for name, vae in autoencoders.items()]
    spatial, temporal = measure_pixels(clips, config)       # the same for the videos, to compare

Latents are the encoder's posterior means; the Gaussian floor is that of latents standardised per channel.
Everything is measured on the same clips, so that autoencoders differ in their latents and in nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..config import Config
from ..data.shards import DataConfig, fixed_clips
from ..errors import UserError
from ..metrics.fidelity import psnr
from ..progress import progress_bar
from ..spacing import evenly_spaced
from ..spectral.correlation import local_correlation
from ..spectral.spectrum import (
    FrequencySpectrum,
    channel_eigenvalues,
    cumulative_explained_variance,
    dct_amplitude,
    latent_eigenvalues,
    low_frequency_share,
    mean_gaussian_floor,
    modes_for,
    spatial_spectrum,
    temporal_spectrum,
)
from ..vae.statistics import LatentStats


class SpectraConfig(Config):
    """On which clips latents are measured, and how they are disturbed."""

    data: DataConfig
    """The clips; `num_frames` and `resolution` must fit all autoencoders."""
    stride: float = Field(default=1.0, gt=0)
    """Seconds between the starts of two clips of a video."""
    max_clips: int = Field(default=64, ge=2)
    """At most this many clips, spread over all videos."""
    disturbed_clips: int = Field(default=16, gt=0)
    """Clips that are decoded from disturbed latents."""
    noise_levels: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8)
    """Noise added to latents, in standard deviations of each channel."""
    dropped_shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5)
    """Share of the channels that are set to their mean."""
    batch_size: int = Field(default=4, gt=0)
    """Clips that are encoded or decoded together."""
    tile_size: int | None = Field(default=None, gt=0)
    """Pixels a side of the tiles that large frames are encoded and decoded in; None for whole frames. The result is
    approximate."""
    seed: int = Field(default=0, ge=0)
    """Seed of the disturbances."""


@dataclass(frozen=True)
class AmplitudeCurve:
    """Amplitude by frequency, relative to white noise of the same variance; see `spectral.spectrum`."""

    frequency: tuple[float, ...]
    """Ascending, in cycles per pixel or per frame."""
    amplitude: tuple[float, ...]
    """Root mean square over all clips."""
    decay_by_clip: tuple[float, ...]
    """Exponent a of amplitude ~ 1 / frequency^a of each clip; empty for fewer than two frequencies."""

    @classmethod
    def of(cls, spectrum: FrequencySpectrum) -> "AmplitudeCurve":
        """From tensors."""
        decay = spectrum.decay
        by_clip = () if decay is None else tuple(decay.tolist())
        return cls(tuple(spectrum.frequency.tolist()), tuple(spectrum.mean.tolist()), by_clip)

    @property
    def decay(self) -> float | None:
        """Mean exponent over the clips; None if there is none."""
        return sum(self.decay_by_clip) / len(self.decay_by_clip) if self.decay_by_clip else None


@dataclass(frozen=True)
class LatentSpectra:
    """Measurements of one autoencoder.

    `explained_variance` by number of channel modes; PSNR in dB by strength of the disturbance.
    """

    name: str
    latent_shape: tuple[int, int, int, int]
    spatial: AmplitudeCurve
    """By cycles per pixel."""
    temporal: AmplitudeCurve
    """By cycles per frame."""
    dct_amplitude: tuple[float, ...]
    """As in the paper: of blocks of latent positions, relative to the DC's, in zigzag order."""
    low_frequency_share: float
    explained_variance: tuple[float, ...]
    modes_for_90_percent: int
    local_correlation: float | None
    gaussian_floor: float
    psnr_by_noise: dict[float, float]
    psnr_by_dropped: dict[float, float]


def load_clips(config: SpectraConfig) -> Tensor:
    """The clips, N C T H W in [-1, 1].

    Raises:
        UserError: fewer than two usable clips.
    """
    clips = [clip.video for clip in fixed_clips(config.data, stride=config.stride, limit=config.max_clips)]
    if len(clips) < 2:
        raise UserError(
            f"{config.data.shown_path}: {len(clips)} clip; spectra need at least 2, give more or longer videos"
        )
    return torch.stack(clips)


@torch.no_grad()
def measure_latents(
    name: str, vae: VideoAutoencoder, clips: Tensor, config: SpectraConfig, device: torch.device
) -> LatentSpectra:
    """Encode the clips `N C T H W` and measure their latents; decode some of them disturbed.

    Raises:
        UserError: the clips' size does not fit the autoencoder.
    """
    vae = vae.to(device).eval()
    parts = progress_bar(clips.split(config.batch_size), f"encoding with {name}", "batch")
    means = [vae.encode(part.to(device), tile_size=config.tile_size).mode().float().cpu() for part in parts]
    latents = torch.cat(means)
    stats = LatentStats.measure(latents)
    eigenvalues = channel_eigenvalues(latents)
    correlation = local_correlation(latents).mean
    c, t, h, w = latents.shape[1:]
    noise, dropped = _disturbed_psnr(name, vae, clips, latents, stats, config, device)
    return LatentSpectra(
        name=name,
        latent_shape=(c, t, h, w),
        spatial=AmplitudeCurve.of(spatial_spectrum(latents, (clips.shape[-2], clips.shape[-1]))),
        temporal=AmplitudeCurve.of(temporal_spectrum(latents, clips.shape[2])),
        dct_amplitude=tuple(dct_amplitude(latents).tolist()),
        low_frequency_share=low_frequency_share(latents),
        explained_variance=tuple(cumulative_explained_variance(eigenvalues).tolist()),
        modes_for_90_percent=modes_for(eigenvalues),
        local_correlation=None if correlation is None else float(correlation),
        gaussian_floor=mean_gaussian_floor(latent_eigenvalues(stats.standardize(latents))),
        psnr_by_noise=noise,
        psnr_by_dropped=dropped,
    )


def measure_pixels(clips: Tensor, config: SpectraConfig) -> tuple[AmplitudeCurve, AmplitudeCurve]:
    """Spatial and temporal amplitude of the clips `N C T H W` themselves: of those that are decoded disturbed."""
    some = clips[evenly_spaced(len(clips), config.disturbed_clips)]
    size = clips.shape[-2], clips.shape[-1]
    spectra = spatial_spectrum(some, size), temporal_spectrum(some, clips.shape[2])
    return AmplitudeCurve.of(spectra[0]), AmplitudeCurve.of(spectra[1])


def add_noise(z: Tensor, stats: LatentStats, level: float, generator: torch.Generator) -> Tensor:
    """Latents `b c t h w` plus Gaussian noise of `level` standard deviations of each channel."""
    noise = torch.randn(z.shape, generator=generator)
    return z + level * stats.std.view(-1, 1, 1, 1) * noise


def drop_channels(z: Tensor, stats: LatentStats, share: float, generator: torch.Generator) -> Tensor:
    """Latents `b c t h w` of which, in each sample, `share` of the channels (rounded) are set to their mean."""
    order = torch.rand(z.shape[:2], generator=generator).argsort(1)
    dropped = order < round(share * z.shape[1])
    return torch.where(dropped[:, :, None, None, None], stats.mean.view(-1, 1, 1, 1), z)


def _disturbed_psnr(
    name: str,
    vae: VideoAutoencoder,
    clips: Tensor,
    latents: Tensor,
    stats: LatentStats,
    config: SpectraConfig,
    device: torch.device,
) -> tuple[dict[float, float], dict[float, float]]:
    """PSNR to the clips by noise level and by share of dropped channels; each strength uses the same random numbers."""
    chosen = evenly_spaced(len(clips), config.disturbed_clips)
    clips, latents = clips[chosen], latents[chosen]

    def score(disturbed: Tensor) -> float:
        parts = zip(disturbed.split(config.batch_size), clips.split(config.batch_size), strict=True)
        return float(
            torch.cat(
                [psnr(vae.decode(z.to(device), tile_size=config.tile_size).cpu(), clip) for z, clip in parts]
            ).mean()
        )

    disturbances: list[tuple[Callable[[Tensor, LatentStats, float, torch.Generator], Tensor], float]]
    disturbances = [(add_noise, level) for level in config.noise_levels]
    disturbances += [(drop_channels, share) for share in config.dropped_shares]
    results = [
        score(disturb(latents, stats, strength, torch.Generator().manual_seed(config.seed)))
        for disturb, strength in progress_bar(disturbances, f"disturbing latents of {name}", "strength")
    ]
    count = len(config.noise_levels)
    return (
        dict(zip(config.noise_levels, results[:count], strict=True)),
        dict(zip(config.dropped_shares, results[count:], strict=True)),
    )
