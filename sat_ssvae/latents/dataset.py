"""Latents written by `sat-ssvae encode`, as a data set for CogVideoX's train_video.py.

dataset = LatentDataset("latents")                                   # a folder
dataset = LatentDataset("latents_{480x720,720x480}", batch_size=4)   # several, in batches of one size each
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from torch.utils.data import Dataset
from webdataset.shardlists import expand_urls

from ..addresses import is_address, path_of
from ..assets import cache_dir
from ..config import Config, parse_config
from ..data.files import VideoError
from ..data.remote import Remote, ShardCache
from ..data.tars import TarStore
from ..errors import UserError

INFO_NAME = "latents.json"
_STOCK_PARAMETERS = ("video_size", "fps", "max_num_frames", "skip_frms_num")
"""Parameters of CogVideoX's SFTDataset that a merged configuration passes on; ignored in favour of the shards."""

LatentShape = tuple[int, int, int, int]
"""(c, t, h, w)."""
PerChannel = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A number per channel, or one per channel and latent frame."""


class LatentInfo(Config):
    """How a folder of latents was made: latents.json."""

    fingerprint: str
    """Of the configuration and the autoencoder's weights."""
    shapes: tuple[LatentShape, ...]
    """One or several (c, t, h, w)."""
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


def latent_folders(place: str | Path) -> list[Path]:
    """The folder at a place, or several if it is a brace pattern."""
    return [path_of(folder) for folder in expand_urls(str(place))]


class LatentDataset(Dataset[dict[str, Any]]):
    """Clips for CogVideoX's train_video.py with `latent_input: true`: `data.target` names this class.

    Items have `mp4`, the latent c t h w float32 (the axes that `latent_input` reads), `txt`, `num_frames` and `fps`.

    SAT asks for random items one by one, and stacks each `batch_size` of them. If latents have several sizes, the first
    item of a batch decides its size, and the others are replaced by latents of that size.

    `place`: a folder that `encode_shards` wrote, or several by a brace pattern.

    Raises:
        UserError: no latents there.
    """

    def __init__(self, place: str | Path, batch_size: int = 1) -> None:
        self._batch_size, self._asked = batch_size, 0
        folders = latent_folders(place)
        self.infos = tuple(LatentInfo.read(folder) for folder in folders)
        self._places: list[tuple[int, TarStore, str]] = []  # number of the folder, tar, key
        self._bucket_of: list[LatentShape] = []
        self._buckets: dict[LatentShape, list[int]] = {}
        for number, folder in enumerate(folders):
            for path in sorted(folder.glob("*.tar")):
                self._add(number, _store(path))
        if not self._places:
            raise UserError(f"{place}: no finished shard with a clip; run `sat-ssvae encode` again")

    @classmethod
    def create_dataset_function(cls, path: str, args: Any, **params: Any) -> "LatentDataset":
        """Called by train_video.py for each path of `train_data` and `valid_data`; args: its arguments.

        Raises:
            UserError: a parameter is not one of the stock dataset's, or a batch might mix latents of several sizes.
        """
        unknown = sorted(params.keys() - set(_STOCK_PARAMETERS))
        if unknown:
            raise UserError(f"data.params: LatentDataset takes no {', '.join(unknown)}; the shards decide")
        # The data set cannot tell training from validation, so a size is kept for whole batches of both.
        sizes = [getattr(args, name, None) or 1 for name in ("batch_size", "eval_batch_size")]
        for paths in (getattr(args, name, None) or [] for name in ("train_data", "valid_data")):
            _check_one_size(paths, max(sizes))
        return cls(path, batch_size=math.lcm(*sizes))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if len(self._buckets) > 1:
            index = self._of_this_batch(index)
        number, store, key = self._places[index]
        info = self.infos[number]
        return {"mp4": _read(store, key), "txt": store.caption(key), "num_frames": info.num_frames, "fps": info.fps}

    def count_captions(self) -> int:
        """Clips that have a caption."""
        return sum(bool(store.caption(key)) for _, store, key in self._places)

    def _add(self, number: int, store: TarStore) -> None:
        """Add a tar, all of whose latents have one size."""
        try:
            keys = store.keys()
        except VideoError as error:
            raise UserError(f"{error}; delete that tar and run `sat-ssvae encode` again") from None
        shapes = self.infos[number].shapes
        shape = shapes[0] if len(shapes) == 1 or not keys else _shape(_read(store, keys[0]))
        self._buckets.setdefault(shape, []).extend(range(len(self._places), len(self._places) + len(keys)))
        self._bucket_of += [shape] * len(keys)
        self._places += [(number, store, key) for key in keys]

    def _of_this_batch(self, index: int) -> int:
        """`index`, or an item of the size that the batch began with."""
        if self._asked % self._batch_size == 0:
            self._shape = self._bucket_of[index]
        self._asked += 1
        bucket = self._buckets[self._shape]
        return index if self._bucket_of[index] == self._shape else bucket[index % len(bucket)]


def _check_one_size(paths: list[str], batch_size: int) -> None:
    if batch_size > 1 and len({shape for path in paths for shape in _shapes(path)}) > 1 and len(paths) > 1:
        raise UserError(
            f"{', '.join(paths)}: latents of several sizes, which batches of {batch_size} cannot mix; give the folders "
            f'as one, ["{{{",".join(paths)}}}"], and each batch has one size'
        )


def _shapes(place: str) -> set[LatentShape]:
    return {shape for folder in latent_folders(place) for shape in LatentInfo.read(folder).shapes}


def _store(tar: Path) -> TarStore:
    """A tar, fetched first if it is in an object store."""
    if not is_address(tar):
        return TarStore(tar)
    cache = ShardCache(cache_dir() / "shards")
    remote = Remote(str(tar), cache, cache.place(str(tar)))
    return TarStore(remote.place, remote, tar.stem)


def _read(store: TarStore, key: str) -> Tensor:
    try:
        return load(store.read(key, "safetensors"))["latent"].float()
    except (SafetensorError, VideoError, KeyError) as error:
        raise UserError(f"{store.path}: {key} is damaged ({error}); delete the tar and encode again") from None


def _shape(latent: Tensor) -> LatentShape:
    c, t, h, w = latent.shape
    return c, t, h, w
