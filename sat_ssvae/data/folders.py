"""A folder of videos and images, as found on disk: nested, linked, with hidden files and sidecar captions.

store = FolderStore(Path("videos"))
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .caption_fields import Fields
from .captions import CaptionFinder
from .containers import VIDEO_SUFFIXES
from .images import IMAGE_SUFFIXES


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, links to folders followed, each folder once; nothing hidden (`._a.mp4`, `.cache/`)."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    links: list[Path] = []
    while waiting or links:
        place = waiting.pop() if waiting else links.pop(0)
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(place), key=lambda entry: entry.name, reverse=True)
        except OSError:  # unreadable, or deleted in the meantime
            continue
        for path in (Path(entry.path) for entry in entries if not entry.name.startswith(".")):
            if not path.is_dir():
                yield path
            elif path.is_symlink():  # last, so that files keep the names of their real folders
                links.append(path)
            else:
                waiting.append(path)


def media_files(folder: Path) -> Iterator[Path]:
    """Files below `folder` with the suffix of a video or image."""
    return (path for path in files_below(folder) if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES)


@dataclass
class FolderStore:
    """A folder of videos and images; keys are paths in it. Captions: see `CaptionFinder`."""

    path: Path
    _finder: CaptionFinder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._finder = CaptionFinder(self.path)

    @property
    def name(self) -> str:
        """The folder's name, also if it was given as `.` or `..`."""
        return (self.path.resolve() if self.path.name in ("", "..") else self.path).name

    def keys(self) -> list[str]:
        """Paths of the videos and images, sorted."""
        return sorted(str(path.relative_to(self.path)) for path in media_files(self.path))

    def fields(self, key: str) -> Fields:
        """The caption and other fields of a file, from sidecar files and tables."""
        return self._finder.fields(self.path / key)

    def media(self, key: str) -> tuple[str, Path]:
        """The suffix and the path of a file."""
        return Path(key).suffix[1:].lower(), self.path / key

    def caption(self, key: str) -> str:
        """The caption of a file; empty if there is none."""
        return self._finder.caption(self.path / key)

    def forget(self) -> None:
        """Drop the tables of captions; they are read again when they are needed."""
        self._finder = CaptionFinder(self.path)
