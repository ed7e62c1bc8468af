"""The videos of a file, a folder or shards, processed one by one into another folder; an interrupted run continues.

for item in list_items(Path("videos"), skipped): ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ..data.containers import VIDEO_SUFFIXES
from ..data.files import VideoError
from ..data.folders import FolderStore
from ..data.index import Store, caption_of, find_stores, read_records
from ..data.skips import Skip, printable
from ..errors import UserError
from .journal import append, read_journal


class Item(NamedTuple):
    """A video, its place in the output folder, without the suffix, and its caption, which may be empty."""

    name: str
    source: Path | bytes
    caption: str = ""


class ItemResult(Protocol):
    """The result for an item: a dataclass of plain values; `key` identifies the input and the settings."""

    @property
    def name(self) -> str:
        """The item's."""

    @property
    def key(self) -> str:
        """A fingerprint."""


R = TypeVar("R", bound=ItemResult)


def list_items(source: Path, skipped: list[Skip]) -> Iterator[Item]:
    """The videos of a file, a folder, or shards; anything else is added to `skipped`.

    Raises:
        UserError: there is no such file or folder, or it holds neither videos nor shards.
    """
    if source.is_file() and source.suffix != ".tar":
        yield Item(source.name.removesuffix(".mp4"), source, _caption(FolderStore(source.parent), {"key": source.name}))
        return
    for store in find_stores(str(source), skipped.append):
        for record in read_records(store, skipped.append):
            name = printable(record["key"])
            try:
                suffix, media = store.media(record["key"])
            except VideoError as error:
                skipped.append(Skip(name, error.cause, str(error)))
                continue
            if f".{suffix}" in VIDEO_SUFFIXES:
                yield Item(name.removesuffix(".mp4"), media, _caption(store, record))
            else:
                skipped.append(Skip(name, "an image", f"{name}.{suffix}"))


def work_through(
    source: Path,
    journal: Path,
    kind: type[R],
    skipped: list[Skip],
    *,
    key: Callable[[Item], str],
    paths: Callable[[Item], Iterable[Path]],
    work: Callable[[Item, str], R],
) -> list[R]:
    """Do `work(item, key)` for each item of `source`; results are kept in `journal`, unusable items in `skipped`.

    An item is not done again while its key is the one of the journal and all `paths` that it makes are there.

    Raises:
        UserError: nothing to work on, nothing of it could be used, `journal` is inside the folder of videos, or a video
            would be written over.
    """
    output = journal.parent
    check_output(output, source)
    output.mkdir(parents=True, exist_ok=True)
    known = {record.name: record for record in read_journal(journal, kind)}  # what was written last
    records: list[R] = []
    for item in list_items(source, skipped):
        record = known.get(item.name)
        if isinstance(item.source, Path) and item.source.resolve() in {path.resolve() for path in paths(item)}:
            raise UserError(f"{item.source} would be written over by its own result; choose another --output")
        try:
            current = key(item)
            if record is None or record.key != current or not all(path.is_file() for path in paths(item)):
                record = work(item, current)
                append(journal, record)
            records.append(record)
        except UserError as error:
            cause = error.cause if isinstance(error, VideoError) else "does not fit"
            skipped.append(Skip(item.name, cause, str(error)))
    if not records:
        why = f"; {skipped[0].source}: {skipped[0].detail}" if skipped else ""
        raise UserError(f"{source}: no video could be used{why}")
    return records


def check_output(output: Path, source: Path) -> None:
    """Refuse an output folder that is inside a folder of videos.

    Raises:
        UserError: it does.
    """
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{output} is inside {source}, so the next run would take it for input; choose another --output"
        )


def _caption(store: Store, record: Mapping[str, Any]) -> str:
    try:
        return caption_of(store, record)
    except VideoError:  # no reason to leave the video out
        return ""
