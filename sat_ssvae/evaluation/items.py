"""The videos of a file, a folder or shards, processed one by one into another folder; an interrupted run continues.

for item in list_items(Path("videos"), skipped): ...
"""

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ..data.files import VideoError
from ..data.folders import FolderStore
from ..data.images import is_image
from ..data.index import Store, caption_of, find_stores, read_records
from ..data.skips import Skip, printable
from ..data.video_io import VideoInfo, probe
from ..errors import UserError
from ..progress import already_done, progress_bar
from .journal import append, read_journal

SIDE_BY_SIDE, ERROR_MAP = "side_by_side", "error_map"
"""Views of a video, which are written beside it as NAME.VIEW.mp4."""
_VIEW = re.compile(rf"(.+)\.({SIDE_BY_SIDE}|{ERROR_MAP})\.mp4")


class VideoItem(NamedTuple):
    """A video, its path in the output folder without the suffix, and its caption, which may be empty."""

    name: str
    source: Path | bytes
    caption: str = ""


@dataclass(frozen=True)
class ItemResult:
    """The result for an item, of plain values."""

    name: str
    frames: int
    key: str
    """Fingerprint of the input and the settings."""


R = TypeVar("R", bound=ItemResult)


@dataclass(frozen=True)
class VideoJob(Generic[R]):
    """What is done to each video."""

    description: str
    """For the progress bar."""
    kind: type[R]
    """Of the results."""
    key: Callable[[VideoItem], str]
    """Fingerprint of an item and the settings; raises UserError if the item cannot be used."""
    paths: Callable[[VideoItem], Iterable[Path]]
    """The files that an item is turned into."""
    frames: Callable[[VideoInfo], int]
    """How many frames a video will have, judged by its header."""
    work: Callable[[VideoItem, str, Callable[[int], object]], R]
    """Processes an item with its key; calls its last argument with the number of frames done since the last call."""
    known: Callable[[R], object]
    """Called with the result of an item that an earlier run has done."""


def list_items(source: Path, skipped: list[Skip]) -> Iterator[VideoItem]:
    """The videos of a file, a folder, or shards; anything else is added to `skipped`.

    Raises:
        UserError: there is no such file or folder, or it holds neither videos nor shards.
    """
    if source.is_file() and source.suffix != ".tar":
        yield VideoItem(
            source.name.removesuffix(".mp4"), source, _caption(FolderStore(source.parent), {"key": source.name})
        )
        return
    for store in find_stores(str(source), skipped.append):
        for record in read_records(store, skipped.append):
            name = printable(record["key"])
            try:
                suffix, media = store.media(record["key"])
            except VideoError as error:
                skipped.append(Skip(name, error.cause, str(error)))
                continue
            if isinstance(media, Path) and is_view(media):
                skipped.append(Skip(name, "a view of another video", f"a view of another video: {media}"))
            elif not is_image(suffix, media):
                yield VideoItem(name.removesuffix(".mp4"), media, _caption(store, record))
            else:
                skipped.append(Skip(name, "an image", "an image, not a video"))


def is_view(path: Path) -> bool:
    """Whether a video is a view of another one beside it, as `reconstruct` and `restore` write them."""
    view = _VIEW.fullmatch(path.name)
    others = path.parent.glob(f"{glob.escape(view[1])}.*mp4") if view else ()
    return any(not _VIEW.fullmatch(other.name) for other in others)


def work_through(source: Path, journal: Path, job: VideoJob[R], skipped: list[Skip]) -> list[R]:
    """Do the job for each item of `source`; results are kept in `journal`, unusable items in `skipped`.

    An item is skipped if the journal has its key and all of its files exist. A progress bar counts frames, whose total
    comes from the videos' headers.

    Raises:
        UserError: no videos, none that can be used, `journal` is inside the folder of videos, or a video would be
            overwritten.
    """
    check_output(journal.parent, source)
    journal.parent.mkdir(parents=True, exist_ok=True)
    known = {record.name: record for record in read_journal(journal, job.kind)}  # the last of several records wins
    expected = {item.name: _expected_frames(item, job) for item in list_items(source, [])}
    records: list[R] = []
    total = sum(expected.values())
    with progress_bar(total, job.description, "frame") as bar:
        for item in list_items(source, skipped):
            paths, before = list(job.paths(item)), bar.n
            if isinstance(item.source, Path) and item.source.resolve() in {path.resolve() for path in paths}:
                raise UserError(f"{item.source} would be written over by its own result; choose another --output")
            try:
                key, record = job.key(item), known.get(item.name)
                if record is not None and record.key == key and all(path.is_file() for path in paths):
                    already_done(bar, record.frames)
                    job.known(record)
                else:
                    record = job.work(item, key, bar.update)
                    append(journal, record)
                records.append(record)
            except UserError as error:
                cause = error.cause if isinstance(error, VideoError) else "does not fit"
                skipped.append(Skip(item.name, cause, str(error)))
            total += round(bar.n - before) - expected.get(item.name, 0)  # headers are not always right
            bar.total = total
    if not records:
        why = f"; {skipped[0].source}: {skipped[0].detail}" if skipped else ""
        raise UserError(f"{source}: no video could be used{why}")
    return records


def _expected_frames(item: VideoItem, job: VideoJob[Any]) -> int:
    try:
        return max(0, job.frames(probe(item.source)))
    except VideoError:  # reported when its turn comes
        return 0


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
