"""Autoencoders of diffusers behind the interface of `protocol.py`.

    vae = adapt(AutoencoderKLWan.from_pretrained(...))
    z = vae.latent_stats.standardize(vae.encode(video).mode())    # what a diffusion model of this autoencoder sees
    video = vae.decode(vae.latent_stats.unstandardize(z))

What a class does not say (its compression, the smallest video that it takes, whether it takes several clips at once)
is measured on a tiny video when it is adapted, so that a class that does not work is refused before anything is trained.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..vae.posterior import LOGVAR_RANGE, Posterior
from ..vae.sizes import latent_size
from ..vae.statistics import LatentStats
from ..vae.tiling import blend_tiles
from .padding import pad_to_valid

if TYPE_CHECKING:
    from diffusers import ModelMixin

logger = logging.getLogger(__name__)

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "AutoencoderKLAllegro": "diffusers has it with tiles of 24 frames only, and makes zeros of smaller videos",
        "AutoencoderKLMiniMaxH3": "takes 17k + 5 frames, not a first frame and then groups of equal length",
        "AutoencoderRAE": "scales every picture to one size of its own",
        "ConsistencyDecoderVAE": "decodes with a diffusion model, so one latent has many pictures",
    }
)
"""Why a class cannot be used, where its error would not say so."""

_FRAMES_AT_ONCE = 8  # of an image autoencoder
_UNTOLD = (8, 32)  # frames and pixels that every compression known divides, for a class that does not tell its own
_MOST_POSITIONS = 4  # latent rows and columns that a class may need


class DiffusersAutoencoder(nn.Module):
    """A causal video autoencoder of diffusers, see `VideoAutoencoder`. `adapt` chooses the class for a model.

    Args:
        vae: an instance of a diffusers class with `encode` and `decode` of `B C T H W`.

    Raises:
        UserError: the class is one of `REFUSED`, fails on a tiny video, or its statistics do not fit its latents.
    """

    def __init__(self, vae: "ModelMixin") -> None:
        super().__init__()
        self.vae: Any = vae.eval()
        if self.name in REFUSED:
            raise UserError(f"{self.name}: {REFUSED[self.name]}; it cannot be used here")
        self._alpha = 4 in (self._setting("in_channels"), self._setting("input_channels"))
        self._by_clip = False
        self.remarks = [*self._whole_passes(), *self._remarks()]
        """What is done otherwise than by the class's defaults."""
        with torch.no_grad():
            self.temporal_factor, self.spatial_factor, self.latent_channels = self._measure()
            # CogVideoX decodes latent frames in pairs after the first: of an even number it makes too many frames.
            self.frame_step = self.temporal_factor * (2 if self.name == "AutoencoderKLCogVideoX" else 1)
            self.min_size = self._smallest() * self.spatial_factor
        self.latent_stats: LatentStats | None = self._stats()
        if self.remarks:
            logger.info("%s: %s", self.name, "; ".join(self.remarks))

    @property
    def name(self) -> str:
        """The diffusers class."""
        return type(self.vae).__name__

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """See `VideoAutoencoder`."""
        _, h, w = latent_size((num_frames, height, width), self.frame_step, self.spatial_factor, self.name)
        if min(height, width) < self.min_size:
            raise UserError(f"{height}x{width}: {self.name} takes {self.min_size} pixels a side or more")
        t = (num_frames - 1) // self.temporal_factor + 1
        limit = self.latent_stats.mean.shape[1] if self.latent_stats and self.latent_stats.mean.ndim == 2 else t
        if t > limit:
            most = (limit - 1) * self.temporal_factor + 1
            raise UserError(
                f"{num_frames} frames: {self.name} has statistics for {limit} latent frames, {most} frames at most"
            )
        return t, h, w

    def encode(self, x: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Posterior:
        """See `VideoAutoencoder`. An autoencoder without a log-variance gives the lowest that a `Posterior` has."""
        if x.ndim != 5:
            raise UserError(f"video: expected B C T H W, found {tuple(x.shape)}")
        self.latent_size(*x.shape[2:])
        self._check_chunks(chunk_frames)
        if tile_size is None:
            return Posterior.from_moments(self._clips(self._moments, x))
        tile = self._tile(tile_size)
        return Posterior.from_moments(
            blend_tiles(lambda part: self._clips(self._moments, part), x, tile, self.spatial_factor, 1)
        )

    def decode(self, z: Tensor, chunk_frames: int | None = None, tile_size: int | None = None) -> Tensor:
        """See `VideoAutoencoder`."""
        self._check_chunks(chunk_frames)
        if tile_size is None:
            return self._clips(self._video, z)
        tile = self._tile(tile_size)
        return blend_tiles(lambda part: self._clips(self._video, part), z, tile, 1, self.spatial_factor)

    def encode_stream(self) -> Callable[[Tensor], Posterior]:
        """What encodes chunks `B C T H W` of any length, each as a video of its own: its last frame is repeated."""
        return lambda x: self.encode(pad_to_valid(x, self))

    def decode_stream(self) -> Callable[[Tensor], Tensor]:
        """What decodes chunks of latents `b c t h w`, each as those of a video of its own."""
        return self.decode

    def describe(self) -> dict[str, Any]:
        """See `VideoAutoencoder`."""
        known = {name: value for name, value in self.vae.config.items() if not name.startswith("_")}
        plain = json.dumps({"class": self.name, **known, "used": self.remarks}, default=str)
        description: dict[str, Any] = json.loads(plain)
        return description

    # --- what adapters of single classes replace ----------------------------------------------------------------------

    def _moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance, stacked on channels, of a video `B C T H W`."""
        return _moments_of(self.vae.encode(self._with_alpha(x)))

    def _video(self, z: Tensor) -> Tensor:
        """Video of latents `b c t h w`."""
        arguments = {"temb": z.new_zeros(len(z))} if self.vae.config.get("timestep_conditioning") else {}
        with _fixed_noise(z.device) if self._injects_noise() else contextlib.nullcontext():
            return self._colours(_sample_of(self.vae.decode(z, **arguments)))

    def _hints(self) -> tuple[int, int]:
        """Frames and pixels per latent position as the class tells them, or multiples."""
        time = self._setting("temporal_compression_ratio", "scale_factor_temporal", "temporal_compress_times")
        space = self._setting("spatial_compression_ratio", "scale_factor_spatial")
        return time or _UNTOLD[0], space or _UNTOLD[1]

    def _remarks(self) -> Iterator[str]:
        if self.vae.config.get("timestep_conditioning"):
            yield "decodes at time step 0"
        if self._injects_noise():
            yield "injects noise of seed 0"
        if self._alpha:
            yield "pictures get an opaque alpha channel"

    def _stats(self) -> LatentStats:
        """(z - mean) / std * scale or (z - shift) * scale, as the pipelines of the class normalise latents."""
        config, channels = self.vae.config, self.latent_channels
        scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        known = {**dict(self.vae.named_buffers()), **config}
        mean, std = (
            default * torch.ones(channels) if value is None else torch.as_tensor(value, dtype=torch.float32).cpu()
            for value, default in ((known.get("latents_mean"), shift), (known.get("latents_std"), 1.0))
        )
        if self.name == "AutoencoderKLCosmos" and mean.numel() == std.numel() != channels:
            mean, std = mean.reshape(channels, -1), std.reshape(channels, -1)  # of each latent frame, too
        elif mean.numel() != channels or std.numel() != channels:
            raise UserError(f"{self.name}: statistics of {mean.numel()} channels for latents of {channels}")
        else:
            mean, std = mean.flatten(), std.flatten()
        return LatentStats(mean, std / scale)

    # --- what is measured when a model is adapted ---------------------------------------------------------------------

    def _whole_passes(self) -> Iterator[str]:
        """Switch off the tiles that some classes use by default: 17 frames of HunyuanVideo are not one pass."""
        for switch, what in (
            ("use_framewise_encoding", "encodes"),
            ("use_framewise_decoding", "decodes"),
            ("use_tiling", "works"),
        ):
            if getattr(self.vae, switch, False):
                setattr(self.vae, switch, False)
                yield f"{what} whole clips, by default the class takes tiles"

    def _measure(self) -> tuple[int, int, int]:
        """Compression in time and in space, and the latents' channels."""
        time, space = self._hints()
        video = _noise(1, 3, time + 1, space, 2 * space)
        try:
            mean, _ = self._moments(video).chunk(2, dim=1)
        except Exception as error:
            raise self._failure("encode", video, error) from None
        if mean.ndim == 5 and mean.shape[2] > 1 and mean.shape[3]:
            frames, height, width = mean.shape[2:]
            factors = time // (frames - 1), space // height
            wanted = self._setting("latent_channels", "z_dim", "z_channels")
            fits = time % (frames - 1) == 0 and (height * factors[1], width) == (space, 2 * height)
            if fits and (wanted is None or mean.shape[1] == self._channels(wanted)):
                return *factors, mean.shape[1]
        raise self._misfit(f"latents {tuple(mean.shape)}", video)

    def _smallest(self) -> int:
        """Fewest latent rows and columns that the class decodes; notes whether it takes several clips at once."""
        for side in range(1, _MOST_POSITIONS + 1):
            size = (side * self.spatial_factor, (side + 1) * self.spatial_factor)
            video = _noise(2, 3, self.frame_step + 1, *size)
            for self._by_clip in (False, True):
                try:
                    latents = self._clips(self._moments, video).chunk(2, dim=1)[0]
                    decoded = self._clips(self._video, latents)
                    alone = self._video(latents[1:])
                except Exception as error:
                    problem = error
                    continue
                if decoded.shape != video.shape:
                    raise self._misfit(f"a video {tuple(decoded.shape)}", video)
                if not decoded.isfinite().all():
                    raise UserError(f"{self.name}: decodes to values that are not finite; are its weights whole?")
                self._by_clip |= not torch.allclose(decoded[1:], alone, rtol=1e-3, atol=1e-3)
                if self._by_clip:
                    self.remarks.append("takes one clip at a time")
                return side
        raise self._failure("encode and decode", video, problem)

    def _misfit(self, found: str, video: Tensor) -> UserError:
        return UserError(
            f"{self.name}: makes {found} of a video {tuple(video.shape)}; this class does not fit the interface of "
            "causal video autoencoders"
        )

    def _failure(self, what: str, video: Tensor, error: Exception) -> UserError:
        reason = f"{type(error).__name__}: {one_line(error)}"
        return UserError(f"{self.name}: cannot {what} a video {tuple(video.shape)} ({reason}); it cannot be used here")

    # --- details ------------------------------------------------------------------------------------------------------

    def _channels(self, wanted: int) -> int:
        """Channels of the latents where the configuration says `wanted`."""
        return wanted

    def _clips(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([run(clip) for clip in x.split(1)]) if self._by_clip else run(x)

    def _with_alpha(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[:, :1])], 1) if self._alpha else x

    def _colours(self, video: Tensor) -> Tensor:
        return video[:, :3] if self._alpha else video

    def _injects_noise(self) -> bool:
        injected = self.vae.config.get("decoder_inject_noise") or False
        return injected if isinstance(injected, bool) else any(injected)

    def _setting(self, *names: str) -> int | None:
        """An entry of the configuration, or what the class computes from others, under the first name that it has."""
        for name in names:
            value = self.vae.config.get(name)
            if value is None:
                value = vars(self.vae).get(name)
            if value is not None:
                return int(value)
        return None

    def _tile(self, pixels: int) -> int:
        side, rest = divmod(pixels, self.spatial_factor)
        if rest or pixels < self.min_size:
            raise UserError(
                f"tile_size {pixels}: {self.name} takes multiples of {self.spatial_factor}, {self.min_size} at least"
            )
        return side

    def _check_chunks(self, chunk_frames: int | None) -> None:
        if chunk_frames is not None:
            raise UserError(f"chunk_frames={chunk_frames}: for SSVAE alone, {self.name} takes a clip as a whole")


class FrameAutoencoder(DiffusersAutoencoder):
    """An image autoencoder of diffusers, applied to each frame: no compression in time."""

    def _moments(self, x: Tensor) -> Tensor:
        return _per_frame(lambda frames: _moments_of(self.vae.encode(self._with_alpha(frames))), x)

    def _video(self, z: Tensor) -> Tensor:
        return _per_frame(lambda frames: self._colours(_sample_of(self.vae.decode(frames))), z)

    def _hints(self) -> tuple[int, int]:
        return 1, super()._hints()[1]


class OneFrameVideos(FrameAutoencoder):
    """An image autoencoder whose pictures are videos of one frame (QwenImage 2.1)."""

    def _moments(self, x: Tensor) -> Tensor:
        return _per_frame(lambda frames: _moments_of(self.vae.encode(self._with_alpha(frames[:, :, None])))[:, :, 0], x)

    def _video(self, z: Tensor) -> Tensor:
        return _per_frame(lambda frames: self._colours(_sample_of(self.vae.decode(frames[:, :, None])))[:, :, 0], z)


class PatchedFrames(FrameAutoencoder):
    """FLUX.2's: what its transformer sees, and its statistics describe, are 2 x 2 patches of latents."""

    def _moments(self, x: Tensor) -> Tensor:
        moments = super()._moments(x)
        return torch.cat([_per_frame(self._pack, part) for part in moments.chunk(2, dim=1)], dim=1)

    def _video(self, z: Tensor) -> Tensor:
        return super()._video(_per_frame(lambda frames: nn.functional.pixel_shuffle(frames, self._patch), z))

    def _channels(self, wanted: int) -> int:
        return wanted * self._patch**2

    def _stats(self) -> LatentStats:
        norm = self.vae.bn
        return LatentStats(norm.running_mean.float(), (norm.running_var.float() + norm.eps).sqrt())

    def _pack(self, frames: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(frames, self._patch)

    @property
    def _patch(self) -> int:
        return int(self.vae.config.patch_size[0])


class TemporalDecoder(FrameAutoencoder):
    """Stable Video Diffusion's: encodes frame by frame, decodes all frames together."""

    def _video(self, z: Tensor) -> Tensor:
        frames = _sample_of(self.vae.decode(z.movedim(2, 1).flatten(0, 1), num_frames=z.shape[2]))
        return frames.unflatten(0, (len(z), z.shape[2])).movedim(1, 2)


class PaddedInFront(DiffusersAutoencoder):
    """VidTok: its `forward`, not its `encode`, repeats the first frame until it fills a latent frame."""

    def _moments(self, x: Tensor) -> Tensor:
        return super()._moments(torch.cat([x[:, :, :1].expand(-1, -1, self._copies, -1, -1), x], dim=2))

    def _remarks(self) -> Iterator[str]:
        if not self.vae.is_causal:
            raise UserError(f"{self.name}: is_causal is false, so that it takes no first frame of its own; use a causal one")
        yield from super()._remarks()
        yield f"{self._copies} copies of the first frame in front, as its forward does"

    @property
    def _copies(self) -> int:
        return int(self.vae.temporal_compression_ratio) - 1


_ADAPTERS: Mapping[str, type[DiffusersAutoencoder]] = MappingProxyType(
    {
        "AutoencoderKLFlux2": PatchedFrames,
        "AutoencoderKLQwenImage21": OneFrameVideos,
        "AutoencoderKLTemporalDecoder": TemporalDecoder,
        "AutoencoderVidTok": PaddedInFront,
    }
)


def adapt(vae: "ModelMixin") -> DiffusersAutoencoder:
    """A model of diffusers as a `VideoAutoencoder`; one without convolutions over time works frame by frame.

    Raises:
        UserError: it cannot be used, see `DiffusersAutoencoder`.
    """
    over_time = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    default = DiffusersAutoencoder if over_time else FrameAutoencoder
    return _ADAPTERS.get(type(vae).__name__, default)(vae)


def one_line(error: Exception, length: int = 200) -> str:
    """What an exception says, without line breaks."""
    return " ".join(str(error).split())[:length]


def _moments_of(output: Any) -> Tensor:
    """Mean and log-variance, stacked on channels, of what `encode` returns: a distribution, or latents alone."""
    found = getattr(output, "latent_dist", None)
    if found is None:
        found = output if isinstance(output, Tensor) else output[0]
    mean, logvar = getattr(found, "mean", None), getattr(found, "logvar", None)
    if isinstance(mean, Tensor) and isinstance(logvar, Tensor):
        return torch.cat([mean, logvar], dim=1)
    latents = found if isinstance(found, Tensor) else found.mode()
    return torch.cat([latents, torch.full_like(latents, LOGVAR_RANGE[0])], dim=1)


def _sample_of(output: Any) -> Tensor:
    """The pictures in what `decode` returns."""
    if isinstance(output, Tensor):
        return output
    sample: Tensor = output.sample if hasattr(output, "sample") else output[0]
    return sample


@contextlib.contextmanager
def _fixed_noise(device: torch.device) -> Iterator[None]:
    """Seed the generators that a class draws from without asking for one, and restore them."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _noise(*shape: int) -> Tensor:
    """A video in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _per_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of images N C H W to each frame of B C T H W, a few at a time."""
    frames = x.movedim(2, 1).flatten(0, 1)
    done = torch.cat([function(part) for part in frames.split(_FRAMES_AT_ONCE)])
    return done.unflatten(0, (len(x), x.shape[2])).movedim(1, 2)
