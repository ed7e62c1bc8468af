"""Intervals over videos: they hold the truth where clips of one video are alike, and stay usable where they are not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sat_ssvae.comparison.clusters import (
    VideoResampling,
    mean_over_videos,
    over_videos,
    student_interval,
    video_numbers,
)
from sat_ssvae.comparison.results import Estimate
from sat_ssvae.metrics.kernel_distance import bootstrap_counts, bootstrap_distances, kernel_distance

SIZES = (12, 12, 12, 12, 12, 12, 12, 12, 1, 3, 1)
"""Clips by video in the demo."""


def keys(sizes):
    return [f"clips/{video}.mp4@{start}" for video, size in enumerate(sizes) for start in range(size)]


def clustered(rng, sizes, share, columns=1):
    """Standard normal values of clips; `share` of their variance is common to a video's clips."""
    videos = np.repeat(np.arange(len(sizes)), sizes)
    common = rng.standard_normal((len(sizes), columns))[videos]
    return np.sqrt(share) * common + np.sqrt(1 - share) * rng.standard_normal((len(videos), columns))


def test_videos_are_numbered_and_clips_count_where_nothing_is_known_of_videos():
    assert video_numbers(["b@0", "a@0", "b@0.5", "c@d@2"]).tolist() == [1, 0, 1, 2]
    assert video_numbers(keys((1,) * 9)) is None  # one clip a video: they are independent
    assert video_numbers(keys((9,))) is video_numbers(keys((100, 1))) is video_numbers([]) is None
    assert video_numbers(keys((5, 5))) is not None


@given(st.lists(st.floats(-9, 9), min_size=4, max_size=12), st.integers(2, 5))
def test_equal_clips_of_a_video_count_once(values, repeats):
    """However often a video's clip is repeated, the interval is Student's over videos."""
    low, high = student_interval(np.repeat(values, repeats), np.repeat(np.arange(len(values)), repeats))
    expected = student_interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert (high - low) / 2 == pytest.approx(half, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("sizes", [SIZES, (9, 9, 9, 9), (2,) * 60])
def test_the_interval_of_a_mean_holds_the_truth(sizes, share):
    """In 95 of 100 trials, give or take; taking the clips as independent fails where they are alike."""
    rng, videos, trials = np.random.default_rng(len(sizes)), video_numbers(keys(sizes)), 400
    held = alone = 0
    for _ in range(trials):
        values = clustered(rng, sizes, share)[:, 0]
        for over, low_high in ((True, student_interval(values, videos)), (False, student_interval(values))):
            covered = low_high[0] <= 0 <= low_high[1]
            held, alone = held + (over and covered), alone + (not over and covered)
    assert 0.92 * trials <= held <= 0.995 * trials
    if share == 0.9 and max(sizes) > 2:
        assert alone < 0.75 * trials


def distances(rng, sizes, share, shift=0.5):
    """A kernel distance of independent samples to clustered clips, as a comparison stores it."""
    count = sum(sizes)
    x = torch.from_numpy(rng.standard_normal((count, 4)) + shift)
    y = torch.from_numpy(clustered(rng, sizes, share, 4))
    return Estimate(kernel_distance(x, y), None, None, tuple(bootstrap_distances(x, y, resamples=200).tolist()))


@pytest.mark.parametrize(("sizes", "share"), [(SIZES, 0.0), (SIZES, 0.8), ((2,) * 40, 0.5)])
def test_the_interval_of_a_kernel_distance_holds_the_truth(sizes, share):
    """Resampling clips does not where they are alike."""
    rng, trials = np.random.default_rng(7), 60
    draws = [torch.from_numpy(rng.standard_normal((2000, 4)) + shift) for shift in (0.5, 0.0)]
    truth, estimates = kernel_distance(*draws), [distances(rng, sizes, share) for _ in range(trials)]
    counts = bootstrap_counts((sum(sizes), sum(sizes)), resamples=200)[1].numpy()
    over = [over_videos(estimate, counts, keys(sizes)) for estimate in estimates]
    assert sum(one.low <= truth <= one.high for one in over) >= 0.9 * trials
    alone = sum(abs(one.value - truth) <= 1.96 * np.std(one.resamples) for one in estimates)
    assert (alone < 0.8 * trials) == (share == 0.8)
    # Not much wider than the estimates spread, either.
    spread = 1.96 * np.std([one.value for one in estimates])
    assert np.median([one.high - one.value for one in over]) < 1.6 * spread


def test_what_two_scores_have_in_common_cancels():
    """Two scores that differ by what the clips do not decide keep a narrow difference."""
    rng = np.random.default_rng(0)
    counts = bootstrap_counts((len(keys(SIZES)),) * 2, resamples=200)[1].numpy()
    first = distances(rng, SIZES, 0.9)
    other = Estimate(first.value * 1.1, None, None, tuple(1.1 * np.array(first.resamples)))
    again = [np.array(over_videos(one, counts, keys(SIZES)).resamples) for one in (first, other)]
    assert np.allclose(again[1], 1.1 * again[0])


def test_it_is_wider_than_over_clips_where_clips_are_alike():
    rng = np.random.default_rng(1)
    counts = bootstrap_counts((len(keys(SIZES)),) * 2, resamples=200)[1].numpy()
    estimate = distances(rng, SIZES, 0.9)
    again = over_videos(estimate, counts, keys(SIZES))
    assert again.value == estimate.value
    assert again.high - again.low > 2 * 2 * 1.96 * np.std(estimate.resamples)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=60))
@settings(max_examples=25, deadline=None)
def test_any_videos_give_finite_resamples(sizes):
    names = keys(sizes)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(names), [1 / len(names)] * len(names), size=200).astype(float)
    values = clustered(rng, sizes, 0.5)[:, 0]
    estimate = Estimate(float(values.mean()), None, None, tuple((counts @ values / len(names)).tolist()))
    again = over_videos(estimate, counts, names)
    assert np.isfinite(again.resamples).all() and len(again.resamples) == 200
    if video_numbers(names) is not None:
        low, high = mean_over_videos(values.tolist(), names).low, mean_over_videos(values.tolist(), names).high
        assert np.isfinite([low, high]).all() and low <= values.mean() <= high


def test_equal_seeds_resample_alike():
    counts = bootstrap_counts((18, 18), resamples=200)[1].numpy()
    videos = video_numbers(keys((9, 9)))
    scores = np.random.default_rng(0).standard_normal(200)
    assert VideoResampling(counts, videos)(scores) == VideoResampling(counts, videos)(scores)
    assert VideoResampling(counts, videos, seed=1)(scores) != VideoResampling(counts, videos)(scores)


def test_scores_without_resamples_stay_as_they_are():
    counts = bootstrap_counts((18, 18), resamples=200)[1].numpy()
    assert over_videos(Estimate(1.0, 0.5, 1.5), counts, keys((9, 9))) == Estimate(1.0, 0.5, 1.5)
