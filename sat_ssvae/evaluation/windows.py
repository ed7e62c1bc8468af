"""A video of any length in windows of one length, which overlap and are cross-faded when they are joined again.

for frames in join(restored(windows(video, 9, overlap=2)), overlap=2): ...
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """Frames `... T H W`; only the first `real` of them are the video's, the others repeat its last one."""

    video: Tensor
    real: int


def windows(frames: Iterable[Tensor], length: int, overlap: int) -> Iterator[Window]:
    """Cut frames `... H W` into windows `... T H W`, T = `length`.

    The first `overlap` (less than `length`) frames of a window are the last ones of the window before. The last window
    is filled up with copies of the last frame.
    """
    remaining = iter(frames)
    kept = list(islice(remaining, length))
    while kept:
        yield Window(torch.stack(kept + kept[-1:] * (length - len(kept)), -3), len(kept))
        more = list(islice(remaining, length - overlap))
        kept = kept[length - overlap :] + more if more else []


def join(parts: Iterable[Window], overlap: int) -> Iterator[Tensor]:
    """The frames of windows `... T H W` of one length, in pieces, as soon as they are final.

    Over the shared frames one window fades linearly into the next.
    """
    tail: Tensor | None = None
    for part, real in parts:
        video, length = part, part.shape[-3]
        if tail is not None and overlap:
            weight = (torch.arange(1, overlap + 1).to(video) / (overlap + 1)).view(-1, 1, 1)
            video = torch.cat([tail.lerp(part[..., :overlap, :, :], weight), part[..., overlap:, :, :]], dim=-3)
        final = min(real, length - overlap)
        yield video[..., :final, :, :]
        tail = video[..., final:real, :, :]
    if tail is not None and tail.shape[-3]:
        yield tail
