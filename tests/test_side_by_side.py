"""Labelled pictures beside each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.evaluation.side_by_side import GAP, STRIP, apart, labelled_grid, side_by_side


@given(height=st.integers(1, 40), width=st.integers(1, 120), count=st.integers(2, 5), even=st.booleans())
def test_pictures_come_apart_as_they_were(height, width, count, even):
    draws = np.random.default_rng(height * width + count)
    pictures = [draws.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    page = side_by_side(pictures, [f"view {number}" for number in range(count)])
    if even:  # what H.264 makes of odd sides
        page = np.pad(page, ((0, page.shape[0] % 2), (0, page.shape[1] % 2), (0, 0)), mode="edge")
    for picture, again in zip(pictures, apart(page, count), strict=True):
        assert (again[:height] == picture).all()


@pytest.mark.parametrize("width", [16, 64, 320])
def test_each_label_is_above_its_own_picture_and_white_lies_between(width):
    black = np.zeros((20, width, 3), np.uint8)
    labels = ["original", "", "autoencoder alone"]
    page = side_by_side([black] * 3, labels)
    assert (page[:, width : width + GAP] == 255).all() and (page[STRIP:, :width] == 0).all()
    for number, label in enumerate(labels):
        left = number * (width + GAP)
        assert (page[:STRIP, left : left + width] < 128).any() == bool(label)


def test_small_pictures_are_enlarged_in_a_grid_and_keep_their_places():
    greys = [[np.full((30, 40, 3), value, np.uint8) for value in row] for row in ((10, 60), (110, 200))]
    grid = np.asarray(labelled_grid(greys, ["left", "right"]))
    assert grid.shape == (STRIP + 120 + GAP + 120, 160 + GAP + 160, 3)
    middles = [[int(grid[top + 60, left + 80, 0]) for left in (0, 164)] for top in (STRIP, STRIP + 124)]
    assert middles == [[10, 60], [110, 200]]
    assert (grid[STRIP + 120 : STRIP + 124] == 255).all()
    large = np.full((30, 200, 3), 7, np.uint8)
    assert labelled_grid([[large]], [""]).size == (200, STRIP + 30)
