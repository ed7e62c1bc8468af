"""Moving and still pictures for the report: clips tiled into one grid, as animated WebP, PNG and mp4."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...data.video_io import to_uint8, to_unit_range, write_video

COLUMNS = 4
_CELL = 160
"""Width of a clip in the report, in pixels: small clips are enlarged to it."""
_GAP = 4
_TITLE = 22
"""Height of a line of titles, in pixels."""


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


def tile(clips: Sequence[Tensor], columns: int = COLUMNS) -> Tensor:
    """Clips (each `T H W 3`) as one clip, row by row on white; shorter ones rest on their last frame."""
    frames, height, width = (max(clip.shape[i] for clip in clips) for i in range(3))
    columns = min(columns, len(clips))
    rows = -(-len(clips) // columns)
    size = rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP
    grid = torch.full((frames, *size, 3), 255, dtype=torch.uint8)
    for i, clip in enumerate(clips):
        top, left = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        held = torch.cat([clip, clip[-1:].expand(frames - len(clip), -1, -1, -1)])
        grid[:, top : top + clip.shape[1], left : left + clip.shape[2]] = held
    return grid


def enlarge(clips: Sequence[Tensor], width: int = _CELL) -> list[Tensor]:
    """Clips scaled to `width` pixels (Lanczos); wider ones keep their size."""
    return [torch.stack([_resized(frame, width) for frame in clip]) for clip in clips]


def spread(clips: Tensor, count: int) -> Tensor:
    """`count` of the clips as uint8, evenly spread: neighbours show the same scene."""
    return to_uint8(clips[spread_places(len(clips), count)])


def spread_places(clips: int, count: int) -> Tensor:
    """Which clips `spread` takes of so many."""
    return torch.linspace(0, clips - 1, min(count, clips)).long()


def as_pictures(clips: Tensor) -> list[Tensor]:
    """uint8 `N C T H W` as a list of `T H W C`."""
    return list(clips.permute(0, 2, 3, 4, 1))


def labelled_grid(rows: Sequence[Sequence[Tensor]], titles: Sequence[str], width: int = _CELL) -> Image.Image:
    """Rows of pictures `H W 3` of one size, enlarged to `width` pixels, with a title above each column."""
    cells = [enlarge([picture[None] for picture in row], width) for row in rows]
    grid = tile([cell for row in cells for cell in row], len(titles))[0]
    page = Image.new("RGB", (grid.shape[1], grid.shape[0] + _TITLE), "white")
    page.paste(Image.fromarray(grid.numpy()), (0, _TITLE))
    draw = ImageDraw.Draw(page)
    step = cells[0][0].shape[2] + _GAP
    for number, title in enumerate(titles):
        draw.text((number * step + step // 2, _TITLE // 2), title, "black", ImageFont.load_default(13), anchor="mm")
    return page


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


def _resized(frame: Tensor, width: int) -> Tensor:
    height, own, _ = frame.shape
    if own >= width:
        return frame
    image = Image.fromarray(frame.numpy()).resize((width, round(height * width / own)), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
