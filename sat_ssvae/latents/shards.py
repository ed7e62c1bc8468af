"""Latents encoded once, for training a diffusion model without its encoder.

    vae = open_autoencoder("ssvae")                     # or one of diffusers, "wan2.2:PATH_OR_ID"
    encode_shards(vae, EncodeConfig(data=DataConfig(path="shards", num_frames=49)), Path("latents"), device)
    dataset = LatentDataset("latents")

A folder holds latents-000000.tar, latents-000001.tar, ... with KEY.safetensors (`latent`, c t h w float16, normalised
by the autoencoder's own statistics, scale and shift, as `SSVAEFirstStage` or its pipeline does) and KEY.txt (the
caption) for each clip, and latents.json, which says what they were made of. A tar has latents of one size, and gets its
final name when it is complete: an interrupted run continues with the first unfinished one.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from .. import distributed
from ..autoencoders.protocol import VideoAutoencoder
from ..config import fingerprint
from ..data.captions import WHERE
from ..data.shards import Clip, DataConfig, FixedClips, clips_by_size
from ..data.skips import SkipLog
from ..data.tars import plain_tar
from ..errors import UserError
from ..progress import progress_bar
from ..storage import atomic, write_text
from ..vae.checkpoint import weights_digest
from ..vae.statistics import LatentStats
from .dataset import INFO_NAME, LatentDataset, LatentInfo
from .encoding import EncoderSettings, encode_clips

logger = logging.getLogger(__name__)


class EncodeConfig(EncoderSettings):
    """What to encode, and how."""

    data: DataConfig
    """The clips; `num_frames`, `fps` and `resolution` (or `buckets`) are those of the diffusion model."""
    stride: float | None = Field(default=None, gt=0)
    """Seconds between the starts of two clips of a video; None for clips one after the other."""
    clips_per_shard: int = Field(default=500, gt=0)
    """Clips in a tar: what an interruption can cost."""
    captions: Literal["find", "none"] = "find"
    """find looks for captions and refuses data without any; none encodes without captions."""


class Encoded(NamedTuple):
    """What is in all finished shards."""

    clips: int
    captions: int
    """Clips that have a caption."""


class Shard(NamedTuple):
    """One tar to write."""

    path: Path
    first: int
    """Number of its first clip."""
    clips: FixedClips


def encode_shards(vae: VideoAutoencoder, config: EncodeConfig, output: Path, device: torch.device) -> Encoded:
    """Write the shards that this rank is to make.

    Every rank calls it; shards go to the ranks in turn.

    Raises:
        UserError: no usable clip, no caption at all, no statistics of an SSVAE, sizes or settings that do not fit the
            autoencoder, other latents in `output`.
    """
    stats = vae.latent_stats
    if stats is None:
        raise UserError("the autoencoder has no latent statistics; measure them with `sat-ssvae stats`")
    for size in config.data.sizes:
        vae.latent_size(config.data.num_frames, *size)
    if config.data.sources:
        raise UserError("data.sources: latents are encoded from one source; give `path` alone")
    stride = config.stride or config.data.num_frames / config.data.fps
    by_size = clips_by_size(config.data, stride=stride, skips=SkipLog(output / "skipped.jsonl"))
    _check_captions(by_size, config)
    _claim(output, _info(vae, stats, config, by_size))
    shards = list(_plan(by_size, output, config.clips_per_shard))
    todo = [shard for shard in shards[distributed.rank() :: distributed.world_size()] if not shard.path.exists()]
    with progress_bar(sum(len(shard.clips) for shard in todo), f"encoding {output.name}", "clip") as bar:
        for shard in todo:
            samples = _normalized(stats, encode_clips(vae, shard.clips, config, device))
            _write_shard(shard, samples, bar, captions=config.captions == "find")
    distributed.barrier()
    dataset = LatentDataset(output)
    return Encoded(len(dataset), dataset.count_captions() if config.captions == "find" else 0)


def _check_captions(by_size: Sequence[FixedClips], config: EncodeConfig) -> None:
    """Refuse data without any caption: a model trained on it would learn empty prompts."""
    if config.captions == "none":
        return
    clips, captions = sum(map(len, by_size)), sum(clips.count_captions() for clips in by_size)
    if not captions:
        raise UserError(
            f"{config.data.shown_path}: none of {clips} clips has a caption {WHERE}; captions=none encodes them without"
        )
    if captions < clips:
        logger.warning("%d of %d clips have no caption", clips - captions, clips)


def _info(vae: VideoAutoencoder, stats: LatentStats, config: EncodeConfig, by_size: Sequence[FixedClips]) -> LatentInfo:
    without: Any = {"batch_size": True, "chunk_frames": True, "data": {"num_workers"}}
    settings = config.model_dump(mode="json", exclude=without)
    counts = [len(clips) for clips in by_size]
    sizes = [vae.latent_size(config.data.num_frames, *clips.size) for clips in by_size]
    return LatentInfo(
        fingerprint=fingerprint(settings, counts, weights_digest(vae.state_dict())),
        shapes=tuple((vae.latent_channels, *size) for size in sizes),
        num_frames=config.data.num_frames,
        fps=config.data.fps,
        latent_mean=stats.mean.tolist(),
        latent_std=stats.std.tolist(),
    )


def _claim(output: Path, info: LatentInfo) -> None:
    """Make the folder this run's, or continue in it."""
    path = output / INFO_NAME
    if distributed.rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not any(output.glob("*.tar")):
            write_text(path, info.model_dump_json(indent=1) + "\n")
    distributed.barrier()
    if LatentInfo.read(output) != info:
        raise UserError(f"{output} holds latents of other clips, settings or weights; choose an empty folder")


def _plan(by_size: Sequence[FixedClips], output: Path, clips_per_shard: int) -> Iterator[Shard]:
    number = first = 0
    for clips in by_size:
        for start in range(0, len(clips), clips_per_shard):
            part = clips[start : start + clips_per_shard]
            yield Shard(output / f"latents-{number:06d}.tar", first, part)
            number, first = number + 1, first + len(part)


def _normalized(stats: LatentStats, batches: Iterable[tuple[list[Clip], Tensor]]) -> Iterator[tuple[Clip, Tensor]]:
    """Clips with their latents as a diffusion model takes them, float16 on the CPU."""
    for clips, latents in batches:
        yield from zip(clips, stats.standardize(latents).half().cpu(), strict=True)


def _write_shard(shard: Shard, samples: Iterator[tuple[Clip, Tensor]], bar: Any, *, captions: bool) -> None:
    try:
        with atomic(shard.path) as partial, plain_tar(partial) as writer:
            for number, (clip, latent) in enumerate(samples, shard.first):
                data = save({"latent": latent.contiguous()}, {"source": f"{clip.key}@{clip.start:g}"})
                caption = clip.caption if captions else ""
                writer.write({"__key__": f"{number:08d}", "safetensors": data, "txt": caption.encode()})
                bar.update()
    except OSError as error:
        raise UserError(
            f"{shard.path}: {error.strerror or error}; finished shards are kept, run it again to continue"
        ) from None
