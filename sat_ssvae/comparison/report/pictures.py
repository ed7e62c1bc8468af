"""The clips that a report shows, and their files beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...data.video_io import to_uint8, to_unit_range, write_video
from ...spacing import evenly_spaced


@dataclass(frozen=True)
class Pictures:
    """Clips to show, each uint8 of shape `T H W 3`; all of one size, the arms' in the order of the originals.

    originals: held-out clips. reconstructions: by arm, of these clips. samples: by arm, then by transformer
    step, from the same noise at every step and in every arm. fps: frames a second. names: of the originals. psnr: of
    the reconstructions in dB, by arm.
    """

    fps: float
    originals: Sequence[Tensor]
    reconstructions: Mapping[str, Sequence[Tensor]]
    samples: Mapping[str, Mapping[int, Sequence[Tensor]]]
    names: Sequence[str] = ()
    psnr: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError when a clip is no uint8 `T H W 3`."""
        stepwise = [clip for steps in self.samples.values() for clips in steps.values() for clip in clips]
        rebuilt = [clip for clips in self.reconstructions.values() for clip in clips]
        for clip in (*self.originals, *rebuilt, *stepwise):
            if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
                raise ValueError(f"clips to show are uint8 T H W 3, got {clip.dtype} {tuple(clip.shape)}")


def spread(clips: Tensor, count: int) -> Tensor:
    """`count` of the clips as uint8, evenly spread: neighbours show the same scene."""
    return to_uint8(clips[evenly_spaced(len(clips), count)])


def as_pictures(clips: Tensor) -> list[Tensor]:
    """uint8 `N C T H W` as a list of `T H W C`."""
    return list(clips.permute(0, 2, 3, 4, 1))


def write_clips(pictures: Pictures, folder: Path) -> None:
    """All clips as `original-00.mp4`, `ARM-reconstruction-00.mp4`, `ARM-sample-00.mp4` (of the last step).

    Clips of an earlier report are removed.
    """
    named = {"original": pictures.originals}
    named |= {f"{arm}-reconstruction": clips for arm, clips in pictures.reconstructions.items()}
    named |= {f"{arm}-sample": steps[max(steps)] for arm, steps in pictures.samples.items() if steps}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        folder / f"{file_name(name)}-{i:02d}.mp4": clip for name, clips in named.items() for i, clip in enumerate(clips)
    }
    for stale in set(folder.glob("*.mp4")) - set(paths):
        stale.unlink()
    for path, clip in paths.items():
        write_video(path, to_unit_range(clip.permute(3, 0, 1, 2).contiguous()), pictures.fps)


def file_name(text: str) -> str:
    """A name for files that every system takes: letters, digits, dot, minus and underscore."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return kept.strip(".-") or "unnamed"
