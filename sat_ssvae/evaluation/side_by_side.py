"""Pictures of one frame side by side, each with its label above.

page = side_by_side([original, reconstruction], ["original", "reconstruction"])
original, reconstruction = apart(page, 2)
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4
"""White pixels between two pictures."""
STRIP = 18
"""Height of the line of labels, in pixels."""
_ENLARGED = 160
"""Width of small pictures in a grid, in pixels."""
_FONT_SIZES = range(13, 5, -1)


def side_by_side(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Several pictures of one size H W 3 as one, uint8 (H + 18) W' 3, with white gaps of 4 pixels between them."""
    height, width, _ = pictures[0].shape
    page = np.full((height + STRIP, len(pictures) * (width + GAP) - GAP, 3), 255, np.uint8)
    page[:STRIP] = _strip(tuple(labels), width)
    for number, picture in enumerate(pictures):
        left = number * (width + GAP)
        page[STRIP:, left : left + width] = picture
    return page


def apart(page: np.ndarray, columns: int) -> list[np.ndarray]:
    """The two or more pictures of a page, without their labels; a codec may have made the page's sides even."""
    width = (page.shape[1] + GAP) // columns - GAP
    return [page[STRIP:, left : left + width] for left in range(0, columns * (width + GAP), width + GAP)]


def labelled_grid(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str]) -> Image.Image:
    """Rows of pictures, uint8 H W 3 of one size, enlarged to 160 pixels in width, with the labels above the first."""
    first, *others = [side_by_side([_enlarged(picture) for picture in row], labels) for row in rows]
    gap = np.full((GAP, first.shape[1], 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([first, *(part for page in others for part in (gap, page[STRIP:]))]))


def _enlarged(picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    if width >= _ENLARGED:
        return picture
    size = _ENLARGED, round(height * _ENLARGED / width)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


@lru_cache(maxsize=8)
def _strip(labels: tuple[str, ...], width: int) -> np.ndarray:
    """The line of labels, each over the middle of its picture, as large as fits there."""
    image = Image.new("RGB", (len(labels) * (width + GAP) - GAP, STRIP), "white")
    draw = ImageDraw.Draw(image)
    fonts = [ImageFont.load_default(size) for size in _FONT_SIZES]
    for number, label in enumerate(labels):
        font = next((font for font in fonts if draw.textlength(label, font) <= width), fonts[-1])
        cell = Image.new("RGB", (width, STRIP), "white")  # a label that still does not fit is cut off there
        ImageDraw.Draw(cell).text((width // 2, STRIP // 2), label, "black", font, anchor="mm")
        image.paste(cell, (number * (width + GAP), 0))
    return np.asarray(image)
