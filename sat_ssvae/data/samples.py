"""Many samples in little memory: columns of numbers and of text, kept so that meta files are parsed once.

samples = cached_samples(stores, filters, on_skip)
samples[0].key, samples.select(np.arange(10))

They are kept in the cache of this machine, and, by `pack`, beside the shards.
"""

import contextlib
import json
import logging
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..assets import cache_dir
from ..config import fingerprint
from ..storage import atomic, digest_of
from .index import OnSkip, Sample, Store, list_samples, meta_file
from .settings import Filters
from .skips import Skip, printable
from .tars import TarStore

logger = logging.getLogger(__name__)

CACHED_FROM = 10_000
"""Listings of at least this many samples are cached; smaller ones are quick to make."""
INDEX_FILE = "index.npz"
"""A listing beside the shards that it lists."""
_NUMBERS = {"store": "i", "width": "i", "height": "i", "duration": "d", "fps": "d"}
_TEXTS = ("key", "caption")


class Samples:
    """Samples in a fixed order; `Sample` objects are made on access.

    `names`: of the stores. `columns` hold one number per sample, by field; of texts all bytes in `NAME`, and in
    `NAME_end` where each ends. `rows`: which of them, in order; None for all.
    """

    def __init__(self, names: Sequence[str], columns: dict[str, np.ndarray], rows: np.ndarray | None = None) -> None:
        self._names, self._columns = names, columns
        self._rows = np.arange(len(columns["store"])) if rows is None else rows

    @classmethod
    def collect(cls, names: Sequence[str], samples: Iterable[Sample]) -> "Samples":
        """Put samples into columns, one after the other."""
        numbers = {name: array(kind) for name, kind in _NUMBERS.items()}
        texts, ends = {name: bytearray() for name in _TEXTS}, {name: array("q") for name in _TEXTS}
        for sample in samples:
            for name, column in numbers.items():
                column.append(getattr(sample, name))
            for name, text in texts.items():
                text.extend(getattr(sample, name).encode("utf-8", "surrogatepass"))
                ends[name].append(len(text))
        columns = {name: np.array(column) for name, column in numbers.items()}
        columns |= {name: np.array(text, np.uint8) for name, text in texts.items()}
        columns |= {f"{name}_end": np.array(column) for name, column in ends.items()}
        return cls(names, columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        row = int(self._rows[number])
        store, width, height, duration, fps = (self._columns[name][row].item() for name in _NUMBERS)
        key, caption = (self._text(name, row) for name in _TEXTS)
        name = printable(f"{self._names[store]}/{key}")
        return Sample(store, key, name, duration, fps, width, height, caption)

    def column(self, name: str) -> np.ndarray:
        """The numbers of one field: store, duration, fps, width or height."""
        return self._columns[name][self._rows]

    def select(self, numbers: np.ndarray) -> "Samples":
        """Some of the samples, in this order; the columns are shared."""
        return Samples(self._names, self._columns, self._rows[numbers])

    def save(self, file: Path, **more: str) -> None:
        """Write all columns, and some texts."""
        texts = {name: np.frombuffer(text.encode(), np.uint8) for name, text in more.items()}
        with atomic(file) as partial, partial.open("wb") as target:
            np.savez(target, allow_pickle=False, **self._columns, **texts)

    def _text(self, name: str, row: int) -> str:
        ends = self._columns[f"{name}_end"]
        return self._columns[name][ends[row - 1] if row else 0 : ends[row]].tobytes().decode("utf-8", "surrogatepass")


def cached_samples(stores: Sequence[Store], filters: Filters, on_skip: OnSkip, *, write: bool = True) -> Samples:
    """What `list_samples` gives, from the cache or the index beside the shards as long as no meta file changes.

    The index has all samples, so it does not serve filters.

    Folders of videos are listed every time. `on_skip` also receives what was left out when the cache was made.
    `write`: keep a new listing of many samples.
    """
    names = [store.name for store in stores]
    if not all(isinstance(store, TarStore) for store in stores):
        return Samples.collect(names, list_samples(stores, filters, on_skip))
    shown = {name: [*wanted] if isinstance(wanted, tuple) else wanted.any_of for name, wanted in filters.items()}
    places = [str(store.path.absolute()) for store in stores]
    file = cache_dir() / "listings" / f"{fingerprint(places, names, shown)}.npz"
    marks = fingerprint([_mark(store) for store in stores])
    known = _read(file, names, marks, on_skip)
    if known is None and not filters:
        known = _read_index(stores, on_skip)
    if known is not None:
        return known
    skips: list[Skip] = []
    samples = Samples.collect(names, list_samples(stores, filters, skips.append))
    for skip in skips:
        on_skip(skip)
    if write and len(samples) >= CACHED_FROM:
        listed = json.dumps([[skip.source, skip.cause, skip.detail] for skip in skips])
        with contextlib.suppress(OSError):  # disk full, or not writable
            samples.save(file, marks=marks, skips=listed)
    return samples


def write_index(tars: Sequence[Path]) -> None:
    """Write INDEX_FILE beside shards of one local folder, which then need not be listed, there or in a copy of it.

    Shards of which a meta line cannot be used get none, and are listed by those who read them.

    Raises:
        OSError: it cannot be written.
    """
    skips: list[Skip] = []
    stores = [TarStore(tar) for tar in tars]
    samples = Samples.collect([store.name for store in stores], list_samples(stores, {}, skips.append))
    if samples and not skips:
        samples.save(tars[0].with_name(INDEX_FILE), marks=_contents(stores), skips="[]")


def _read_index(stores: Sequence[Store], on_skip: OnSkip) -> Samples | None:
    """The listing that lies beside the shards; None if it is not of exactly these, or of other meta files."""
    folders = {store.path.parent for store in stores}
    if len(folders) != 1 or not (file := folders.pop() / INDEX_FILE).is_file():
        return None
    try:
        marks = _contents(stores)
    except OSError:  # a shard without a meta file
        return None
    return _read(file, [store.name for store in stores], marks, on_skip)


def _contents(stores: Sequence[Store]) -> str:
    """Changes with the meta files' contents, wherever they lie and whenever they were copied there."""
    return fingerprint([[store.name, digest_of(meta_file(store.path))] for store in stores])


def _read(file: Path, names: Sequence[str], marks: str, on_skip: OnSkip) -> Samples | None:
    """The cached listing; None if there is none, or it is outdated or damaged."""
    try:
        with file.open("rb") as source, np.load(source) as content:
            columns = dict(content)
        if columns.pop("marks").tobytes().decode() != marks:
            return None
        skips = json.loads(columns.pop("skips").tobytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: listing again (%s)", file, error)
        return None
    for skip in skips:
        on_skip(Skip(*skip))
    return Samples(names, columns)


def _mark(store: Store) -> list[Any]:
    """Changes with a store's meta file, or with its tar if it has no meta file."""
    for path in (meta_file(store.path), store.path):
        with contextlib.suppress(OSError):
            status = path.stat()
            return [path.name, status.st_size, status.st_mtime_ns]
    return []
