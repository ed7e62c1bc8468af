"""SSVAE behind the autoencoder interface of diffusers, for pipelines like those of Wan, CogVideoX and ModelScope.

    vae = AutoencoderSSVAE.from_ssvae(SSVAE.from_pretrained("runs/my_vae/vae"))
    latents = vae.encode(video).latent_dist.sample()
    pipeline = WanPipeline(vae=vae, transformer=transformer, ...)
    video = vae.decode(latents).sample

Latents are standardised in here: they come out of `encode`, and go into `decode`, with mean 0 and deviation 1 in every
channel (over the training videos). So the scale and the statistics in `config`, which each pipeline reads under
other names, are all neutral, and a transformer trained behind one pipeline sees the same latents behind another.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from ..config import parse_config
from ..vae.autoencoder import SSVAE
from ..vae.config import SSVAEConfig
from ..vae.statistics import LatentStats


class AutoencoderSSVAE(ModelMixin, AutoencoderMixin, ConfigMixin):
    """SSVAE as a diffusers model.

    Args:
        in_channels: see `SSVAEConfig`, as all sizes.
        latent_channels: channels of the latents.
        base_channels: width that the multipliers multiply.
        channel_multipliers: width of each level.
        num_res_blocks: residual blocks in a level.
        num_mid_blocks: residual blocks in the middle.
        temporal_downsample: which downsamplings halve time.
        channel_mean: mean of each latent channel, as SSVAE's encoder gives it; None for 0.
        channel_std: standard deviation of each; None for 1.

    Raises:
        UserError: sizes or statistics that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 48,
        base_channels: int = 32,
        channel_multipliers: Sequence[int] = (2, 4, 8, 16, 16),
        num_res_blocks: int = 3,
        num_mid_blocks: int = 2,
        temporal_downsample: Sequence[bool] = (False, False, True, True),
        channel_mean: Sequence[float] | None = None,
        channel_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "latent_channels": latent_channels,
            "base_channels": base_channels,
            "channel_multipliers": channel_multipliers,
            "num_res_blocks": num_res_blocks,
            "num_mid_blocks": num_mid_blocks,
            "temporal_downsample": temporal_downsample,
        }
        self.ssvae = SSVAE(parse_config(SSVAEConfig, sizes))
        mean = torch.zeros(latent_channels) if channel_mean is None else torch.tensor(channel_mean)
        std = torch.ones(latent_channels) if channel_std is None else torch.tensor(channel_std)
        self.ssvae.latent_stats = LatentStats(mean, std)
        self.use_slicing = False
        """Encode and decode the videos of a batch one by one (`enable_slicing`)."""
        self.chunk_frames: int | None = None
        """Encode and decode so many frames at a time, for constant memory; the result is the same."""

    @classmethod
    def from_ssvae(cls, vae: SSVAE) -> "AutoencoderSSVAE":
        """The same autoencoder, weights shared, standardising with its `latent_stats` where it has them."""
        stats = vae.latent_stats
        known = {} if stats is None else {"channel_mean": stats.mean.tolist(), "channel_std": stats.std.tolist()}
        model = cls(**vae.config.model_dump(mode="json"), **known)
        model.ssvae.encoder, model.ssvae.decoder, model.ssvae.mask_token = vae.encoder, vae.decoder, vae.mask_token
        return model.eval()

    @property
    def config(self) -> FrozenDict:
        """The arguments, and what pipelines look up: compression, channels and a neutral normalisation."""
        time, space, channels = self.ssvae.temporal_factor, self.ssvae.spatial_factor, self.ssvae.latent_channels
        sizes = self.ssvae.config
        widths = [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers]
        return FrozenDict(
            **self._internal_dict,
            block_out_channels=widths,
            z_dim=channels,
            scale_factor_spatial=space,
            scale_factor_temporal=time,
            spatial_compression_ratio=space,
            temporal_compression_ratio=time,
            scaling_factor=1.0,
            invert_scale_latents=False,
            shift_factor=None,
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
        )

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Posterior of standardised latents as `.latent_dist`.

        Args:
            x: video `B C T H W` in [-1, 1], T = 4k + 1, or images `B C H W`.
            return_dict: False for a tuple with the distribution alone.
        """
        parts = x.split(1) if self.use_slicing else [x]
        moments = torch.cat([self._moments(part if part.ndim == 5 else part.unsqueeze(2)) for part in parts])
        distribution = DiagonalGaussianDistribution(moments if x.ndim == 5 else moments.squeeze(2))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Video `B C T H W` in [-1, 1] as `.sample`.

        Args:
            z: standardised latents `b c t h w`, or those of images `b c h w`.
            return_dict: False for a tuple with the video alone.
        """
        parts = z.split(1) if self.use_slicing else [z]
        video = torch.cat([self._video(part if part.ndim == 5 else part.unsqueeze(2)) for part in parts]).clamp(-1, 1)
        sample = video if z.ndim == 5 else video.squeeze(2)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The reconstruction of `sample`, from the posterior's mean or from a draw."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)

    @property
    def _stats(self) -> LatentStats:
        assert self.ssvae.latent_stats is not None
        return self.ssvae.latent_stats

    def _moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance of standardised latents, stacked on channels."""
        posterior = self.ssvae.encode(x, self.chunk_frames)
        log_std = self._stats.std.to(posterior.logvar).clamp_min(torch.finfo(torch.float32).tiny).log()
        return torch.cat([self._stats.standardize(posterior.mean), posterior.logvar - 2 * log_std.view(-1, 1, 1, 1)], 1)

    def _video(self, z: Tensor) -> Tensor:
        return self.ssvae.decode(self._stats.unstandardize(z), self.chunk_frames)
