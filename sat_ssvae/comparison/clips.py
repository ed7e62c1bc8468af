"""The clips of a comparison's two splits.

clips = SplitClips(config, source, layout.skipped)
clips.heldout()                     # N C T H W in [-1, 1]
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import parse_config
from ..data.demo import prepare_demo
from ..data.shards import DataConfig, FixedClips, fixed_clips
from ..data.skips import SkipLog
from ..errors import UserError
from .settings import ClipsConfig, ClipSource, CompareConfig, Split

FEWEST = 8
"""Held-out clips that scores need at least."""


def demo_source(config: CompareConfig, output: Path) -> ClipSource:
    """The demo's clips, made if they do not exist yet."""
    resolution = config.data.resolution
    short_side = resolution if isinstance(resolution, int) else min(resolution)
    folder = output / f"clips-{short_side}-{config.film_seconds:g}s"
    demo = prepare_demo(folder, resolution=short_side, film_seconds=config.film_seconds)
    return ClipSource.separate(demo.train, demo.heldout, demo.attribution.read_text(encoding="utf-8"))


def split_data(config: ClipsConfig, source: ClipSource, split: Split) -> dict[str, Any]:
    """The `data` section of a training on a split."""
    return config.data(source.path[split], source.part[split])


@dataclass(frozen=True)
class SplitClips:
    """Clips by split; skipped: the file that lists the unusable clips of a split."""

    config: ClipsConfig
    source: ClipSource
    skipped: Callable[[Split], Path]

    def __call__(self, split: Split) -> FixedClips:
        """All clips of a split, in a fixed order."""
        clips, held_out = self.config, split == "heldout"
        return fixed_clips(
            parse_config(DataConfig, split_data(clips, self.source, split)),
            stride=clips.heldout_stride if held_out else clips.train_stride,
            limit=clips.max_heldout if held_out else None,
            skips=SkipLog(self.skipped(split)),
        )

    def heldout(self) -> Tensor:
        """All held-out clips, N C T H W in [-1, 1].

        Raises:
            UserError: there are fewer than 8.
        """
        videos = [clip.video for clip in self("heldout")]
        if len(videos) < FEWEST:
            raise UserError(
                f"{self.source.path['heldout']}: {len(videos)} held-out clips, a comparison needs {FEWEST} at least "
                "(100 to say much); give more or longer videos, or a shorter data.heldout_stride"
            )
        return torch.stack(videos)
