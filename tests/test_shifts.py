import pytest

from sat_ssvae.comparison.shifts import best_shift

FRAME, CLIP = "kernel_distance_real/frame", "kernel_distance_real/clip"


def test_the_smallest_sum_of_ranks_wins():
    scores = {1.0: {FRAME: 3.0, CLIP: 0.2}, 2.0: {FRAME: 2.0, CLIP: 0.1}, 4.0: {FRAME: 1.0, CLIP: 0.3}}
    assert best_shift(scores) == 2.0


def test_of_equal_shifts_the_one_that_changes_least_wins():
    scores = {4.0: {FRAME: 1.0, CLIP: 2.0}, 0.5: {FRAME: 2.0, CLIP: 1.0}, 8.0: {FRAME: 9.0, CLIP: 9.0}}
    assert best_shift(scores) == 0.5


def test_only_samples_count():
    scores = {1.0: {FRAME: 1.0, "loss": 9.0, "denoising_error_real/0.5": 9.0}, 2.0: {FRAME: 2.0, "loss": 0.0}}
    assert best_shift(scores) == 1.0
    with pytest.raises(ValueError, match="no shift"):
        best_shift({1.0: {"loss": 1.0}})
