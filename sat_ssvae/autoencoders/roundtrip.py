"""A video of any length and size through an autoencoder and back, in chunks.

    for reconstruction in round_trip(vae, chunks):      # B C T H W each, T as it comes
        ...

SSVAE carries its state from chunk to chunk, so that the result is that of the whole video. Other video autoencoders
start anew with each chunk; one that works frame by frame makes no difference there.
"""

from collections.abc import Iterable, Iterator

import torch.nn.functional as F
from torch import Tensor

from ..vae.autoencoder import SSVAE
from ..vae.padding import crop_to, pad_to_valid
from .foreign import VideoAutoencoder


def round_trip(vae: VideoAutoencoder, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Reconstructions, from posterior means, of consecutive chunks `B C T H W` in [-1, 1] of one video.

    They have as many frames as the chunks in all, though not each; height and width are the chunks'. Last frames, rows
    and columns are repeated until the autoencoder takes the video, and cropped away again.
    """
    return _streamed(vae, chunks) if isinstance(vae, SSVAE) else _chunk_by_chunk(vae, chunks)


def _chunk_by_chunk(vae: VideoAutoencoder, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    for chunk in chunks:
        yield crop_to(vae.decode(vae.encode(pad_to_valid(chunk, vae)).mode()), chunk)


def _streamed(vae: SSVAE, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    encode, decode = vae.encode_stream(), vae.decode_stream()
    last: Tensor | None = None
    given = returned = 0
    for chunk in chunks:
        last, given = chunk[:, :, -1:], given + chunk.shape[2]
        video = decode(encode(_pad_space(chunk, vae.spatial_factor)).mode())
        returned += video.shape[2]
        if video.shape[2]:
            yield video[..., : chunk.shape[3], : chunk.shape[4]]
    if last is not None and returned < given:  # the last frames do not fill a latent frame
        missing = -(given - 1) % vae.temporal_factor
        ending = _pad_space(last, vae.spatial_factor).expand(-1, -1, missing, -1, -1)
        video = decode(encode(ending).mode())
        yield video[:, :, : given - returned, : last.shape[3], : last.shape[4]]


def _pad_space(x: Tensor, factor: int) -> Tensor:
    missing = (0, -x.shape[4] % factor, 0, -x.shape[3] % factor, 0, 0)
    return F.pad(x, missing, mode="replicate") if any(missing) else x
