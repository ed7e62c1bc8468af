"""Reading everything once: what of a data set training would use, and what not and why.

report = check_data(DataConfig(path="shards"), SkipLog(Path("skipped.jsonl")))
"""

from collections import Counter
from dataclasses import dataclass

from ..progress import progress_bar
from .settings import DataConfig
from .shards import fixed_clips
from .skips import SkipLog


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
        config: as for training; each source is read in its first size, without a held-out part.
        skips: receives what cannot be used; should not raise (`max_share=1`).

    Raises:
        UserError: nothing usable in one of the sources.
    """
    captioned: dict[str, bool] = {}
    clips = 0
    for stream in config.streams():
        single = stream.config.model_copy(update={"resolution": stream.config.sizes[0], "buckets": ()})
        stride = (single.num_frames - 1) / single.fps + 1 / single.fps
        places = fixed_clips(single, stride=stride, skips=skips)
        for clip in progress_bar(places, "checking", "clip"):
            clips += 1
            captioned[clip.key] = bool(clip.caption)
    by_cause = Counter(skips.counts)
    return DataReport(len(captioned), clips, sum(captioned.values()), dict(by_cause.most_common()))
