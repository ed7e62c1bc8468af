"""The demo's clips: a film and some live footage, split by time into training and held-out shards.

    demo = prepare_demo(Path("demo"), resolution=64)

Of about every minute (of a shorter clip: of its length) the last fifth is held out; a second on both sides
of it is left out.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..assets import attribution, fetch
from ..errors import UserError
from ..storage import write_text
from .pack import PackConfig, PackItem, pack
from .video_io import probe

logger = logging.getLogger(__name__)

FILM = "big_buck_bunny"
FILM_START, FILM_END = 8.0, 490.0
"""Seconds of the film between its title and its closing credits."""
LIVE_CLIPS = ("bikes", "carphone", "faces", "single_face", "skyline")
_MAX_FPS = 30.0  # the film has 24, so clips at 24, 12, 8 or 6 fps move evenly
PERIOD_SECONDS = 60.0
"""Seconds, about; a film is cut into equal periods."""
HELDOUT_SHARE = 0.2
HELDOUT_GAP = 1.0
MIN_HELDOUT_SECONDS = 1.5
"""Seconds; a part shorter than this holds no clip worth scoring, so a short clip is for training only."""

_ORIGIN = "Clips, scaled down and cut; training and held-out ones are different stretches of the same films.\n\n"


@dataclass(frozen=True)
class DemoData:
    """Two folders of shards and the text that names the authors of their content."""

    train: Path
    heldout: Path
    attribution: Path


def prepare_demo(output: Path, *, resolution: int, film_seconds: float = FILM_END - FILM_START) -> DemoData:
    """Fetch the clips and pack them, short side `resolution` pixels; finished work is not repeated.

    `output` receives the folders train and heldout, and ATTRIBUTION.txt. Clips that have fewer pixels are left out;
    `film_seconds` of the film are used, from its start.

    Raises:
        UserError: no network, no space left, a folder with other content.
    """
    parts = {name: list(_parts(name, resolution, film_seconds)) for name in (FILM, *LIVE_CLIPS)}
    if not any(parts.values()):
        raise UserError(f"the demo's clips have at most 720 rows: choose a resolution below {resolution}")
    config = PackConfig(
        max_short_side=resolution, max_fps=_MAX_FPS, crf=14, keyframe_seconds=0.5, workers=2, captions="none"
    )
    train, heldout = (
        [item for some in parts.values() for item, held in some if held == kind] for kind in (False, True)
    )
    pack(train, output / "train", config.model_copy(update={"segment_seconds": 6.0}))
    pack(heldout, output / "heldout", config)
    text = output / "ATTRIBUTION.txt"
    write_text(text, _ORIGIN + attribution([name for name in parts if parts[name]]))
    return DemoData(output / "train", output / "heldout", text)


def _parts(name: str, resolution: int, film_seconds: float) -> Iterator[tuple[PackItem, bool]]:
    """The parts of a clip, with whether they are held out; none if it has too few pixels."""
    path = fetch(name)
    info = probe(path)
    if min(info.height, info.width) < resolution:
        logger.info("demo: %s has %dx%d pixels, left out at %d", name, info.height, info.width, resolution)
        return
    first, last = (FILM_START, min(FILM_END, FILM_START + film_seconds)) if name == FILM else (0.0, info.duration)
    for start, end, held in split_by_time(first, last):
        yield PackItem(path, name, start=start, end=end), held


def split_by_time(first: float, last: float) -> Iterator[tuple[float, float, bool]]:
    """Cut [first, last) seconds into (start, end, held out) parts, `HELDOUT_GAP` seconds between the two kinds."""
    count = max(1, round((last - first) / PERIOD_SECONDS))
    period = (last - first) / count
    for number in range(count):
        start = first + number * period
        train_start = start + HELDOUT_GAP if number else start
        held_start = start + (1 - HELDOUT_SHARE) * period
        if start + period - held_start < MIN_HELDOUT_SECONDS:
            yield train_start, start + period, False
        else:
            yield train_start, held_start - HELDOUT_GAP, False
            yield held_start, start + period, True
