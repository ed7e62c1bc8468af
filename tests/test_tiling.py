"""Tiles: windows cover every position with weights that add up to 1, and blending comes near to the whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae import UserError
from sat_ssvae.vae.tiling import OVERLAP, blend_tiles, spans

from .small_models import random_video, tiny_vae


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 4))
def test_windows_cover_an_axis_and_their_weights_add_up_to_one(size, tile, scale):
    total = torch.zeros(size * scale)
    parts = spans(size, tile, scale)
    for window in parts:
        assert 0 <= window.start < window.stop <= size
        assert window.stop - window.start == min(tile, size)
        assert (window.weight > 0).all()
        total[window.of_scale(scale)] += window.weight
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(a.stop - b.start >= int(tile * OVERLAP) for a, b in pairwise(parts))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_what_acts_on_single_positions_is_not_changed_by_tiles(height, width, tile):
    x = torch.randn(1, 2, 1, height, width, generator=torch.Generator().manual_seed(0))
    doubled = blend_tiles(lambda part: 2 * part.repeat_interleave(3, 3).repeat_interleave(3, 4), x, tile, 1, 3)
    torch.testing.assert_close(doubled, 2 * x.repeat_interleave(3, 3).repeat_interleave(3, 4))
    fine = doubled.repeat_interleave(2, 3).repeat_interleave(2, 4)
    pooled = blend_tiles(lambda part: part[..., ::2, ::2], fine, tile, 6, 3)
    torch.testing.assert_close(pooled, doubled)


def test_a_tile_as_large_as_the_frame_is_the_whole():
    vae, x = tiny_vae(), random_video(5, 16, 24)
    with torch.no_grad():
        whole, tiled = vae.encode(x), vae.encode(x, tile_size=32)
        assert torch.equal(tiled.mean, whole.mean) and torch.equal(tiled.logvar, whole.logvar)
        assert torch.equal(vae.decode(whole.mean, tile_size=24), vae.decode(whole.mean))


def test_tiles_come_near_to_the_whole_and_the_nearer_the_larger_they_are():
    vae, x = tiny_vae(), random_video(3, 64, 64)
    with torch.no_grad():
        z = vae.encode(x).mean
        whole = vae.decode(z)
        small, large = ((vae.decode(z, chunk_frames=2, tile_size=size) - whole).std() for size in (8, 40))
        assert large < 0.5 * small
        assert large < 0.3 * whole.std()  # random weights: the border's influence does not fade as trained ones let it
        assert (vae.encode(x, tile_size=40).mean - z).std() < 0.3 * z.std()


@pytest.mark.parametrize("size", [0, 3, -4])
def test_a_tile_of_an_impossible_size_is_one_line(size):
    with pytest.raises(UserError, match=r"must be a multiple of 4"):
        tiny_vae().encode(random_video(1), tile_size=size)
