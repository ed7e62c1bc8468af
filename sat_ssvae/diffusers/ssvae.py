"""SSVAE behind the autoencoder interface of diffusers, for pipelines like those of Wan, CogVideoX and ModelScope.

    vae = AutoencoderSSVAE.from_ssvae(SSVAE.from_pretrained("runs/my_vae/vae"))
    latents = vae.encode(video).latent_dist.sample()
    pipeline = WanPipeline(vae=vae, transformer=transformer, ...)
    video = vae.decode(latents).sample

Latents are standardised in here: they come out of `encode`, and go into `decode`, with mean 0 and deviation 1 in every
channel (over the training videos). So the scale and the statistics that pipelines look up, each under other names,
are all neutral, and a transformer trained behind one pipeline sees the same latents behind another.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from ..config import parse_config
from ..errors import UserError
from ..vae.autoencoder import SSVAE
from ..vae.checkpoint import WEIGHTS_NAME
from ..vae.config import SSVAEConfig
from ..vae.posterior import Posterior
from ..vae.statistics import LatentStats
from ..vae.tiling import blend_tiles

DEFAULT_TILE_SIZE = 512
"""Pixels a side of a tile."""
_OVERLAPS = ("tile_sample_stride_", "tile_overlap_factor", "tile_latent_min_", "tile_sample_min_num_frames")
"""How arguments of `enable_tiling` begin that other classes of diffusers have and that make no difference here."""


class AutoencoderSSVAE(ModelMixin, AutoencoderMixin, ConfigMixin):
    """SSVAE as a diffusers model.

    The sizes are those of `SSVAEConfig`. `channel_mean` and `channel_std` are those of each latent channel as
    SSVAE's encoder gives it; None leaves latents as they are.

    Raises:
        UserError: sizes or statistics that do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Encoder", "Decoder")

    @register_to_config  # which takes the configuration's keys from this signature, so that it lists every size
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
        if (channel_mean is None) != (channel_std is None):
            raise UserError("channel_mean and channel_std belong together, give both or none")
        if channel_mean is not None and channel_std is not None:
            numbers = (_numbers(values, latent_channels) for values in (channel_mean, channel_std))
            self.ssvae.latent_stats = LatentStats(*numbers)
        self.use_slicing = False
        """Encode and decode the videos of a batch one by one (`enable_slicing`)."""
        self.use_tiling = False
        """Encode and decode tiles, for memory that does not grow with H and W; approximate (`enable_tiling`)."""
        self.tile_sample_min_height = self.tile_sample_min_width = DEFAULT_TILE_SIZE
        """Pixels a side of a tile."""
        self.gradient_checkpointing = False
        """Compute activations again in the backward pass (`enable_gradient_checkpointing`)."""
        self.chunk_frames: int | None = None
        """Encode and decode this many frames at a time, for constant memory; the result is the same."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As of diffusers: what `save_pretrained` of this class wrote.

        Raises:
            UserError: it is a folder of `SSVAE`.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / WEIGHTS_NAME).is_file():
            how = f"AutoencoderSSVAE.from_ssvae(SSVAE.from_pretrained({str(folder)!r}))"
            raise UserError(f"{folder}: a folder of SSVAE, not of diffusers; open it by {how}")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_ssvae(cls, vae: SSVAE) -> "AutoencoderSSVAE":
        """The same autoencoder, weights shared, standardising with its `latent_stats`.

        Raises:
            UserError: it has no statistics. (The published file brings its own, see `SSVAE.from_pretrained`.)
        """
        if vae.latent_stats is None:
            raise UserError(
                "the autoencoder has no latent statistics, and pipelines need standardised latents; measure them with "
                "`sat-ssvae stats FOLDER --data VIDEOS` and open the folder, or set vae.latent_stats"
            )
        mean, std = vae.latent_stats.mean.tolist(), vae.latent_stats.std.tolist()
        model = cls(**vae.config.model_dump(mode="json"), channel_mean=mean, channel_std=std)
        model.ssvae.encoder, model.ssvae.decoder, model.ssvae.mask_token = vae.encoder, vae.decoder, vae.mask_token
        return model.eval()

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """As of diffusers, but without its warning of entries that `config` adds."""
        added = {"force_upcast", *_derived(SSVAEConfig())}
        own = {name: value for name, value in config_dict.items() if name not in added}
        arguments, unused, hidden = super().extract_init_dict(own, **kwargs)
        kept = {name: config_dict[name] for name in ("force_upcast",) if name in config_dict}
        return arguments, unused, {**hidden, **kept}

    @property
    def config(self) -> FrozenDict:
        """The arguments, whatever else was registered, and what pipelines look up: sizes and a neutral normalisation.

        What follows from the network cannot be registered with another value.
        """
        return FrozenDict({"force_upcast": False, **self._internal_dict, **_derived(self.ssvae.config)})

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent position, in height and in width."""
        return self.ssvae.spatial_factor

    @property
    def temporal_compression_ratio(self) -> int:
        """Frames per latent frame; frame 0 has a latent frame of its own."""
        return self.ssvae.temporal_factor

    @property
    def temperal_downsample(self) -> list[bool]:
        """Which downsamplings halve time, under the name that Wan's pipelines ask for."""
        return list(self.ssvae.config.temporal_downsample)

    @property
    def latents_mean(self) -> Tensor:
        """Zeros, shape (c,): what comes out of `encode` is standardised already."""
        return torch.zeros(self.ssvae.latent_channels, device=self._stats_device, dtype=self.dtype)

    @property
    def latents_std(self) -> Tensor:
        """Ones, shape (c,), as `latents_mean`."""
        return torch.ones(self.ssvae.latent_channels, device=self._stats_device, dtype=self.dtype)

    def enable_tiling(
        self, tile_sample_min_height: int | None = None, tile_sample_min_width: int | None = None, **overlaps: Any
    ) -> None:
        """Encode and decode overlapping tiles, for memory that does not grow with H and W; approximate.

        Args:
            tile_sample_min_height: pixels, a multiple of the spatial compression; None leaves it as it is.
            tile_sample_min_width: the same; None for square tiles if the height is given.
            overlaps: what Wan's, CogVideoX's and other classes take as well (`tile_sample_stride_height`, ...) has no
                effect: tiles overlap by a quarter, and `chunk_frames` divides time.

        Raises:
            UserError: another size.
            TypeError: an argument that no class has.
        """
        if unknown := [name for name in overlaps if not name.startswith(_OVERLAPS)]:
            raise TypeError(f"enable_tiling() got an unexpected keyword argument '{unknown[0]}'")
        height = tile_sample_min_height or self.tile_sample_min_height
        width = tile_sample_min_width or tile_sample_min_height or self.tile_sample_min_width
        for side in (height, width):
            self.ssvae.check_tile_size(side)
        self.use_tiling, self.tile_sample_min_height, self.tile_sample_min_width = True, height, width

    @apply_forward_hook  # by which enable_model_cpu_offload brings the weights to the GPU
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Posterior of standardised latents as `.latent_dist`.

        Args:
            x: video `B C T H W` in [-1, 1], T = 4k + 1, or images `B C H W`.
            return_dict: False for a tuple with the distribution alone.
        """
        parts = x.split(1) if self.use_slicing else [x]
        moments = torch.cat([self._encode(part if part.ndim == 5 else part.unsqueeze(2)) for part in parts])
        distribution = DiagonalGaussianDistribution(moments if x.ndim == 5 else moments.squeeze(2))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True, **_: Any) -> Any:
        """Video `B C T H W` in [-1, 1] as `.sample`.

        Args:
            z: standardised latents `b c t h w`, or those of images `b c h w`.
            temb: ignored; pipelines whose decoder takes a time step pass one.
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
        return self.decode(
            posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict=return_dict
        )

    @property
    def _stats(self) -> LatentStats:
        channels = self.ssvae.latent_channels
        return self.ssvae.latent_stats or LatentStats(torch.zeros(channels), torch.ones(channels))

    @property
    def _stats_device(self) -> torch.device:
        """The weights', but the CPU while these are offloaded (enable_sequential_cpu_offload)."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Any = None) -> None:
        """By torch's own checkpoint, whatever function is given."""
        self.gradient_checkpointing = enable
        self.ssvae.checkpoint_activations(enable)

    def _in_tiles(self, run: Callable[[Tensor], Tensor], x: Tensor, scale_in: int, scale_out: int) -> Tensor:
        if not self.use_tiling:
            return run(x)
        sides = (self.tile_sample_min_height, self.tile_sample_min_width)
        for side in sides:
            self.ssvae.check_tile_size(side)
        height, width = (side // self.spatial_compression_ratio for side in sides)
        return blend_tiles(run, x, (height, width), scale_in, scale_out)

    def _encode(self, x: Tensor) -> Tensor:
        """Mean and log-variance of standardised latents, stacked on channels; AnyFlow's pipelines call it, too."""
        self.ssvae.config.check_video(x)
        self.ssvae.latent_size(*x.shape[2:])  # before it is cut into tiles
        factor, stats = self.spatial_compression_ratio, self._stats
        moments = self._in_tiles(lambda part: self.ssvae.encode(part, self.chunk_frames).moments(), x, factor, 1)
        posterior = Posterior.from_moments(moments)
        log_std = stats.std.to(posterior.logvar).clamp_min(torch.finfo(torch.float32).tiny).log()
        return torch.cat([stats.standardize(posterior.mean), posterior.logvar - 2 * log_std.view(-1, 1, 1, 1)], 1)

    def _video(self, z: Tensor) -> Tensor:
        self.ssvae.config.check_latents(z)
        factor, latents = self.spatial_compression_ratio, self._stats.unstandardize(z)
        return self._in_tiles(lambda part: self.ssvae.decode(part, self.chunk_frames), latents, 1, factor)


def _derived(sizes: SSVAEConfig) -> dict[str, Any]:
    """What pipelines look up that follows from the network."""
    return {
        "block_out_channels": [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers],
        "z_dim": sizes.latent_channels,
        "scale_factor_spatial": sizes.spatial_factor,
        "scale_factor_temporal": sizes.temporal_factor,
        "spatial_compression_ratio": sizes.spatial_factor,
        "temporal_compression_ratio": sizes.temporal_factor,
        "temperal_downsample": list(sizes.temporal_downsample),
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "invert_scale_latents": False,
        "timestep_conditioning": False,
        "latents_mean": [0.0] * sizes.latent_channels,
        "latents_std": [1.0] * sizes.latent_channels,
    }


def _numbers(values: Sequence[float], channels: int) -> Tensor:
    """Statistics of as many channels, on the CPU, also where the weights are not yet."""
    try:
        numbers = torch.tensor(values, device="cpu", dtype=torch.float32)
    except (TypeError, ValueError):
        raise UserError("channel_mean and channel_std: expected a list of numbers each") from None
    if numbers.shape != (channels,):
        found = f"found shape {tuple(numbers.shape)}"
        raise UserError(f"channel_mean and channel_std: expected a number for each of {channels} channels, {found}")
    return numbers
