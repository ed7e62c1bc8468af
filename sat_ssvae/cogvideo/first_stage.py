"""SSVAE as the first stage of CogVideoX's SAT code (sgm's interface).

    first_stage_config:
      target: sat_ssvae.cogvideo.SSVAEFirstStage
      params:
        ckpt_path: ssvae            # a folder with latent_stats.json, or a checkpoint file and latent_mean, latent_std
                                    # (the published file, ch48_256p_15w_512p_5w.ckpt, needs no statistics)

Latents leave `encode` with mean 0 and standard deviation 1 in every channel, so the model's `scale_factor` is 1.0.

CogVideoX decodes a video in chunks: `decode(z, clear_fake_cp_cache=False)` keeps the temporal state for the next call,
and `clear_fake_cp_cache=True`, the default, ends the video. The chunks are exactly the frames of a whole decode.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from omegaconf import OmegaConf
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Config, parse_config
from ..errors import UserError
from ..vae.autoencoder import SSVAE
from ..vae.config import SSVAEConfig
from ..vae.statistics import LatentStats
from ..vae.tiling import tiled_stream
from .sat_config import SATConfig, imported_checkout

if TYPE_CHECKING:
    from .compatibility import LatentFormat

logger = logging.getLogger(__name__)

_STOCK_PARAMETERS = ("cp_size", "ignore_keys", "loss_config", "regularizer_config", "encoder_config", "decoder_config")
"""Parameters of CogVideoX's own first stage that remain when an overlay is merged over it; they are ignored.

SSVAE is not split over ranks: each rank decodes the whole video, whatever `cp_size` is.
"""

_TARGET = re.compile(r"(sgm\.)?sat_ssvae\.cogvideo(\.first_stage)?\.SSVAEFirstStage")

PATCH_MARKERS = {"sample_video.py": "spatial_factor", "diffusion_video.py": "first_latent"}
"""Words that are in the files of a CogVideoX checkout once `patches/` are applied (see `check_patched`)."""


class FirstStageConfig(Config):
    """Parameters of `SSVAEFirstStage`."""

    ckpt_path: Path | None = None
    """A folder that training or `sat-ssvae convert` wrote, a .safetensors, or ch48_256p_15w_512p_5w.ckpt."""
    latent_mean: tuple[float, ...] | None = None
    """Mean of each latent channel; default: the checkpoint's, or the published ones of the published file."""
    latent_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Standard deviation of each latent channel; default as for `latent_mean`."""
    chunk_frames: Annotated[int, Field(gt=0)] | None = None
    """Frames to encode or decode at a time, to save memory; None for as many as the caller gives. The result is the
    same. It takes the place of CogVideoX's `cp_size`, which is accepted and ignored."""
    tile_size: Annotated[int, Field(gt=0)] | None = None
    """Pixels a side of the tiles that large frames are encoded and decoded in, to save memory; None for whole frames.
    The result is approximate."""
    random_init: bool = False
    """Untrained weights instead of a checkpoint, for tests. By default latents are then not standardised."""
    check_configuration: bool = True
    """In train_video.py and sample_video.py, refuse a configuration whose numbers do not fit before anything runs."""
    model: SSVAEConfig | None = None
    """Sizes for `random_init`; a checkpoint brings its own."""

    @model_validator(mode="after")
    def _consistent(self) -> "FirstStageConfig":
        if self.random_init and self.ckpt_path is not None:
            raise ValueError("random_init: true and a ckpt_path; set ckpt_path: null for random weights")
        if not self.random_init and self.ckpt_path is None:
            raise ValueError("ckpt_path is missing; give the autoencoder's folder (or random_init: true for a test)")
        if self.model is not None and not self.random_init:
            raise ValueError("model belongs to random_init; a checkpoint brings its own sizes")
        if (self.latent_mean is None) != (self.latent_std is None):
            raise ValueError("latent_mean and latent_std belong together, give both or none")
        return self


class SSVAEFirstStage(nn.Module):
    """First stage for `first_stage_config`; `FirstStageConfig` has the parameters.

    Videos are `B 3 T H W` in [-1, 1], latents standardised `b c t h w`. Results have the input's dtype and the module's
    device; the arithmetic is in the weights' dtype, the standardisation in float32.

    Inside CogVideoX's model its weights are those of `ckpt_path`, always: they are not part of the model's state dict,
    and a checkpoint that holds a first stage does not replace them. (Its own `state_dict` is complete.)

    Raises:
        UserError: a parameter is unknown or wrong, no checkpoint, no latent statistics, an unpatched CogVideoX, or, in
            its scripts, a configuration whose numbers do not fit.
    """

    first_latent = 0
    """Latent frame to decode from, for the patched CogVideoX; its own autoencoder has a padding frame in front."""

    def __init__(self, **params: Any) -> None:
        super().__init__()
        check_patched()
        self.config = config = _parse(params)
        if config.ckpt_path is not None:
            self.vae = SSVAE.from_pretrained(config.ckpt_path)
        else:
            self.vae = SSVAE(config.model)
        self.vae.for_inference()
        for parameter in self.vae.parameters():  # DeepSpeed broadcasts frozen weights, too, and needs them contiguous
            parameter.data = parameter.data.contiguous()
        self.stats = _statistics(config, self.vae)
        self._check_tile()
        self._decoding: Callable[[Tensor], Tensor] | None = None
        self.register_state_dict_post_hook(_leave_out_of_model)
        self.register_load_state_dict_pre_hook(_keep_in_model)
        if config.check_configuration:
            from .compatibility import check_running_script

            check_running_script(self.latent_format)

    @property
    def latent_format(self) -> "LatentFormat":
        """What CogVideoX's configuration must fit."""
        from .compatibility import LatentFormat

        return LatentFormat(
            self.vae.config.latent_channels, self.vae.spatial_factor, self.vae.temporal_factor, self.stats
        )

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position, for the patched sample_video.py."""
        return self.vae.spatial_factor

    @property
    def encoder(self) -> nn.Module:
        """The network before the latents."""
        return self.vae.encoder

    @property
    def decoder(self) -> nn.Module:
        """The network after the latents; CogVideoX v1.0 checks its type."""
        return self.vae.decoder

    def get_last_layer(self) -> Tensor:
        """Weight of the decoder's last layer."""
        return self.vae.decoder.last_layer

    def encode(
        self,
        x: Tensor,
        return_reg_log: bool = False,
        unregularized: bool = False,
        *,
        input_cp: bool = False,
        output_cp: bool = False,
        use_cp: bool = True,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Standardised latents `b c t h w`, of the posterior's mean, for a video `B 3 T H W` in [-1, 1], T = 4k + 1.

        Args:
            x: the video.
            return_reg_log: return (latents, {"kl_loss": KL to N(0, I), summed over elements, mean over the batch}).
            unregularized: return (moments `b 2c t h w`, not standardised, {}) instead.
            input_cp: must be False, as in CogVideoX's calls: the video is not split over ranks.
            output_cp: must be False, as `input_cp`.
            use_cp: ignored, there is nothing to split.

        Raises:
            UserError: the video is of integers, or its size does not fit the autoencoder (the message has the nearest).
        """
        _refuse_split(input_cp, output_cp)
        if not x.is_floating_point():
            raise UserError(f"video: expected floating point numbers in [-1, 1], found {x.dtype}")
        posterior = self.vae.encode(x.to(self._dtype), self.config.chunk_frames, self.config.tile_size)
        if unregularized:
            return torch.cat([posterior.mean, posterior.logvar], dim=1).to(x.dtype), {}
        z = self.stats.standardize(posterior.mode().float()).to(x.dtype)
        return (z, {"kl_loss": posterior.kl().mean()}) if return_reg_log else z

    def decode(
        self,
        z: Tensor,
        clear_fake_cp_cache: bool = True,
        *,
        use_cp: bool | None = None,
        input_cp: bool = False,
        output_cp: bool = False,
        split_kernel_size: int = 1,
    ) -> Tensor:
        """The next frames `B 3 T H W`, about [-1, 1], of standardised latents `b c t h w`.

        A video's first chunk of t latent frames gives 4 (t - 1) + 1 frames, later ones 4 t.

        Args:
            z: latents.
            clear_fake_cp_cache: this is the video's last chunk.
            use_cp: True, which CogVideoX1.5 passes with the first chunk only, starts a new video even if the previous
                one was not finished.
            input_cp: must be False, see `encode`.
            output_cp: must be False, see `encode`.
            split_kernel_size: ignored; in v1.0 it says how to split over ranks.

        Raises:
            UserError: latents of another number of channels.
        """
        _refuse_split(input_cp, output_cp)
        if z.shape[1] != len(self.stats.mean):
            raise UserError(
                f"latents of {z.shape[1]} channels for an autoencoder of {len(self.stats.mean)}; put the overlay of "
                "cogvideo_configs/ after the stock files, and see: sat-ssvae cogvideo check --base FILES"
            )
        stream = self._decoding if self._decoding is not None and not use_cp else self._decode_stream()
        self._decoding = None  # an exception below ends the video
        latents = self.stats.unstandardize(z.float()).to(self._dtype)
        video = torch.cat([stream(chunk) for chunk in latents.split(self._latents_at_a_time(z), dim=2)], dim=2)
        if not clear_fake_cp_cache:
            self._decoding = stream
        return video.to(z.dtype)

    def forward(self, x: Tensor, **decode_options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(Latents, reconstruction, regularisation log) of a video, as sgm's autoencoders return them."""
        z, log = self.encode(x, return_reg_log=True)
        return z, self.decode(z, **decode_options), log

    def _decode_stream(self) -> Callable[[Tensor], Tensor]:
        if self.config.tile_size is None:
            return self.vae.decode_stream()
        factor = self.vae.spatial_factor
        return tiled_stream(self.vae.decode_stream, self.config.tile_size // factor, 1, factor)

    def _check_tile(self) -> None:
        tile, factor = self.config.tile_size, self.vae.spatial_factor
        if tile is not None and tile % factor:
            raise UserError(f"first_stage_config.params.tile_size is {tile}, must be a multiple of {factor}")

    @property
    def _dtype(self) -> torch.dtype:
        return self.vae.mask_token.dtype

    def _latents_at_a_time(self, z: Tensor) -> int:
        if self.config.chunk_frames is None:
            return max(z.shape[2], 1)
        return max(self.config.chunk_frames // self.vae.temporal_factor, 1)


def build_first_stage(config: SATConfig) -> SSVAEFirstStage:
    """The first stage of a configuration, built as CogVideoX would.

    Raises:
        UserError: the configuration names another class, or the first stage cannot be built.
    """
    target = config.get("model.first_stage_config.target")
    if not _TARGET.fullmatch(str(target)):
        raise UserError(
            f"model.first_stage_config.target is {target}; give an overlay of cogvideo_configs/ after the stock files"
        )
    params = config.get("model.first_stage_config.params") or {}
    if not isinstance(params, dict):
        raise UserError(f"model.first_stage_config.params is {params!r}, must be a mapping: ckpt_path and others")
    return SSVAEFirstStage(**params)


def check_patched(folder: Path | None = None) -> None:
    """Refuse to run in a CogVideoX checkout that is not patched; elsewhere do nothing.

    `folder` is its sat folder; None for that of the CogVideoX that this process imported, if any.

    Raises:
        UserError: patches are missing, for example after `git pull` or `git checkout`.
    """
    folder = folder or imported_checkout()
    if folder is None:
        return
    for name, marker in PATCH_MARKERS.items():
        text = (folder / name).read_text(encoding="utf-8")
        needed = name == "sample_video.py" or "fake_cp_size" in text  # v1.0 decodes in sample_video.py
        if needed and marker not in text:
            raise UserError(
                f"{folder / name} is not patched for SSVAE; run: bash scripts/install_into_cogvideo.sh {folder.parent}"
            )


def _parse(params: Mapping[str, Any]) -> FirstStageConfig:
    """Leave out the stock parameters; values from a YAML file may be OmegaConf's."""
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(params)), resolve=True)
    stock = [name for name in _STOCK_PARAMETERS if name in plain]
    if stock:
        logger.info("parameters of CogVideoX's own first stage, ignored: %s", ", ".join(stock))
    own = {name: value for name, value in plain.items() if name not in stock}
    return parse_config(FirstStageConfig, own, source="first_stage_config.params")


def _statistics(config: FirstStageConfig, vae: SSVAE) -> LatentStats:
    channels = vae.config.latent_channels
    if config.latent_mean is not None and config.latent_std is not None:
        stats = LatentStats(torch.tensor(config.latent_mean), torch.tensor(config.latent_std))
    elif vae.latent_stats is not None:
        stats = vae.latent_stats
    elif config.random_init:
        stats = LatentStats(torch.zeros(channels), torch.ones(channels))
    else:
        raise UserError(
            f"{config.ckpt_path}: no latent statistics beside the weights; run: sat-ssvae stats {config.ckpt_path} "
            "--data VIDEOS (or give latent_mean and latent_std)"
        )
    if len(stats.mean) != channels:
        raise UserError(f"latent_mean: {len(stats.mean)} numbers, but the autoencoder has {channels} latent channels")
    return stats


def _leave_out_of_model(stage: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """SAT saves CogVideoX's whole model; the autoencoder has its own file."""
    if prefix:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            del state_dict[name]


def _keep_in_model(stage: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The statistics are those of ckpt_path, so another autoencoder's weights would not fit them."""
    if not prefix:
        return
    found = [name for name in state_dict if name.startswith(prefix)]
    for name in found:
        del state_dict[name]
    if found:
        logger.info("the checkpoint holds a first stage, too; it is ignored, ckpt_path names the autoencoder")
    state_dict.update({f"{prefix}{name}": value for name, value in stage.named_parameters()})  # so none is missing


def _refuse_split(input_cp: bool, output_cp: bool) -> None:
    if input_cp or output_cp:
        raise UserError("input_cp, output_cp: SSVAE is not split over ranks; leave them out")
