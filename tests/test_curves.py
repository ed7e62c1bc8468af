"""Reading noisy curves: exact where the answer is known, and never fooled by a single evaluation."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sat_ssvae.comparison.curves import MAX_POINTS, read_crossing, smooth_curve, without_outliers

scores = st.floats(-100, 100, allow_subnormal=False)
steps_of = st.integers(1, 50)


def steps_to_reach(steps, values, target):
    return read_crossing(*smooth_curve(steps, values), target)


@st.composite
def curves(draw, least=1, most=20):
    """Increasing steps and any scores."""
    gaps = draw(st.lists(steps_of, min_size=least, max_size=most))
    steps = [int(step) for step in np.cumsum(gaps)]
    values = draw(st.lists(scores, min_size=len(steps), max_size=len(steps)))
    return steps, values


@st.composite
def slowing_curves(draw):
    """Curves as training gives them without noise: falling, ever more slowly."""
    steps, _ = draw(curves(least=4))
    power = draw(st.floats(0.1, 2))
    return steps, [10.0 * (1 + step) ** -power for step in steps]


def test_crossing_is_linear_in_log_steps():
    steps, values = [100, 200, 400, 800], [4.0, 3.1, 2.2, 2.0]
    assert steps_to_reach(steps, values, 3.1) == pytest.approx(200)
    assert steps_to_reach(steps, values, 2.65) == pytest.approx(math.sqrt(200 * 400))
    assert steps_to_reach(steps, values, 2.0) == 800
    assert steps_to_reach(steps, values, 5.0) == 100
    assert steps_to_reach(steps, values, 1.99) is None


def test_from_step_zero_the_crossing_is_linear_in_steps():
    assert steps_to_reach([0, 100, 200, 300], [8.0, 4.0, 3.0, 2.5], 6.0) == pytest.approx(50)


@given(slowing_curves(), st.floats(0, 1))
def test_noiseless_curves_are_read_as_they_are(curve, where):
    steps, values = curve
    assert smooth_curve(steps, values)[1] == pytest.approx(values)
    target = values[-1] + where * (values[0] - values[-1])
    reached = steps_to_reach(steps, values, target)
    after = next(step for step, value in zip(steps, values, strict=True) if value <= target)
    assert reached is not None and reached <= after + 1e-9


@given(curves(least=4), st.data())
def test_one_lucky_evaluation_never_counts(curve, data):
    """A curve on a plateau above the target stays 'not reached' however low one evaluation falls."""
    steps, _ = curve
    level = data.draw(scores)
    index = data.draw(st.integers(0, len(steps) - 1))
    dip = data.draw(st.floats(0.1, 1e6))
    flat = [level] * len(steps)
    flat[index] -= dip
    assert steps_to_reach(steps, flat, level - 1e-3 * max(1, abs(level))) is None


@given(slowing_curves(), st.data())
def test_one_lucky_evaluation_gains_at_most_its_neighbours_progress(curve, data):
    """On a falling curve a dip moves the crossing by no more than one evaluation, wherever it happens."""
    steps, values = curve
    assume(values[-2] - values[-1] > 1e-6)
    index = data.draw(st.integers(1, len(steps) - 1))
    honest = without_outliers(steps, values)
    dipped = list(values)
    dipped[index] -= data.draw(st.floats(0.01, 1e6))
    read = without_outliers(steps, dipped)
    for i in range(len(steps) - 1):
        assert read[i] >= honest[i + 1] - 1e-9


@given(curves(least=4), st.data())
def test_one_spoiled_evaluation_does_not_hide_what_was_reached(curve, data):
    steps, _ = curve
    assume(len(steps) >= 5)
    flat = [5.0, *[1.0] * (len(steps) - 1)]
    index = data.draw(st.integers(1, len(steps) - 1))
    flat[index] = data.draw(st.sampled_from([50.0, math.inf, math.nan]))
    reached = steps_to_reach(steps, flat, 1.0)
    assert reached is not None and reached <= steps[3]


@given(curves())
def test_a_curve_is_made_non_increasing_by_the_least_squares_projection(curve):
    """Non-increasing, same mean, and orthogonal to what it leaves out (the conditions of the projection)."""
    steps, values = curve
    fit = np.asarray(smooth_curve(steps, values)[1])
    y = np.asarray(without_outliers(steps, values))
    assert (np.diff(fit) <= 1e-9).all()
    assert fit.mean() == pytest.approx(y.mean(), abs=1e-6)
    assert (y - fit) @ fit == pytest.approx(0, abs=1e-6 * (1 + np.abs(y).sum() ** 2))
    # no other non-increasing direction descends: partial sums of the residual are never positive
    assert (np.cumsum(y - fit) <= 1e-6).all()


@given(curves(), st.floats(0.1, 10), scores)
def test_reading_does_not_depend_on_the_units_of_the_score(curve, scale, shift):
    steps, values = curve
    target = float(np.median(values))
    moved = [scale * value + shift for value in values]
    before, after = smooth_curve(steps, values)[1], smooth_curve(steps, moved)[1]
    assert after == pytest.approx([scale * value + shift for value in before], abs=1e-6)
    reached = (
        steps_to_reach(steps, values, target + 1e-6),
        steps_to_reach(steps, moved, scale * target + shift + 1e-5),
    )
    assert reached[1] is not None or reached[0] is None


@given(curves(), scores, scores)
def test_a_milder_target_is_never_reached_later(curve, one, other):
    strict, mild = sorted((one, other))
    late, early = (steps_to_reach(*curve, target) for target in (strict, mild))
    if late is not None:
        assert early is not None and early <= late * (1 + 1e-12)


def test_a_log_of_every_step_is_averaged_into_groups():
    rng = np.random.default_rng(0)
    steps = np.arange(1, 1601)
    truth = 1.0 + 3.0 / np.sqrt(steps)
    noisy = truth + 0.2 * rng.standard_normal(len(steps))
    grouped, fit = smooth_curve(steps.tolist(), noisy.tolist())
    assert len(grouped) == len(fit) == MAX_POINTS
    reached = steps_to_reach(steps.tolist(), noisy.tolist(), 1.15)
    assert reached is not None and 250 < reached < 650  # the noiseless curve is there at 400


def test_a_diverged_run_reaches_nothing():
    assert steps_to_reach([1, 2, 3, 4, 5], [3.0, 2.0, math.nan, math.nan, math.nan], 2.5) is None


@pytest.mark.parametrize(("steps", "values"), [([], []), ([1, 2], [1.0]), ([2, 1], [1.0, 2.0]), ([-1, 1], [1.0, 2.0])])
def test_malformed_curves_are_refused(steps, values):
    with pytest.raises(ValueError, match="steps"):
        steps_to_reach(steps, values, 1.0)
