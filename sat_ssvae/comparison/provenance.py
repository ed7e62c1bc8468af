"""The videos that a comparison trained and judged on, and what was left out and why.

provenance = Provenance.of_clips(train_keys, heldout_keys, {"train": skipped_train, "heldout": skipped_heldout})
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ..data.skips import read_skips

FEW_CLIPS = 30
"""Held-out clips below which a result depends on which clips they are."""
FEW_VIDEOS = 10
"""With fewer held-out videos their spread is hardly known: at ten, Student's t is a sixth wider than the normal."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LeftOut:
    """A video or clip that was not used. split: train or heldout."""

    split: str
    source: str
    cause: str
    detail: str


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Provenance:
    """Clips by video, in order, of the training and the held-out split; and what was left out of either."""

    train: dict[str, int]
    heldout: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def of_clips(cls, train: Iterable[str], heldout: Iterable[str], skipped: Mapping[str, Path]) -> "Provenance":
        """From the clips' keys (`VIDEO@START`) and, by split, the list of what could not be used."""
        left_out = [
            LeftOut(split, skip["source"], skip["cause"], skip["detail"])
            for split, path in skipped.items()
            for skip in read_skips(path)
        ]
        # Several processes that read the same clips may list the same skip.
        return cls(_by_video(train), _by_video(heldout), tuple(dict.fromkeys(left_out)))


def few_warnings(clips: int, videos: int) -> tuple[str, ...]:
    """Warnings for the report if few clips are held out, or clips of few videos."""
    warnings = []
    if clips < FEW_CLIPS:
        warnings.append(
            f"Only {clips} clips are held out: the result depends on which clips these are. Hold out {FEW_CLIPS} or "
            "more (more or longer videos, or a shorter data.heldout_stride)."
        )
    if videos == 1 and clips > 1:
        warnings.append(
            f"All {clips} held-out clips come from one video. Clips of one video are alike, so the intervals are too "
            f"narrow, and nothing is known about other videos. Hold out {FEW_VIDEOS} videos or more."
        )
    elif videos < FEW_VIDEOS:
        warnings.append(
            f"The held-out clips come from only {videos} videos. The intervals allow for it, but so few videos "
            f"hardly show how much videos differ. Hold out {FEW_VIDEOS} or more."
        )
    return tuple(warnings)


def video_of(key: str) -> str:
    """The video that a clip's key `VIDEO@START` names."""
    return key.rpartition("@")[0] or key


def _by_video(keys: Iterable[str]) -> dict[str, int]:
    return dict(Counter(map(video_of, keys)))
