"""Latents encoded once, for training a diffusion model without its encoder.

    vae = open_autoencoder("ssvae")                     # or one of diffusers, "wan2.2:PATH_OR_ID"
    encode_shards(vae, EncodeConfig(data=DataConfig(path="shards", num_frames=49)), Path("latents"), device)
    dataset = LatentDataset("latents")

A folder holds latents-000000.tar, latents-000001.tar, ... with KEY.safetensors (`latent`, c t h w float16, normalised
by the autoencoder's own statistics, scale and shift, as `SSVAEFirstStage` or its pipeline does) and KEY.txt (the
caption) for each clip, and latents.json, which says how they were made. A tar has latents of one size, and gets its
final name when it is complete: an interrupted run continues with the first unfinished one.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from .. import distributed
from ..addresses import is_address
from ..autoencoders.protocol import VideoAutoencoder
from ..autoencoders.roundtrip import check_tile
from ..config import fingerprint
from ..data.captions import WHERE
from ..data.shards import Clip, DataConfig, FixedClips, clips_by_size
from ..data.skips import SKIPPED_FILE, Skip, SkipLog, read_skips
from ..data.tars import plain_tar
from ..distributed import default_device
from ..errors import UserError
from ..jobs.engines import run_job
from ..jobs.job import Advance, Item, Job
from ..jobs.ledger import claimed, parts_of, refuse_missing
from ..jobs.settings import JobConfig
from ..jobs.store_lock import Claim
from ..storage import atomic, remove_partials, write_text
from ..vae.checkpoint import weights_digest
from ..vae.statistics import LatentStats
from .dataset import INFO_NAME, LatentDataset, LatentInfo
from .encoding import EncoderSettings, encode_clips

logger = logging.getLogger(__name__)

_COUNTS = ".counts.json"
"""Beside a tar in an object store: its counts, for which it would otherwise have to be fetched."""


class EncodeConfig(EncoderSettings, JobConfig):
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
    """Counts over all finished shards."""

    clips: int
    captions: int
    """Clips that have a caption."""


class Shard(NamedTuple):
    """One tar to write."""

    name: str
    first: int
    """Number of its first clip."""
    size: int
    """Index of its clips' size."""
    start: int
    """Where its clips begin among those of their size."""
    stop: int


def encode_shards(
    vae: VideoAutoencoder, config: EncodeConfig, output: Path, device: torch.device, *, merged: bool = False
) -> Encoded:
    """Write the missing shards.

    With a launcher, every rank calls it, and the ranks take shards in turn.

    Of a `part`, only its shards. `device`: where this process encodes; on a cluster, the workers decide. `merged`:
    write nothing, but check that the shards of all parts exist.

    Raises:
        UserError: no usable clip, no caption at all, an SSVAE without statistics, sizes or settings that do not fit the
            autoencoder, other latents in `output`, or missing parts.
    """
    stats = _checked_stats(vae, config)
    part = config.chosen_part
    skips = SkipLog(output / SKIPPED_FILE if part.count == 1 else None, max_share=config.data.max_skip_share)
    stride = config.stride or config.data.num_frames / config.data.fps
    by_size = clips_by_size(config.data, stride=stride, skips=skips)
    _check_captions(by_size, config)
    with claimed(output, "encode", part) if distributed.rank() == 0 else contextlib.nullcontext(Claim()) as claim:
        _claim(output, _info(vae, stats, config, by_size))
        shards = list(_plan(by_size, config.clips_per_shard))
        missing = [shard for shard in shards if not _tar(output, shard.name).exists()]
        if merged:
            refuse_missing([shard.name for shard in missing], parts_of(output, "encode"))
        else:
            opened = partial(_encoder, vae, config, [clips.noting(SkipLog()) for clips in by_size], output, device)
            items = [Item(shard.name, shard.stop - shard.start, shard) for shard in missing if part.takes(shard.name)]
            ours = items[distributed.rank() :: distributed.world_size()]
            for item, failures in run_job(Job(opened, uses_gpu=True), ours, config, f"encoding {output.name}", "clip"):
                claim.check()
                for skip in failures:
                    skips.failed(skip)
                skips.succeeded(item.units - len(failures))
                skips.check()
        distributed.barrier()
        if distributed.rank() == 0 and part.count == 1:
            _list_skips(shards, output, skips)
        return _count(output, config)


def _checked_stats(vae: VideoAutoencoder, config: EncodeConfig) -> LatentStats:
    """The autoencoder's statistics; UserError if it has none or does not fit the settings."""
    if vae.latent_stats is None:
        raise UserError("the autoencoder has no latent statistics; measure them with `sat-ssvae stats`")
    for size in config.data.sizes:
        vae.latent_size(config.data.num_frames, *size)
    if config.tile_size is not None:  # before the folder is claimed for these settings
        check_tile(vae, config.tile_size)
    if config.data.sources:
        raise UserError("data.sources: latents are encoded from one source; give `path` alone")
    return vae.latent_stats


def _list_skips(shards: Sequence[Shard], output: Path, skips: SkipLog) -> None:
    """Merge the lists of the shards' skips into one, and tidy up."""
    for shard in shards:
        own = _skips_of(output, shard.name)
        for line in read_skips(own):
            skips.filtered(Skip(**line))  # lines that are already listed are not repeated
        own.unlink(missing_ok=True)
    remove_partials(output, "latents-")
    skips.flush()


def _count(output: Path, config: EncodeConfig) -> Encoded:
    if config.chosen_part.count > 1 and not any(output.glob("*.tar")):  # a part may have no shard
        return Encoded(0, 0)
    if is_address(output):
        counts = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob(f"*{_COUNTS}")]
        return Encoded(*(sum(count[name] for count in counts) for name in Encoded._fields))
    dataset = LatentDataset(output)
    return Encoded(len(dataset), dataset.count_captions() if config.captions == "find" else 0)


def _tar(output: Path, name: str) -> Path:
    return output / f"{name}.tar"


def _skips_of(output: Path, name: str) -> Path:
    return output / f"{name}.{SKIPPED_FILE}"


@contextlib.contextmanager
def _encoder(
    vae: VideoAutoencoder,
    config: EncodeConfig,
    by_size: Sequence[FixedClips],
    output: Path,
    device: torch.device,
    cpus: int | None,
) -> Iterator[Callable[[Shard, Advance], list[Skip]]]:
    """Writes a shard, see `Job.open`."""
    device = device if cpus is None else default_device()

    def write(shard: Shard, advance: Advance) -> list[Skip]:
        clips, failed = by_size[shard.size].part(shard.start, shard.stop, cpus)
        assert vae.latent_stats is not None
        samples = _normalized(vae.latent_stats, encode_clips(vae, clips, config, device))
        _write_shard(output, shard, samples, failed, advance, captions=config.captions == "find")
        return failed

    yield write


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
    settings = config.identity("batch_size", "chunk_frames")
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
    """Claim the folder for this run, or continue in it."""
    path = output / INFO_NAME
    if distributed.rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not any(output.glob("*.tar")):
            write_text(path, info.model_dump_json(indent=1) + "\n")
    distributed.barrier()
    if LatentInfo.read(output) != info:
        raise UserError(f"{output} holds latents of other clips, settings or weights; choose an empty folder")


def _plan(by_size: Sequence[FixedClips], clips_per_shard: int) -> Iterator[Shard]:
    number = first = 0
    for size, clips in enumerate(by_size):
        for start in range(0, len(clips), clips_per_shard):
            stop = min(start + clips_per_shard, len(clips))
            yield Shard(f"latents-{number:06d}", first, size, start, stop)
            number, first = number + 1, first + stop - start


def _normalized(stats: LatentStats, batches: Iterable[tuple[list[Clip], Tensor]]) -> Iterator[tuple[Clip, Tensor]]:
    """Clips with their normalised latents, float16 on the CPU."""
    for clips, latents in batches:
        yield from zip(clips, stats.standardize(latents).half().cpu(), strict=True)


def _write_shard(
    output: Path,
    shard: Shard,
    samples: Iterator[tuple[Clip, Tensor]],
    failed: Sequence[Skip],
    advance: Advance,
    *,
    captions: bool,
) -> None:
    """Write one tar, whose final name marks it as finished, and before it the list of the clips that failed."""
    tar = _tar(output, shard.name)
    clips = captioned = 0
    try:
        with atomic(tar) as unfinished:
            with plain_tar(unfinished) as writer:
                for number, (clip, latent) in enumerate(samples, shard.first):
                    data = save({"latent": latent.contiguous()}, {"source": f"{clip.key}@{clip.start:g}"})
                    caption = clip.caption if captions else ""
                    writer.write(f"{number:08d}", {"safetensors": data, "txt": caption.encode()})
                    clips, captioned = clips + 1, captioned + bool(caption)
                    advance(1)
            if is_address(output):
                write_text(output / f"{shard.name}{_COUNTS}", json.dumps({"clips": clips, "captions": captioned}))
            if failed:
                write_text(_skips_of(output, shard.name), "".join(skip.to_json() for skip in failed))
    except OSError as error:
        raise UserError(
            f"{tar}: {error.strerror or error}; finished shards are kept, run it again to continue"
        ) from None
