"""The clips of a comparison's two splits.

split_clips(layout, "train")        # all, one after the other
heldout_clips(layout)               # N C T H W in [-1, 1]
"""

from pathlib import Path

import torch
from torch import Tensor

from ..config import parse_config
from ..data.demo import prepare_demo
from ..data.shards import DataConfig, FixedClips, fixed_clips
from ..data.skips import SkipLog
from ..errors import UserError
from .layout import Layout
from .settings import ClipSource, CompareConfig, Split

FEWEST = 8
"""Held-out clips that scores need at least."""


def demo_source(config: CompareConfig, output: Path) -> ClipSource:
    """The demo's clips, made if they do not exist yet."""
    resolution = config.data.resolution
    short_side = resolution if isinstance(resolution, int) else min(resolution)
    folder = output / f"clips-{short_side}-{config.film_seconds:g}s"
    demo = prepare_demo(folder, resolution=short_side, film_seconds=config.film_seconds)
    return ClipSource.separate(demo.train, demo.heldout, demo.attribution.read_text(encoding="utf-8"))


def split_clips(layout: Layout, split: Split) -> FixedClips:
    """All clips of a split, in a fixed order."""
    clips, held_out = layout.config.data, split == "heldout"
    return fixed_clips(
        parse_config(DataConfig, layout.source.data(clips, split)),
        stride=clips.heldout_stride if held_out else clips.train_stride,
        limit=clips.max_heldout if held_out else None,
        skips=SkipLog(layout.skipped(split)),
    )


def heldout_clips(layout: Layout) -> Tensor:
    """All held-out clips, N C T H W in [-1, 1].

    Raises:
        UserError: there are fewer than 8.
    """
    videos = [clip.video for clip in split_clips(layout, "heldout")]
    if len(videos) < FEWEST:
        raise UserError(
            f"{layout.source.path['heldout']}: {len(videos)} held-out clips, a comparison needs {FEWEST} at least "
            "(100 to say much); give more or longer videos, or a shorter data.heldout_stride"
        )
    return torch.stack(videos)
