"""Videos in chunks: the same function as in one piece, in memory that does not grow with the video.

    stream = vae.encode_stream()
    posteriors = [stream(chunk) for chunk in chunks]     # chunks of any number of frames
    stream.finish()

    stream = vae.decode_stream()
    video = torch.cat([stream(z) for z in latents.split(1, dim=2)], dim=2)

A stream belongs to one video and owns all that is remembered of it (see `Stream` in layers.py), so that any number of
them can run on one model.
"""

import torch
from torch import Tensor

from ..errors import UserError
from .config import SSVAEConfig
from .decoder import Decoder
from .encoder import Encoder
from .layers import Stream
from .posterior import Posterior


class EncodeStream:
    """Encodes a video chunk by chunk. Frames wait in the stream until they fill a latent frame."""

    def __init__(self, encoder: Encoder, config: SSVAEConfig, frames_at_once: int | None = None) -> None:
        self._encoder = encoder
        self._config = config
        self._stream = Stream(frames_at_once=frames_at_once)
        self._waiting: Tensor | None = None

    def __call__(self, x: Tensor) -> Posterior:
        """Posterior of the latent frames that `x` (`B C T H W`, any T) completes: the first frame, then every fourth.

        (Four stands for the autoencoder's `temporal_factor`.) It may hold no latent frame at all.

        Raises:
            UserError: height or width is not a multiple of the spatial factor, or differs from that of earlier chunks.
        """
        self._config.check_video(x)
        if self._waiting is not None:
            _check_same("video", x, self._waiting)
            x = torch.cat([self._waiting, x], dim=2)
        factor = self._config.temporal_factor
        frames = x.shape[2]
        ready = (frames - 1) // factor * factor + 1 if self._stream.first and frames else frames // factor * factor
        # Copied, so that the whole chunk is not kept alive by its last frames.
        self._waiting = x[:, :, ready:].clone()
        if not ready:
            c, (h, w) = self._config.latent_channels, (size // self._config.spatial_factor for size in x.shape[3:])
            return Posterior.from_moments(x.new_empty(len(x), 2 * c, 0, h, w))
        moments = self._encoder(x[:, :, :ready], self._stream)
        self._stream.first = False
        return Posterior.from_moments(moments)

    def finish(self) -> None:
        """Declare the end of the video.

        Raises:
            UserError: the last frames do not fill a latent frame.
        """
        left = 0 if self._waiting is None else self._waiting.shape[2]
        if left:
            factor = self._config.temporal_factor
            raise UserError(
                f"the video ends {left} frames after a latent frame: SSVAE takes {factor}k + 1 frames; repeat the last "
                f"one {factor - left} times or leave {left} out"
            )


class DecodeStream:
    """Decodes latents chunk by chunk."""

    def __init__(self, decoder: Decoder, config: SSVAEConfig, frames_at_once: int | None = None) -> None:
        self._decoder = decoder
        self._config = config
        self._stream = Stream(frames_at_once=frames_at_once)
        self._size: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        """Frames `B C T H W` of the next latent frames `b c t h w`, any t: one for the video's first, then four each.

        (Four stands for the autoencoder's `temporal_factor`.)

        Raises:
            UserError: the shape differs from that of earlier chunks.
        """
        self._config.check_latents(z)
        if self._size is not None:
            _check_same("latents", z, self._size)
        self._size = z[:, :, :0]
        if not z.shape[2]:
            factor = self._config.spatial_factor
            return z.new_empty(len(z), self._config.in_channels, 0, z.shape[3] * factor, z.shape[4] * factor)
        video = self._decoder(z, self._stream)
        self._stream.first = False
        return video


def _check_same(what: str, x: Tensor, before: Tensor) -> None:
    now, then = ((t.shape[0], *t.shape[3:]) for t in (x, before))
    if now != then:
        raise UserError(f"{what}: a stream is one video, but batch, height and width went from {then} to {now}")
