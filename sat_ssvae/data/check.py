"""Reading everything once: what of a data set training would use, and what not and why.

report = check_data(DataConfig(path="shards"), SkipLog(Path("skipped.jsonl")))
"""

from collections import Counter
from dataclasses import dataclass

from ..config import Config
from ..progress import progress_bar
from .settings import DataConfig
from .shards import clips_by_size
from .skips import SkipLog


class CheckConfig(Config):
    """What `sat-ssvae check-data` reads."""

    data: DataConfig
    """The clips, as training would read them."""


@dataclass(frozen=True)
class DataReport:
    """Counts of what was read."""

    samples: int
    """Samples that gave at least one clip."""
    clips: int
    """Clips side by side that could be read."""
    captions: int
    """Samples among them that have a caption."""
    skipped: dict[str, int]
    """What was left out, by cause: whole samples, or clips of samples."""


def check_data(config: DataConfig, skips: SkipLog) -> DataReport:
    """Decode all of every sample of every source, clip after clip, as training would.

    Args:
        config: as for training.
        skips: receives what cannot be used; should not raise (`max_share=1`).

    Raises:
        UserError: nothing usable in one of the sources.
    """
    captioned: dict[tuple[int, str], bool] = {}  # sources may have names in common
    clips = 0
    for number, stream in enumerate(config.streams()):
        stride = stream.config.span + 1 / stream.config.fps
        for places in clips_by_size(stream.config, stride=stride, skips=skips):
            for clip in progress_bar(places, "checking", "clip"):
                clips += 1
                captioned[number, clip.key] = bool(clip.caption)
    by_cause = Counter(skips.counts)
    return DataReport(len(captioned), clips, sum(captioned.values()), dict(by_cause.most_common()))
