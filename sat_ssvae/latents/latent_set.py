"""Latents encoded once to disk, and their per-channel standardisation.

    encode_latents(vae, fixed_clips(data, stride=0.5), path, EncoderSettings(batch_size=8), device)
    train = LatentSet.load(path)
    heldout = LatentSet.load(heldout_path, statistics=train.statistics)
    x = train.statistics.standardize(train.latents[:16]) # what the transformer sees
    video = vae.decode(train.statistics.unstandardize(x))

One safetensors file holds all latents; keys and captions are JSON in its header. While it is written,
finished parts are beside it in `NAME.parts`, so that an interrupted encoding continues where it stopped.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..autoencoders.protocol import VideoAutoencoder
from ..data.shards import Clip
from ..errors import UserError
from ..progress import progress_bar
from ..storage import save_tensors
from ..vae.checkpoint import weights_digest
from ..vae.statistics import LatentStats
from .encoding import EncoderSettings, encode_clips

logger = logging.getLogger(__name__)

_PART_CLIPS = 64  # clips per part: the most that an interruption costs


@dataclass(frozen=True)
class LatentSet:
    """Latents of many clips, with their keys and captions."""

    latents: Tensor
    """N c t h w float32, as the autoencoder's posterior means."""
    keys: tuple[str, ...]
    """Key and start of each latent's clip."""
    captions: tuple[str, ...]
    """The clips' captions, empty if a clip has none."""
    statistics: LatentStats
    """Of these latents; for held-out ones, of the training latents."""

    @classmethod
    def load(cls, path: Path, statistics: LatentStats | None = None) -> "LatentSet":
        """Read what `encode_latents` wrote; `statistics` default to those of the file itself.

        Raises:
            UserError: the file is missing, damaged, or holds values that are not finite.
        """
        latents, header = _read(path)
        if not latents.isfinite().all():
            raise UserError(f"{path}: latents that are not finite; train the autoencoder again with a lower lr")
        keys, captions = (tuple(json.loads(header[name])) for name in ("keys", "captions"))
        return cls(latents, keys, captions, statistics or LatentStats.measure(latents))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Latent channels, frames, height and width (c, t, h, w)."""
        c, t, h, w = self.latents.shape[1:]
        return c, t, h, w

    def __len__(self) -> int:
        return len(self.latents)


def encode_latents(
    vae: VideoAutoencoder, clips: Iterable[Clip], path: Path, settings: EncoderSettings, device: torch.device
) -> LatentSet:
    """Write the posterior means of all clips to `path`, in their order; returns what `LatentSet.load` would.

    `clips` must always be in the same order (as `fixed_clips` are). Parts of an interrupted call are used
    again if the weights and the clips are the same.

    Raises:
        UserError: there are no clips, or their sizes differ or do not fit the autoencoder.
    """
    parts = path.with_name(path.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    digest = weights_digest(vae.state_dict())
    was_training = vae.training
    try:
        names = list(_encode_parts(vae, clips, parts, digest, settings, device))
    finally:
        vae.train(was_training)
    if not names:
        raise UserError(f"{path}: there are no clips to encode; give more or longer videos")
    loaded = [_read(name) for name in names]
    if len({latents.shape[1:] for latents, _ in loaded}) > 1:
        raise UserError("clips of several sizes; give them one resolution and number of frames")
    header = {
        name: json.dumps([item for _, part in loaded for item in json.loads(part[name])])
        for name in ("keys", "captions")
    }
    _write(path, torch.cat([latents for latents, _ in loaded]), header | {"autoencoder": digest})
    shutil.rmtree(parts)
    return LatentSet.load(path)


def _encode_parts(
    vae: VideoAutoencoder,
    clips: Iterable[Clip],
    parts: Path,
    digest: str,
    settings: EncoderSettings,
    device: torch.device,
) -> Iterator[Path]:
    """The files of consecutive clips; missing ones, and those of other clips or weights, are written."""
    total = len(clips) if isinstance(clips, Sized) else None
    with progress_bar(total, "encoding latents", "clip") as bar:
        index, remaining = 0, iter(clips)
        while chunk := list(islice(remaining, _PART_CLIPS)):
            name = parts / f"{index:06d}.safetensors"
            header = {
                "autoencoder": digest,
                "keys": json.dumps([f"{clip.key}@{clip.start:g}" for clip in chunk]),
                "captions": json.dumps([clip.caption for clip in chunk]),
            }
            if not _is_part(name, header):
                if len({clip.video.shape for clip in chunk}) > 1:
                    raise UserError("clips of several sizes; give them one resolution and number of frames")
                means = [latents.cpu() for _, latents in encode_clips(vae, chunk, settings, device)]
                _write(name, torch.cat(means), header)
            bar.update(len(chunk))
            index += 1
            yield name


def _is_part(path: Path, header: dict[str, str]) -> bool:
    if not path.exists():
        return False
    try:
        return _read(path)[1] == header
    except UserError as error:
        logger.warning("encoding again: %s", error)
        return False


def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("latents"), file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; encode the latents first") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable latent file ({error}); delete it and encode again") from None


def _write(path: Path, latents: Tensor, header: dict[str, str]) -> None:
    try:
        save_tensors(path, {"latents": latents}, header, durable=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose another folder") from None
