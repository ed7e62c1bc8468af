"""Where samples are: shards are listed from their meta files, a sample's bytes are read at random.

The listing is a chain of generators over plain records (the lines of the meta files); a record that cannot
be used goes to `on_skip` and the chain continues.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls

from ..addresses import check_address, files_at, is_address, without_secrets
from ..errors import UserError
from .caption_fields import Fields, caption_in
from .containers import MAX_FPS, MAX_SECONDS
from .files import META_SUFFIX, VideoError
from .folders import FolderStore, files_below, media_files
from .images import is_image, open_image
from .remote import Remote, ShardCache, fetch_listings, is_remote
from .settings import AnyOf, Filters
from .skips import Skip, printable
from .tars import TarStore
from .video_io import probe

logger = logging.getLogger(__name__)

_MIN_FPS = 1e-3
_LIMITS = {"duration": MAX_SECONDS, "fps": MAX_FPS, "width": 65535, "height": 65535}

_ARCHIVES = (
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".tzst",
    ".tar.lz4",
    ".zip",
    ".7z",
    ".rar",
)
_UNPACK = (
    "an archive that is compressed as a whole cannot be read at random; unpack it to a .tar or to a folder of videos"
)
OnSkip = Callable[[Skip], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One video or image: number of its store, key there, and what its meta line says (seconds, pixels)."""

    store: int
    key: str
    name: str
    duration: float
    fps: float
    width: int
    height: int
    caption: str

    @property
    def is_image(self) -> bool:
        """Images have no duration."""
        return self.duration == 0


Store = TarStore | FolderStore


class RecentStores:
    """Stores by number; only the `limit` most recently used keep their indexes in memory.

    The indexes of a million samples are gigabytes, and every worker process would end up holding all of them.
    """

    def __init__(self, stores: Sequence[Store], limit: int) -> None:
        self._stores, self._limit = stores, limit
        self._recent: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._stores)

    def __getitem__(self, number: int) -> Store:
        self._recent[number] = self._recent.pop(number, None)  # now the last one
        if len(self._recent) > self._limit:
            oldest = next(iter(self._recent))
            del self._recent[oldest]
            self._stores[oldest].forget()
        return self._stores[number]


def find_stores(paths: str | Sequence[str], on_skip: OnSkip, cache: ShardCache | None = None) -> list[Store]:
    """The tars and folders that `paths` name: tars, addresses of tars, folders of tars or videos, brace patterns.

    Raises:
        UserError: nothing there, or nothing of these kinds; an address, but no `cache` to fetch its shard into.
    """
    patterns = [paths] if isinstance(paths, str) else list(paths)
    places = [url for pattern in patterns for url in _expanded(pattern)]
    stores = [store for place in places for store in _stores_of(place, on_skip, cache)]
    fetch_listings([store.remote for store in stores if isinstance(store, TarStore) and store.remote])
    return stores


def _stores_of(place: str, on_skip: OnSkip, cache: ShardCache | None) -> list[Store]:
    """What one path, address or command stands for; nothing is fetched yet."""
    if is_remote(place):
        if cache is None:
            raise UserError(f"{without_secrets(place)}: give a local file or folder here, fetch the shard first")
        shards = _shards_at(place, on_skip) if is_address(place) else {"": place}
        remotes = {label: Remote(url, cache, cache.place(url)) for label, url in shards.items()}
        return [TarStore(remote.place, remote, label) for label, remote in remotes.items()]
    path = Path(place).expanduser()
    if path.is_dir():
        return _stores_in(path, on_skip)
    if path.name.lower().endswith(_ARCHIVES):
        raise UserError(f"{path}: {_UNPACK}")
    if path.is_file() and path.suffix.lower() == ".tar":
        return [TarStore(path)]
    problem = "is not a .tar file" if path.exists() else "does not exist"
    raise UserError(f"{path} {problem}: give a folder of shards or videos, a .tar, or a pattern (a-{{0..9}}.tar)")


def _shards_at(address: str, on_skip: OnSkip) -> dict[str, str]:
    """Addresses of the shards at or below an address, by the names that their samples' begin with."""
    check_address(address)
    if address.endswith(".tar"):
        return {address.rpartition("/")[2].removesuffix(".tar"): address}
    try:
        names = [name for name, _ in files_at(address)]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; check the address and the environment") from None
    tars = {name.removesuffix(".tar") for name in names if name.endswith(".tar")}
    for name in names:
        if name.endswith(META_SUFFIX) and name.removesuffix(META_SUFFIX) not in tars:
            on_skip(Skip(f"{address}/{name}", "meta without tar", "its .tar is missing"))
            logger.warning("%s/%s: its shard is missing", address, name)
    if not tars:
        raise UserError(
            f"{address}: no .tar shards there; `sat-ssvae pack {address} --output SHARDS` makes them of videos"
        )
    return {label: f"{address.rstrip('/')}/{label}.tar" for label in sorted(tars)}


def _expanded(pattern: str) -> list[str]:
    if Path(pattern).expanduser().exists():  # then braces and `::` in its name are not a pattern
        return [pattern]
    try:
        return list(expand_urls(pattern))
    except ValueError as error:
        raise UserError(without_secrets(f"{pattern}: {error}")) from None


def _stores_in(folder: Path, on_skip: OnSkip) -> list[Store]:
    wanted = (".tar", META_SUFFIX, *_ARCHIVES)
    files = sorted(path for path in files_below(folder) if path.name.lower().endswith(wanted))
    tars = [path for path in files if path.suffix.lower() == ".tar"]
    there = {meta_file(tar) for tar in tars}
    for meta in (path for path in files if path.name.endswith(META_SUFFIX) and path not in there):
        tar = meta.name.removesuffix(META_SUFFIX) + ".tar"
        on_skip(Skip(str(meta), "meta without tar", f"{tar} is missing"))
        logger.warning("%s: its shard %s is missing", meta, tar)
    archive = next((path for path in files if path.name.lower().endswith(_ARCHIVES)), None)
    videos = next(media_files(folder), None)
    if archive is not None:
        if not tars and videos is None:
            raise UserError(f"{folder}: {archive.name}: {_UNPACK}")
        logger.warning("%s is not read: %s", archive, _UNPACK)
    if tars and (videos is None or any(tar.parent == folder for tar in tars)):
        if videos is not None:
            logger.warning("%s: only its .tar shards are read, not %s and other files beside them", folder, videos)
        return [TarStore(tar, label=str(tar.relative_to(folder).with_suffix(""))) for tar in tars]
    if videos is None:
        raise UserError(f"{folder} holds neither .tar shards nor videos")
    if tars:
        logger.warning("%s: only its videos are read, not %s and other shards below it", folder, tars[0])
    logger.info("%s: a folder of videos, each is probed now; `sat-ssvae pack` makes shards that start faster", folder)
    return [FolderStore(folder)]


def list_samples(stores: Sequence[Store], filters: Filters, on_skip: OnSkip) -> Iterator[Sample]:
    """Every sample of the stores whose meta fields pass the filters, in a fixed order."""
    for number, store in enumerate(stores):
        records = complete(store, read_records(store, on_skip), on_skip)
        for record in passing(records, filters, store.name, on_skip):
            yield Sample(
                store=number,
                key=record["key"],
                name=printable(f"{store.name}/{record['key']}"),
                duration=float(record["duration"]),
                fps=float(record["fps"]),
                width=int(record["width"]),
                height=int(record["height"]),
                caption=caption_in(record),
            )
        store.forget()  # probing tars without a meta file would otherwise keep all indexes


def read_records(store: Store, on_skip: OnSkip) -> Iterator[Fields]:
    """Stage: the lines of the meta file beside a tar; bare keys if there is none. Each key once."""
    seen: set[str] = set()
    for record, place in _raw_records(store, on_skip):
        if record["key"].startswith("/") or ".." in record["key"].split("/"):
            # A file named after a sample must not end up outside its folder.
            on_skip(Skip(printable(place), "unsafe name", printable(record["key"])))
            continue
        if record["key"] in seen:
            on_skip(Skip(place, "duplicate key", printable(record["key"])))
            continue
        seen.add(record["key"])
        yield record


def meta_file(tar: Path) -> Path:
    """Path of the meta file of a tar."""
    return tar.with_name(tar.stem + META_SUFFIX)


def _raw_records(store: Store, on_skip: OnSkip) -> Iterator[tuple[Fields, str]]:
    meta = meta_file(store.path) if isinstance(store, TarStore) else None
    if meta is None or not meta.is_file():
        if meta is not None:
            logger.warning("%s: no %s beside it, so every sample is probed now", store.path, meta.name)
        try:
            for key in store.keys():  # noqa: SIM118 - a store is no dict
                yield {"key": key, **store.fields(key)}, f"{store.name}/{key}"
        except VideoError as error:
            on_skip(Skip(str(store.path), error.cause, str(error)))
        return
    with meta.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{meta}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                on_skip(Skip(place, "broken meta line", "not JSON"))
                continue
            if not isinstance(record, dict) or not isinstance(record.get("key"), str):
                on_skip(Skip(place, "broken meta line", "no `key`"))
                continue
            yield record, place


def caption_of(store: Store, record: Mapping[str, Any]) -> str:
    """The caption of a sample, from its record or else from its store; empty if there is none.

    Raises:
        VideoError: the store cannot be read.
    """
    return caption_in(dict(record)) or store.caption(record["key"])


def complete(store: Store, records: Iterable[Fields], on_skip: OnSkip) -> Iterator[Fields]:
    """Stage: records whose duration, fps or size is missing or impossible get them from the file itself."""
    for record in records:
        plausible = all(_plausible(record.get(name), limit) for name, limit in _LIMITS.items())
        # An image has neither a duration nor a rate, a video both.
        if plausible and (record["duration"] > 0) == (record["fps"] >= _MIN_FPS):
            yield record
            continue
        try:
            suffix, source = store.media(record["key"])
            if is_image(suffix, source):
                image = open_image(source)
                found = {"duration": 0.0, "fps": 0.0, "width": image.width, "height": image.height}
            else:
                info = probe(source)
                found = {"duration": info.duration, "fps": info.fps, "width": info.width, "height": info.height}
        except VideoError as error:
            on_skip(Skip(printable(f"{store.name}/{record['key']}"), error.cause, str(error)))
            continue
        yield {**record, **found}


def passing(records: Iterable[Fields], filters: Filters, store: str, on_skip: OnSkip) -> Iterator[Fields]:
    """Stage: records whose fields lie in the (lowest, highest) ranges, ends included, or are one of the values."""
    for record in records:
        for name, wanted in filters.items():
            problem = _problem(name, record.get(name), wanted)
            if problem is not None:
                on_skip(Skip(printable(f"{store}/{record['key']}"), problem, repr(record.get(name))))
                break
        else:
            yield record


def _problem(name: str, value: Any, wanted: tuple[float | None, float | None] | AnyOf) -> str | None:
    """Why a field does not pass its filter; None if it does. 0, false and "" are ordinary values."""
    if isinstance(wanted, AnyOf):
        if value is None:
            return f"no {name}"
        found = any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in wanted.any_of)
        return None if found else f"{name} not wanted"
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        return f"no {name}"
    lowest, highest = wanted
    outside = (lowest is not None and value < lowest) or (highest is not None and value > highest)
    return f"{name} out of range" if outside else None


def _plausible(value: object, limit: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= limit
