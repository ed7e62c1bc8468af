"""The videos that a CogVideoX configuration trains on, as CogVideoX's SFTDataset will read them.

    problems, notes = inspect_videos(config)

Some videos stop a training run midway, with a message that names neither the file nor the reason.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..data.files import VideoError
from ..data.headers import stored_frames
from ..data.video_io import VideoInfo, probe
from ..errors import and_more
from ..latents.dataset import INFO_NAME, latent_folders
from .sat_config import SATConfig
from .sections import Mismatch

MAX_PROBED = 500
"""Videos of a folder, evenly spread, of which the headers are read."""


def inspect_videos(config: SATConfig) -> tuple[list[Mismatch], list[str]]:
    """(problems that stop training, notes) on the videos of `args.train_data` and `args.valid_data`.

    Nothing is read for configurations that sample, or that train on latents.
    """
    problems: list[Mismatch] = []
    notes: list[str] = []
    if config.samples or not str(config.get("data.target")).endswith(".SFTDataset"):
        return problems, notes
    train, valid = config.folders("train_data"), config.folders("valid_data")
    keys = dict.fromkeys(valid, "args.valid_data") | dict.fromkeys(train, "args.train_data")
    for name, key in keys.items():
        folder = _Folder(config, key, Path(name))
        problems += folder.problems()
        notes += folder.notes()
    return problems, notes


class _Folder:
    def __init__(self, config: SATConfig, key: str, folder: Path) -> None:
        self.config, self.key, self.folder = config, key, folder
        self.paths = sorted(path for path in folder.rglob("*") if path.name.endswith(".mp4"))
        self.looked_at = self.paths[:: -(-len(self.paths) // MAX_PROBED) or 1]
        self.infos: dict[Path, VideoInfo] = {}
        self.unreadable: dict[Path, str] = {}
        for path in self.looked_at:
            try:
                self.infos[path] = probe(path)
            except VideoError as error:
                self.unreadable[path] = str(error)

    def problems(self) -> Iterator[Mismatch]:
        if not self.paths:
            yield Mismatch(self.key, self.folder, "a folder of .mp4 videos", self._what_is_there())
        for path, reason in islice(self.unreadable.items(), 1):
            yield Mismatch(self.key, path, "a readable video", f"{reason}{and_more(self.unreadable)}")
        yield from self._too_slow()
        yield from self._too_short()
        empty = [path for path in map(_caption, self.paths) if path.is_file() and not path.stat().st_size]
        for path in empty[:1]:
            yield Mismatch(self.key, path, "a caption in the first line", f"the file is empty{and_more(empty)}")

    def notes(self) -> Iterator[str]:
        without = [path for path in self.paths if not _caption(path).is_file()]
        if without:
            yield (
                f"{self.folder}: {len(without)} of {len(self.paths)} videos have no caption and are trained on with an "
                f"empty prompt; there is no {_caption(without[0])}"
            )
        height, width = self.config.get("data.params.video_size") or (0, 0)
        small = [path for path, info in self.infos.items() if info.height < height or info.width < width]
        if small:
            info = self.infos[small[0]]
            yield (
                f"{self.folder}: {len(small)} of {len(self.infos)} videos are smaller than data.params.video_size "
                f"[{height}, {width}] and will be enlarged; {small[0]} has [{info.height}, {info.width}]"
            )
        trimmed = [path for path, info in self.infos.items() if stored_frames(path) > info.frames]
        if trimmed:  # findings/decord_trimmed_mp4_goes_backwards.sh
            yield (
                f"{self.folder}: {len(trimmed)} of {len(self.infos)} videos were trimmed without encoding them again, "
                f"and SFTDataset's clips of them jump back in time; encode {trimmed[0]}{and_more(trimmed)} again"
            )

    def _what_is_there(self) -> str:
        if any((folder / INFO_NAME).is_file() for folder in latent_folders(self.folder)):
            return "it holds encoded latents; give latents.yaml last"
        return "it holds none" if self.folder.is_dir() else f"there is no such folder in {Path.cwd()}"

    def _too_slow(self) -> Iterator[Mismatch]:
        fps, longest = self.config.get("data.params.fps"), self.config.get("data.params.max_num_frames")
        if not fps or not longest:
            return
        slow = [p for p, info in self.infos.items() if info.fps < fps and info.frames / info.fps * fps > longest]
        if slow:
            lowest = min(self.infos[path].fps for path in slow)
            why = f"{slow[0]} has {self.infos[slow[0]].fps:g}{and_more(slow)}; the data set divides by zero there"
            yield Mismatch("data.params.fps", fps, f"at most {lowest:g}", why)

    def _too_short(self) -> Iterator[Mismatch]:
        skipped = self.config.get("data.params.skip_frms_num")
        least = 2 * int(3 if skipped is None else skipped)
        short = [path for path, info in self.infos.items() if info.frames <= least]
        if short:
            why = f"{least} are skipped; {short[0]} has {self.infos[short[0]].frames}{and_more(short)}"
            yield Mismatch(self.key, self.folder, f"videos of more than {least} frames", why)


def _caption(video: Path) -> Path:
    """Where SFTDataset looks for a video's caption."""
    return Path(str(video).replace(".mp4", ".txt").replace("videos", "labels"))
