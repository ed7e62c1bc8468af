"""Latents encoded once, for training a diffusion model without its encoder.

    vae = open_autoencoder("ssvae")                     # or one of diffusers, "wan2.2:PATH_OR_ID"
    encode_shards(vae, EncodeConfig(data=DataConfig(path="shards", num_frames=49)), Path("latents"), device)
    dataset = LatentDataset("latents")

A folder holds latents-000000.tar, latents-000001.tar, ... with KEY.safetensors (`latent`, c t h w float16, normalised
by the autoencoder's own statistics, scale and shift, as `SSVAEFirstStage` or its pipeline does) and KEY.txt (the
caption) for each clip, and latents.json, what they were made of. A tar has its final name when it is complete: an
interrupted run goes on with the first unfinished one.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset

from .. import distributed
from ..autoencoders.protocol import VideoAutoencoder
from ..config import Config, fingerprint, parse_config
from ..data.files import VideoError
from ..data.shards import Clip, DataConfig, fixed_clips
from ..data.skips import SkipLog
from ..data.tars import TarStore, plain_tar
from ..errors import UserError
from ..progress import progress_bar
from ..storage import atomic, write_text
from ..vae.checkpoint import weights_digest
from ..vae.statistics import LatentStats
from .encoder import EncoderSettings, encode_clips

INFO_NAME = "latents.json"
STOCK_PARAMETERS = ("video_size", "fps", "max_num_frames", "skip_frms_num")
"""Parameters of CogVideoX's SFTDataset that a merged configuration passes on; the shards decide here."""


PerChannel = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A number per channel, or one per channel and latent frame."""


class EncodeConfig(EncoderSettings):
    """What to encode, and how."""

    data: DataConfig
    """The clips; `num_frames`, `fps` and `resolution` are those of the diffusion model."""
    stride: float | None = Field(default=None, gt=0)
    """Seconds between the starts of two clips of a video; None for clips one after the other."""
    clips_per_shard: int = Field(default=500, gt=0)
    """Clips in a tar: what an interruption can cost."""


class LatentInfo(Config):
    """What a folder of latents was made of: latents.json."""

    fingerprint: str
    """Of the configuration and the autoencoder's weights."""
    shape: tuple[int, int, int, int]
    """(c, t, h, w) of every latent."""
    num_frames: int
    """Frames of the videos."""
    fps: float
    """Frames per second of the videos."""
    latent_mean: PerChannel
    """What was subtracted from each channel."""
    latent_std: PerChannel
    """By what each channel was divided."""

    @classmethod
    def read(cls, folder: Path) -> "LatentInfo":
        """Read a folder's latents.json.

        Raises:
            UserError: it is missing or damaged.
        """
        path = folder / INFO_NAME
        try:
            return parse_config(cls, json.loads(path.read_text(encoding="utf-8")), source=str(path))
        except FileNotFoundError:
            raise UserError(f"{folder}: no latents there; make them with `sat-ssvae encode`") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable ({error})") from None


def encode_shards(vae: VideoAutoencoder, config: EncodeConfig, output: Path, device: torch.device) -> int:
    """Write the shards that this rank is to make; returns the number of clips in all finished shards.

    Every rank calls it; shards go to the ranks in turn.

    Raises:
        UserError: no usable clip, no statistics of an SSVAE, sizes or settings that do not fit the autoencoder, other
            latents in `output`.
    """
    stats = vae.latent_stats
    if stats is None:
        raise UserError("the autoencoder has no latent statistics; measure them with `sat-ssvae stats`")
    shape = vae.latent_size(config.data.num_frames, *config.data.size)
    stride = config.stride or config.data.num_frames / config.data.fps
    clips = fixed_clips(config.data, stride=stride, skips=SkipLog(output / "skipped.jsonl"))
    settings = config.model_dump(
        mode="json", exclude={"batch_size": True, "chunk_frames": True, "data": {"num_workers"}}
    )
    info = LatentInfo(
        fingerprint=fingerprint(settings, len(clips), weights_digest(vae.state_dict())),
        shape=(vae.latent_channels, *shape),
        num_frames=config.data.num_frames,
        fps=config.data.fps,
        latent_mean=stats.mean.tolist(),
        latent_std=stats.std.tolist(),
    )
    _claim(output, info)
    starts = range(0, len(clips), config.clips_per_shard)
    ours = range(distributed.rank(), len(starts), distributed.world_size())
    todo = [number for number in ours if not _shard(output, number).exists()]
    total = sum(len(clips[starts[number] : starts[number] + config.clips_per_shard]) for number in todo)
    with progress_bar(total, f"encoding {output.name}", "clip") as bar:
        for number in todo:
            part = clips[starts[number] : starts[number] + config.clips_per_shard]
            samples = _normalized(stats, encode_clips(vae, part, config, device))
            _write_shard(_shard(output, number), starts[number], samples, bar)
    distributed.barrier()
    return len(LatentDataset(output))


class LatentDataset(Dataset[dict[str, Any]]):
    """Clips for CogVideoX's train_video.py with `latent_input: true`: `data.target` names this class.

    Items have `mp4`, the latent c t h w float32 (the axes that `latent_input` reads), `txt`, `num_frames` and `fps`.

    Args:
        folder: what `encode_shards` wrote.

    Raises:
        UserError: no latents there.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.info = LatentInfo.read(folder)
        stores = [TarStore(path) for path in sorted(folder.glob("*.tar"))]
        try:
            self._places = [(store, key) for store in stores for key in store.keys()]  # noqa: SIM118 - a store is no dict
        except VideoError as error:
            raise UserError(f"{error}; delete that tar and run `sat-ssvae encode` again") from None
        if not self._places:
            raise UserError(f"{folder}: no finished shard with a clip; run `sat-ssvae encode` again")

    @classmethod
    def create_dataset_function(cls, path: str, args: Any, **params: Any) -> "LatentDataset":
        """What train_video.py calls for each path of `train_data`; `args` are its arguments.

        Raises:
            UserError: a parameter is not one of the stock dataset's.
        """
        unknown = sorted(params.keys() - set(STOCK_PARAMETERS))
        if unknown:
            raise UserError(f"data.params: LatentDataset takes no {', '.join(unknown)}; the shards decide")
        return cls(path)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        store, key = self._places[index]
        try:
            latent = load(store.read(key, "safetensors"))["latent"]
        except (SafetensorError, VideoError, KeyError) as error:
            raise UserError(f"{store.path}: {key} is damaged ({error}); delete the tar and encode again") from None
        return {
            "mp4": latent.float(),
            "txt": store.caption(key),
            "num_frames": self.info.num_frames,
            "fps": self.info.fps,
        }


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


def _normalized(stats: LatentStats, batches: Iterable[tuple[list[Clip], Tensor]]) -> Iterator[tuple[Clip, Tensor]]:
    """Clips with their latents as a diffusion model takes them, float16 on the CPU."""
    for clips, latents in batches:
        yield from zip(clips, stats.standardize(latents).half().cpu(), strict=True)


def _write_shard(path: Path, first: int, samples: Iterator[tuple[Clip, Tensor]], bar: Any) -> None:
    try:
        with atomic(path) as partial, plain_tar(partial) as writer:
            for number, (clip, latent) in enumerate(samples, first):
                data = save({"latent": latent.contiguous()}, {"source": f"{clip.key}@{clip.start:g}"})
                writer.write({"__key__": f"{number:08d}", "safetensors": data, "txt": clip.caption.encode()})
                bar.update()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; finished shards are kept, run it again to go on") from None


def _shard(output: Path, number: int) -> Path:
    return output / f"latents-{number:06d}.tar"
