"""A video of any length and size through an autoencoder and back, in chunks.

    for reconstruction in round_trip(vae, chunks):      # B C T H W each, T as it comes
        ...

SSVAE carries its state from chunk to chunk, so that the result is that of the whole video. To the autoencoders of
diffusers each chunk is a video of its own; one that works frame by frame makes no difference there.
"""

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from ..errors import UserError
from ..vae.posterior import Posterior
from ..vae.tiling import tiled_stream
from .padding import pad_space
from .protocol import VideoAutoencoder

Coder = Callable[[Tensor], Tensor]


def round_trip(vae: VideoAutoencoder, chunks: Iterable[Tensor], tile_size: int | None = None) -> Iterator[Tensor]:
    """Reconstructions, from posterior means, of consecutive chunks `B C T H W` in [-1, 1] of one video.

    They have as many frames as the chunks in all, though not each; height and width are the chunks'. Last frames, rows
    and columns are repeated until the autoencoder takes the video, and cropped away again.

    `tile_size`: work in tiles of this many pixels a side, for memory that does not grow with H and W; approximate,
    see `vae/tiling.py`.

    Raises:
        UserError: the tile does not fit the autoencoder.
    """
    encode, decode = _coders(vae, tile_size)
    last: Tensor | None = None
    given = returned = 0
    for chunk in chunks:
        last, given = chunk[:, :, -1:], given + chunk.shape[2]
        video = decode(encode(pad_space(chunk, vae)))[:, :, : given - returned]
        returned += video.shape[2]
        if video.shape[2]:
            yield video[..., : chunk.shape[3], : chunk.shape[4]]
    if last is not None and returned < given:  # the last frames do not fill a latent frame
        missing = -(given - 1) % vae.temporal_factor
        video = decode(encode(pad_space(last, vae).expand(-1, -1, missing, -1, -1)))
        yield video[:, :, : given - returned, : last.shape[3], : last.shape[4]]


def check_tile(vae: VideoAutoencoder, tile_size: int) -> None:
    """Refuse tiles, in pixels a side, that the autoencoder does not take.

    Raises:
        UserError: the message says which it takes.
    """
    factor = vae.spatial_factor
    if tile_size % factor or tile_size < vae.min_size:
        raise UserError(f"tile_size {tile_size}: must be a multiple of {factor}, {vae.min_size} at least")


def _coders(vae: VideoAutoencoder, tile_size: int | None) -> tuple[Coder, Coder]:
    """Functions from a chunk to its latents and back, with a stream for each tile."""
    if tile_size is None:
        return _means(vae.encode_stream()), vae.decode_stream()
    check_tile(vae, tile_size)
    factor = vae.spatial_factor
    tile = tile_size // factor
    encode = tiled_stream(lambda: _means(vae.encode_stream()), tile, factor, 1)
    return encode, tiled_stream(vae.decode_stream, tile, 1, factor)


def _means(encode: Callable[[Tensor], Posterior]) -> Coder:
    return lambda chunk: encode(chunk).mode()
