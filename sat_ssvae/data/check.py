"""Read a whole data set once: what training would use, what it would leave out, and why.

report = check_data(CheckConfig(data=DataConfig(path="shards")), Path("."))
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..config import fingerprint
from ..jobs.job import Advance, Item, Job
from ..jobs.ledger import Ledger, claimed, collect, merge
from ..jobs.settings import JobConfig
from .settings import DataConfig
from .shards import FixedClips, clips_by_size
from .skips import SKIPPED_FILE, Skip, SkipLog

CLIPS_IN_PIECE = 256
"""Fewest clips in a piece of work."""


class CheckConfig(JobConfig):
    """What `sat-ssvae check-data` reads."""

    data: DataConfig
    """The clips, as training would read them."""


@dataclass(frozen=True)
class DataReport:
    """Counts of what was read."""

    samples: int
    """Samples that gave at least one clip."""
    clips: int
    """Clips that could be read; those of one sample do not overlap."""
    captions: int
    """Samples among them that have a caption."""
    skipped: dict[str, int]
    """What was left out, by cause: whole samples, or clips of samples."""


class _Block(NamedTuple):
    """A range of the clips of one source and size; `clips` is the number of these."""

    clips: int
    start: int
    stop: int


def check_data(config: CheckConfig, output: Path, *, merged: bool = False) -> DataReport | None:
    """Decode every sample of every source from beginning to end, clip after clip, as training would.

    What cannot be used is listed in skipped.jsonl. A run that was killed continues.

    For a `part`, the results are kept in the folder `output` and None is returned; `merged` combines those of all
    parts instead of reading.

    Raises:
        UserError: a source holds nothing usable, another job works in the folder, or parts are missing.
    """
    part = config.chosen_part
    skips = SkipLog(output / SKIPPED_FILE if part.count == 1 else None, max_share=1)
    sources = [
        clips
        for stream in config.data.streams()
        for clips in clips_by_size(stream.config, stride=stream.config.span + 1 / stream.config.fps, skips=skips)
    ]
    items = [
        Item(f"{number}: clips {start}", stop - start, _Block(number, start, stop))
        for number, clips in enumerate(sources)
        for start, stop in clips.blocks(CLIPS_IN_PIECE)
    ]
    identity = fingerprint(config.identity(), [len(clips) for clips in sources])
    with claimed(output, "check-data", part) as claim:
        ledger = Ledger(output / ".check-data", identity)
        job = Job(partial(_reader, [clips.noting(SkipLog(max_share=1)) for clips in sources]))
        results = merge(items, ledger) if merged else collect(job, items, config, ledger, claim, "checking", "clip")
        if results is None:
            return None
        for skip in (skip for result in results for skip in result["skipped"]):
            skips.failed(Skip(*skip))
        skips.flush()
        ledger.remove()
    clips, samples, captions = (sum(result[name] for result in results) for name in ("clips", "samples", "captions"))
    return DataReport(samples, clips, captions, dict(Counter(skips.counts).most_common()))


@contextlib.contextmanager
def _reader(sources: Sequence[FixedClips], cpus: int | None) -> Iterator[Callable[[_Block, Advance], dict[str, Any]]]:
    """Reads a block of clips, see `Job.open`."""

    def read(block: _Block, advance: Advance) -> dict[str, Any]:
        clips, failed = sources[block.clips].part(block.start, block.stop, cpus)
        captioned: dict[str, bool] = {}
        count = 0
        for clip in clips:
            captioned[clip.key] = bool(clip.caption)
            count += 1
            advance(1)
        counts = {"clips": count, "samples": len(captioned), "captions": sum(captioned.values())}
        return {**counts, "skipped": list(map(astuple, failed))}

    yield read
