import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.metrics.intervals import MIN_VALUES, mean_interval, written


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.floats(-50, 50))
def test_a_shift_of_the_values_shifts_mean_and_interval(values, shift):
    before, after = mean_interval(values, resamples=200), mean_interval([v + shift for v in values], resamples=200)
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert (before.low is None) == (len(values) < MIN_VALUES)
    if before.low is not None:
        assert min(values) - 1e-9 <= before.low <= before.mean + 1e-9
        assert before.mean - 1e-9 <= before.high <= max(values) + 1e-9
        assert (after.low, after.high) == pytest.approx((before.low + shift, before.high + shift), abs=1e-9)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(300, 30, generator=generator, dtype=torch.float64)
    intervals = [mean_interval(draw.tolist(), resamples=400) for draw in draws]
    covered = sum(interval.low <= 0.5 <= interval.high for interval in intervals) / len(intervals)
    assert 0.89 < covered < 0.99


def test_seeds_decide_the_resamples():
    values = [0.1, 0.5, 0.7, 0.9, 0.2]
    one, same, other = (mean_interval(values, seed=seed, resamples=50) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (-0.004, True, "0.00"),
        (-0.004, False, "0.00"),
        (0.004, True, "0.00"),
        (-1.5, False, "−1.50"),
        (2, True, "+2.00"),
    ],
)
def test_numbers_have_a_true_minus_and_zero_has_no_sign(value, signed, text):
    assert written(value, 2, signed=signed) == text


def test_how_it_reads():
    assert str(mean_interval([1.0, 2.0])) == "1.500"
    assert str(mean_interval([2.0] * 5)) == "2.000 (2.000 to 2.000)"


def test_no_values():
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
