"""Which videos a comparison trained and judged on, and what was left out and why.

provenance = Provenance.of_clips(train_keys, heldout_keys, {"train": skipped_train, "heldout": skipped_heldout})
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ..data.skips import read_skips

FEW_CLIPS = 30
"""Held-out clips below which a result hangs on which clips they are."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LeftOut:
    """A video or clip that was not used. split: train or heldout."""

    split: str
    source: str
    cause: str
    detail: str


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Provenance:
    """Clips by video, in order, of the training and the held-out split; and what of either was left out."""

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
        return cls(_by_video(train), _by_video(heldout), tuple(left_out))


def few_clips_warning(heldout: int) -> tuple[str, ...]:
    """What a reader must know where few clips are held out; nothing if there are enough."""
    if heldout >= FEW_CLIPS:
        return ()
    return (
        f"Only {heldout} clips are held out: the result hangs on which clips these are. Hold out {FEW_CLIPS} or more "
        "(more or longer videos, or a shorter data.heldout_stride).",
    )


def _by_video(keys: Iterable[str]) -> dict[str, int]:
    return dict(Counter(key.rpartition("@")[0] or key for key in keys))
