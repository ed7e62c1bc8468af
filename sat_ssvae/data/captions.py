"""Where captions of videos are kept: one finder for packing, encoding, training and reward.

    finder = CaptionFinder(Path("data"))
    finder.fields(Path("data/videos/a.mp4"))        # {"caption": "a cat", "motion": 3.5}

In this order: NAME.txt (or .caption, .text, .prompt) and NAME.json beside NAME.mp4; the same in labels/, captions/ or
the like beside the video or its folder videos/, as CogVideoX has it; a table in the video's folder or one above it: a
JSON, JSON lines, CSV, TSV or Parquet file with paths or names (such as WebVid's videoid) or COCO's two lists, or
videos.txt with prompts.txt line by line. Whatever else a table or JSON file says becomes fields for `data.filters`.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .caption_fields import (
    TEXT_SUFFIXES,
    Fields,
    caption_in,
    composed,
    json_fields,
    text_of,
    with_caption,
)
from .caption_tables import Tables

LABEL_FOLDERS = ("labels", "captions", "label", "caption", "prompts", "texts", "txt", "metas", "metas/v0")
VIDEO_FOLDERS = ("videos", "video", "clips", "mp4", "images")
_SIDECARS = frozenset({"json", *TEXT_SUFFIXES})
WHERE = (
    "(NAME.txt, NAME.caption or NAME.json beside, labels/NAME.txt, captions/NAME.txt, videos.txt with prompts.txt, a "
    "JSON, JSON lines, CSV, TSV or Parquet file of paths and captions)"
)
"""For messages."""


class CaptionFinder:
    """What is known about the videos in a folder, apart from the files themselves.

    Args:
        root: the folder that was given; tables and labels in it, below it and one above it count.
        leave_out: a table that does not count.
    """

    def __init__(self, root: Path, leave_out: Path | None = None) -> None:
        self._leave_out = leave_out
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - unlike `absolute` it resolves `..`, unlike `resolve` no links
        self._tables: dict[Path, Tables] = {}
        self._said: set[Path] = set()  # folders of which a warning was given
        self._labels: dict[Path, list[Path]] = {}
        self._names: dict[Path, dict[str, str] | None] = {}

    def fields(self, video: Path) -> Fields:
        """The caption, if there is one, and further fields of a video.

        Raises:
            UserError: videos.txt and prompts.txt do not have the same number of lines.
        """
        video = Path(os.path.abspath(video))  # noqa: PTH100
        known: Fields = {}
        for folder in self._folders(video):
            tables = self._tables_in(folder)
            known = {**tables.fields(video, by_name=folder.is_relative_to(self._root)), **known}
        texts = (caption_in(text_of(data)) for data in _contents(self._beside(video, TEXT_SUFFIXES)))
        known = with_caption(known, text := next(filter(None, texts), ""))
        found: Fields = {}
        for data in _contents(self._beside(video, ("json",))):
            found = {**json_fields(data, None if "caption" in known else video.parent, self._said), **found}
        return with_caption(known | found, text)

    def caption(self, video: Path) -> str:
        """The caption of a video; empty if there is none."""
        return str(self.fields(video).get("caption", ""))

    def _folders(self, video: Path) -> list[Path]:
        """The video's own folder and those above it, up to the one above the root."""
        lowest = video.parent
        above = [lowest, *lowest.parents]
        end = above.index(self._root) + 2 if self._root in above else 1
        return above[:end]

    def _beside(self, video: Path, suffixes: Iterable[str]) -> Iterator[Path]:
        """Where files of these suffixes may belong to a video, the nearest first."""
        for suffix in suffixes:
            yield from self._there(video.with_name(f"{name}.{suffix}") for name in (video.stem, video.name))
        for folder in self._folders(video):
            inside = video.relative_to(folder)
            for labels, suffix in itertools.product(self._labels_in(folder), suffixes):
                places = [(labels / inside).with_suffix(f".{suffix}")]
                if inside.parts[0] in VIDEO_FOLDERS:
                    places.append((labels / Path(*inside.parts[1:])).with_suffix(f".{suffix}"))
                yield from self._there(places)

    def _there(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Those of the files that are there, as they are spelt there, or may be in a folder that cannot be listed."""
        for path in paths:
            names = self._names_in(path.parent)
            if names is None:
                yield path
            elif name := names.get(composed(path.name)):
                yield path.with_name(name)

    def _names_in(self, folder: Path) -> dict[str, str] | None:
        """Files that may hold captions, by their name in composed form and with a suffix in small letters.

        None for a folder that cannot be listed.
        """
        if folder not in self._names:
            try:
                paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower()[1:] in _SIDECARS]
                self._names[folder] = {composed(path.stem) + path.suffix.lower(): path.name for path in paths}
            except OSError:
                self._names[folder] = None
        return self._names[folder]

    def _labels_in(self, folder: Path) -> list[Path]:
        if folder not in self._labels:
            self._labels[folder] = [place for name in LABEL_FOLDERS if (place := folder / name).is_dir()]
        return self._labels[folder]

    def _tables_in(self, folder: Path) -> Tables:
        if folder not in self._tables:
            self._tables[folder] = Tables(folder, self._leave_out)
        return self._tables[folder]


def _contents(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield path.read_bytes()
