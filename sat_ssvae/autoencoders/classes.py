"""The classes of diffusers that need more than `DiffusersAutoencoder` does, and those that cannot be used.

vae = as_autoencoder(AutoencoderKLQwenImage.from_pretrained(...))
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..vae.statistics import LatentStats
from .foreign import DiffusersAutoencoder, sample_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "AutoencoderKLAllegro": "diffusers has it in tiles of 24 frames and 320 pixels only, wrong for smaller clips",
        "AutoencoderKLMiniMaxH3": "takes 17k + 5 frames, not a first frame and then groups of equal length",
        "AutoencoderRAE": "scales every picture to one size of its own",
        "ConsistencyDecoderVAE": "decodes with a diffusion model, so one latent has many pictures",
    }
)
"""Why a class cannot be used, where its error would not say so."""

_FRAMES_AT_ONCE = 8  # of an image autoencoder


class FrameAutoencoder(DiffusersAutoencoder):
    """An image autoencoder of diffusers, applied to each frame: no compression in time."""

    def _moments(self, x: Tensor) -> Tensor:
        return _per_frame(super()._moments, x)

    def _video(self, z: Tensor) -> Tensor:
        return _per_frame(super()._video, z)

    def _hints(self) -> tuple[int, int]:
        return 1, super()._hints()[1]

    def _remarks(self) -> Iterator[str]:
        yield "frame by frame"
        yield from super()._remarks()


class OneFrameVideos(FrameAutoencoder):
    """An image autoencoder whose pictures are videos of one frame (QwenImage 2.1)."""

    def _moments(self, x: Tensor) -> Tensor:
        return _per_frame(lambda frames: DiffusersAutoencoder._moments(self, frames[:, :, None])[:, :, 0], x)

    def _video(self, z: Tensor) -> Tensor:
        return _per_frame(lambda frames: DiffusersAutoencoder._video(self, frames[:, :, None])[:, :, 0], z)


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
        frames = sample_of(self.vae.decode(z.movedim(2, 1).flatten(0, 1), num_frames=z.shape[2]))
        return frames.unflatten(0, (len(z), z.shape[2])).movedim(1, 2)


class PaddedInFront(DiffusersAutoencoder):
    """VidTok: its `forward`, not its `encode`, repeats the first frame until it fills a latent frame."""

    def _moments(self, x: Tensor) -> Tensor:
        return super()._moments(torch.cat([x[:, :, :1].expand(-1, -1, self._copies, -1, -1), x], dim=2))

    def _remarks(self) -> Iterator[str]:
        if not self.vae.is_causal:
            raise UserError(
                f"{self.name}: is_causal is false, so that it takes no first frame of its own; use a causal one"
            )
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


def as_autoencoder(vae: "ModelMixin") -> DiffusersAutoencoder:
    """A model of diffusers as a `VideoAutoencoder`; one without convolutions over time works frame by frame.

    Raises:
        UserError: the class is one of `REFUSED`, or see `DiffusersAutoencoder`.
    """
    over_time = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    if (name := type(vae).__name__) in REFUSED:
        raise UserError(f"{name}: {REFUSED[name]}; it cannot be used here")
    default = DiffusersAutoencoder if over_time else FrameAutoencoder
    return _ADAPTERS.get(name, default)(vae)


def _per_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of images N C H W to each frame of B C T H W, a few at a time."""
    frames = x.movedim(2, 1).flatten(0, 1)
    done = torch.cat([function(part) for part in frames.split(_FRAMES_AT_ONCE)])
    return done.unflatten(0, (len(x), x.shape[2])).movedim(1, 2)
