"""Autoencoders of diffusers behind the interface of `protocol.py`.

    vae = DiffusersAutoencoder(AutoencoderKLWan.from_pretrained(...))    # `classes.py` chooses for any class
    z = vae.latent_stats.standardize(vae.encode(video).mode())    # what a diffusion model of this autoencoder sees
    video = vae.decode(vae.latent_stats.unstandardize(z))

What a class does not say (its compression, the smallest video that it takes, whether it takes several clips at once)
is measured on a tiny video when it is adapted. So a class that does not work is refused before anything is trained.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..vae.posterior import LOGVAR_RANGE, Posterior
from ..vae.sizes import latent_size
from ..vae.statistics import LatentStats
from ..vae.tiling import blend_tiles
from .padding import pad_to_valid

if TYPE_CHECKING:
    from diffusers import ModelMixin

logger = logging.getLogger(__name__)

_UNTOLD = (8, 64)  # frames and pixels that every known compression divides, for classes that do not state theirs
_LARGEST = (32, 256)  # frames and pixels; what states more is not believed, as the video to measure it would be huge
_MOST_STEPS = 4  # lengths of clips, the next after each other, that a class may not take
_MOST_POSITIONS = 4  # latent rows and columns that a class may need
_GROUPS = (1, 2, 4)  # latent frames after the first that a class may take at once: CogVideoX decodes them in pairs


class DiffusersAutoencoder(nn.Module):
    """A causal video autoencoder of diffusers, see `VideoAutoencoder`.

    Raises:
        UserError: the class fails on a tiny video, or its statistics do not fit its latents.
    """

    def __init__(self, vae: "ModelMixin") -> None:
        super().__init__()
        self.vae: Any = vae.eval()
        self._alpha = 4 in (self._setting("in_channels"), self._setting("input_channels"))
        self._by_clip = False
        self._tried: dict[int, bool] = {}
        self.remarks = [*self._whole_passes(), *self._remarks()]
        """What is done otherwise than by the class's defaults."""
        with torch.no_grad():
            self.temporal_factor, self.spatial_factor, self.latent_channels = self._measure()
            self.frame_step = self.temporal_factor
            self.min_size = self._smallest() * self.spatial_factor
        self.latent_stats: LatentStats | None = self._checked_stats()
        self.eval()
        if self.remarks:
            logger.info("%s: %s", self.name, "; ".join(self.remarks))

    @property
    def name(self) -> str:
        """The diffusers class."""
        return type(self.vae).__name__

    def latent_size(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """See `VideoAutoencoder`."""
        if min(height, width) < self.min_size:
            raise UserError(f"{height}x{width}: {self.name} takes {self.min_size} pixels a side or more")
        _, h, w = latent_size((num_frames, height, width), self.frame_step, self.spatial_factor, self.name)
        t = (num_frames - 1) // self.temporal_factor + 1
        limit = self.latent_stats.mean.shape[1] if self.latent_stats and self.latent_stats.mean.ndim == 2 else t
        if t > limit:
            most = (limit - 1) * self.temporal_factor + 1
            raise UserError(
                f"{num_frames} frames: {self.name} has statistics for {limit} latent frames, {most} frames at most"
            )
        if not self._decodes(num_frames):
            longer = self._longer(num_frames)
            raise UserError(
                f"{num_frames} frames: {self.name} does not decode that many; the next that fits is {longer}"
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
        """An encoder of chunks `B C T H W` of any length, each a video of its own whose last frame is repeated."""

        def encode(x: Tensor) -> Posterior:
            x = pad_to_valid(x, self)
            more = self._longer(x.shape[2]) - x.shape[2]
            return self.encode(torch.cat([x, x[:, :, -1:].expand(-1, -1, more, -1, -1)], dim=2) if more else x)

        return encode

    def decode_stream(self) -> Callable[[Tensor], Tensor]:
        """A decoder of chunks of latents `b c t h w`, each those of a video of its own."""
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
        return moments_of(self.vae.encode(self._with_alpha(x)))

    def _video(self, z: Tensor) -> Tensor:
        """Video of latents `b c t h w`."""
        arguments = {"temb": z.new_zeros(len(z))} if self.vae.config.get("timestep_conditioning") else {}
        with _fixed_noise(z.device) if self._injects_noise() else contextlib.nullcontext():
            return self._colours(sample_of(self.vae.decode(z, **arguments)))

    def _hints(self) -> tuple[int, int]:
        """Frames and pixels per latent position as the class states them, or multiples."""
        time = self._setting("temporal_compression_ratio", "scale_factor_temporal", "temporal_compress_times")
        space = self._setting("spatial_compression_ratio", "scale_factor_spatial")
        return _believed(time, _LARGEST[0]) or _UNTOLD[0], _believed(space, _LARGEST[1]) or _UNTOLD[1]

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
        known = {**config, **dict(self.vae.named_buffers())}  # LTX's pipelines read its buffers
        values = known.get("latents_mean"), known.get("latents_std")
        if any(value is None for value in values):  # of one alone, pipelines make nothing
            values = config.get("shift_factor") or 0.0, 1.0
        mean, std = (torch.as_tensor(value, dtype=torch.float32).cpu() for value in values)
        if self.name == "AutoencoderKLCosmos" and mean.numel() == std.numel() != channels and mean.ndim:
            mean, std = mean.reshape(channels, -1), std.reshape(channels, -1)  # of each latent frame, too
        else:
            mean, std = (value.flatten() if value.ndim else value.expand(channels) for value in (mean, std))
        scale = config.get("scaling_factor")
        return LatentStats(mean, std if scale is None else std / torch.as_tensor(scale))

    # --- what is measured when a model is adapted ---------------------------------------------------------------------

    def _whole_passes(self) -> Iterator[str]:
        """Switch off the tiles that some classes take by default: 17 frames of HunyuanVideo are not one pass."""
        over_time = ("use_framewise_encoding", "use_framewise_decoding")
        for switches, what in ((over_time, "time"), (("use_tiling",), "space")):
            if any(getattr(self.vae, switch, False) for switch in switches):
                for switch in switches:
                    setattr(self.vae, switch, False)
                yield f"whole passes, by default the class tiles {what}"

    def _checked_stats(self) -> LatentStats:
        try:
            stats = self._stats()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.name}: unreadable statistics in its configuration ({one_line(error, 200)})"
            ) from None
        if len(stats.mean) != self.latent_channels:
            found = f"statistics of {len(stats.mean)} channels for latents of {self.latent_channels}"
            raise UserError(f"{self.name}: {found}")
        if not stats.std.all():
            raise UserError(f"{self.name}: statistics with a standard deviation of 0 in its configuration")
        return stats

    def _measure(self) -> tuple[int, int, int]:
        """Compression in time and in space, and the latents' channels."""
        time, space = self._hints()
        problems = []
        for frames in (time, _UNTOLD[0]):  # Wan drops frames that do not fill a group of four, whatever it states
            video = _noise(1, 3, frames + 1, space, 2 * space)
            try:
                mean = self._mean(video)
            except Exception as error:
                problems.append(self._failure("encode", video, error))
                continue
            if factors := self._factors(mean, frames, space):
                return *factors, mean.shape[1]
            problems.append(self._misfit(f"latents {tuple(mean.shape)}", video))
        raise problems[0]

    def _factors(self, mean: Tensor, time: int, space: int) -> tuple[int, int] | None:
        """Compression, if `mean` has the shape of latents of `time` + 1 frames of `space` by twice that."""
        wanted = self._setting("vq_embed_dim", "latent_channels", "z_dim", "z_channels")
        if mean.ndim != 5 or mean.shape[2] < 2 or not mean.shape[3]:
            return None
        frames, height, width = mean.shape[2:]
        factor = space // height
        fits = time % (frames - 1) == 0 and (height * factor, width) == (space, 2 * height)
        fits &= wanted is None or mean.shape[1] == self._channels(wanted)
        return (time // (frames - 1), factor) if fits else None

    def _smallest(self) -> int:
        """Fewest latent rows and columns that the class decodes.

        Sets `frame_step`, and notes whether the class takes several clips at once.
        """
        for side, group, by_clip in itertools.product(range(1, _MOST_POSITIONS + 1), _GROUPS, (False, True)):
            self.frame_step, self._by_clip = group * self.temporal_factor, by_clip
            size = (side * self.spatial_factor, (side + 1) * self.spatial_factor)
            video = _noise(2, 3, self.frame_step + 1, *size)
            try:
                decoded = self._clips(self._video, self._clips(self._mean, video))
                second = self._video(self._mean(video[1:]))
            except Exception as error:
                problem = self._failure("encode and decode", video, error)
                continue
            if decoded.shape != video.shape:
                problem = self._misfit(f"a video {tuple(decoded.shape)}", video)
                continue
            if not decoded.isfinite().all():
                raise UserError(f"{self.name}: decodes to values that are not finite; are its weights whole?")
            self._by_clip = by_clip or not torch.allclose(decoded[1:], second, rtol=1e-3, atol=1e-3)
            if self._by_clip:
                self.remarks.append("takes one clip at a time")
            return side
        raise problem

    @torch.no_grad()
    def _decodes(self, num_frames: int) -> bool:
        """Whether as many frames come back from their latents: KVAE makes 18 of 21. Tried once, on tiny frames."""
        if num_frames not in self._tried:
            video = _noise(1, 3, num_frames, self.min_size, self.min_size + self.spatial_factor)
            video = video.to(next(self.parameters()))
            try:
                self._tried[num_frames] = self._video(self._mean(video)).shape == video.shape
            except Exception as error:
                logger.debug("%s: %d frames: %s", self.name, num_frames, error)
                self._tried[num_frames] = False
        return self._tried[num_frames]

    def _longer(self, num_frames: int) -> int:
        """The next number of frames, this one included, that comes back."""
        for steps in range(_MOST_STEPS):
            if self._decodes(longer := num_frames + steps * self.frame_step):
                return longer
        raise UserError(
            f"{num_frames} frames: {self.name} decodes neither that many nor the next {_MOST_STEPS} lengths"
        )

    def _mean(self, video: Tensor) -> Tensor:
        return self._moments(video).chunk(2, dim=1)[0]

    def _misfit(self, found: str, video: Tensor) -> UserError:
        return UserError(
            f"{self.name}: makes {found} of a video {tuple(video.shape)}; this class does not fit the interface of "
            "causal video autoencoders"
        )

    def _failure(self, what: str, video: Tensor, error: Exception) -> UserError:
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
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
            if isinstance(value, (int, float)):
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


def _believed(stated: int | None, most: int) -> int | None:
    return stated if stated is not None and 1 <= stated <= most else None


def moments_of(output: Any) -> Tensor:
    """Mean and log-variance, stacked on channels, of what `encode` returns: a distribution, or latents alone."""
    found = getattr(output, "latent_dist", None)
    if found is None:
        found = output if isinstance(output, Tensor) else output[0]
    mean, logvar = getattr(found, "mean", None), getattr(found, "logvar", None)
    if isinstance(mean, Tensor) and isinstance(logvar, Tensor):
        return torch.cat([mean, logvar], dim=1)
    latents = found if isinstance(found, Tensor) else found.mode()
    return torch.cat([latents, torch.full_like(latents, LOGVAR_RANGE[0])], dim=1)


def sample_of(output: Any) -> Tensor:
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
        torch.default_generator.manual_seed(0)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(0)
        yield


def _noise(*shape: int) -> Tensor:
    """A video in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
