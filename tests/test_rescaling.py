"""Latents and videos that shrink together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.spectral.rescaling import draw_factor, shrink


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(2, 4))
def test_the_smaller_video_has_the_size_that_the_smaller_latents_decode_to(height, width, ratio, factor):
    latents, video = torch.zeros(2, 4, 3, height, width), torch.zeros(2, 3, 9, height * ratio, width * ratio)
    small, target = shrink(latents, video, factor)
    assert small.shape == (2, 4, 3, max(height // factor, 1), max(width // factor, 1))
    assert target.shape[-2:] == tuple(side * ratio for side in small.shape[-2:])
    assert target.shape[:3] == video.shape[:3]


def test_both_are_averages_over_areas():
    latents, video = torch.rand(1, 2, 2, 4, 6), torch.rand(1, 3, 5, 16, 24)
    small, target = shrink(latents, video, 2)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool3d(latents, (1, 2, 2)))
    torch.testing.assert_close(target, torch.nn.functional.avg_pool3d(video, (1, 2, 2)))


def test_a_single_factor_draws_nothing_and_several_are_all_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw_factor((2,), generator) == 2
    assert torch.equal(generator.get_state(), before)
    assert {draw_factor((2, 3, 4), generator) for _ in range(50)} == {2, 3, 4}


@pytest.mark.parametrize("size", [(1, 1), (1, 7)])
def test_a_single_position_stays(size):
    small, _ = shrink(torch.zeros(1, 1, 1, *size), torch.zeros(1, 3, 1, size[0] * 4, size[1] * 4), 4)
    assert small.shape[-2] == 1
