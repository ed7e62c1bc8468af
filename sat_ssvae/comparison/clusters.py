"""Intervals for clips that come from few videos: clips of one video are alike, so whole videos are resampled.

videos = video_numbers(["a@0", "a@1", "b@0", ...])            # 0 0 1 ...
low, high = student_interval(psnr_of_clips, videos)
again = VideoResampling(counts, videos)(resamples)            # resamples of clips turned into resamples of videos

Both rest on the delete-one-video jackknife with Student's t (Cameron and Miller, "A Practitioner's Guide to
Cluster-Robust Inference", 2015): a bootstrap of ten videos would be a quarter too narrow. The degrees of freedom are
those of as many equally long videos as tell as much: n^2 / sum(n_v^2) for n_v of n clips in a video (Kish 1965).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..metrics.intervals import CONFIDENCE
from .provenance import video_of
from .results import Estimate

_MOST_GROUPS = 20
"""More videos are dealt into this many groups, which are resampled whole. It widens intervals by 7 %; the effects of
more groups could not be separated in 200 resamples."""
_FEWEST = 1.5
"""With fewer equally long videos (see above) nothing is known about how videos differ, and clips count instead."""


def video_numbers(keys: Sequence[str]) -> NDArray[np.int64] | None:
    """The video of each clip as a number, from keys `VIDEO@START`.

    Returns:
        None if clips count as independent: one clip per video, or hardly more than one video in all.
    """
    _, numbers = np.unique([video_of(key) for key in keys], return_inverse=True)
    alone = len(keys) == numbers.max(initial=-1) + 1
    return None if alone or _equal_videos(numbers) < _FEWEST else numbers.astype(np.int64)


def student_interval(values: Sequence[float], videos: NDArray[np.int64] | None = None) -> tuple[float, float]:
    """The 95 % interval of the mean of clips' values; open at both ends where a value is not finite.

    `values`: two or more, one per clip. `videos`: of the clips, see `video_numbers`; None where clips are
    independent.
    """
    x = np.asarray(values, float)
    if not np.isfinite(x).all():
        return -math.inf, math.inf
    numbers = np.arange(len(x)) if videos is None else videos
    influence = np.bincount(numbers, x - x.mean()) / len(x) * _jackknife(numbers)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, _degrees(numbers)))
    half = quantile * math.sqrt((influence**2).sum())
    return float(x.mean()) - half, float(x.mean()) + half


def mean_over_videos(values: Sequence[float], keys: Sequence[str]) -> Estimate:
    """The mean of clips' values with its interval; keys: of the clips, `VIDEO@START`."""
    return Estimate(float(np.mean(values)), *student_interval(values, video_numbers(keys)))


def over_videos(estimate: Estimate, counts: NDArray[np.float64], keys: Sequence[str]) -> Estimate:
    """The same number with resamples and interval over videos; unchanged without resamples, or if clips count.

    `counts`: how often each resample of the estimate draws each clip, (resamples, clips); `keys`: of the clips.
    """
    videos = video_numbers(keys)
    if videos is None or len(estimate.resamples) != len(counts):
        return estimate
    again = VideoResampling(counts, videos)(estimate.resamples)
    margin = float(np.quantile(np.abs(np.array(again) - np.mean(again)), CONFIDENCE))
    return Estimate(estimate.value, estimate.value - margin, estimate.value + margin, again)


class VideoResampling:
    """Turns resamples of clips into resamples of videos.

    A score under resample r is, to first order, the score plus a sum over videos of (times r draws the video / its
    clips - 1) times the video's influence, plus what has nothing to do with which videos they are. So a regression over
    the resamples gives the influences; in their place comes a draw of Student's t with the jackknife's variance, the
    same for all scores. What several scores have in common is kept. The rest is reduced by what the regression's own
    error adds. It counts the differences within videos twice, so intervals are too wide (by a fifth) if videos do not
    differ at all.

    `counts`: how often each resample draws each clip, (resamples, clips); `videos`: of the clips.
    """

    def __init__(self, counts: NDArray[np.float64], videos: NDArray[np.int64], seed: int = 0) -> None:
        groups = _dealt(videos)
        sizes = np.bincount(groups)
        rows, number = len(counts), len(sizes)
        drawn = np.stack([counts[:, groups == group].sum(1) for group in range(number)], 1) / sizes - 1
        drawn -= drawn.mean(0)
        solve = np.linalg.pinv(drawn)
        # Drawing all videos once more often changes nothing, so influences add up to 0.
        balanced = np.eye(number) - np.outer(sizes / sizes.sum(), np.ones(number))
        influence = _jackknife(groups)[:, None] * (balanced @ solve)
        df = _degrees(groups)
        draws = np.random.default_rng(seed)
        t = draws.standard_normal((rows, number)) / np.sqrt(draws.chisquare(df, (rows, 1)) / df)
        error = float((influence**2).sum())
        rest = math.sqrt(max(0.0, 1 - error) * rows / (rows - number))
        self._matrix = rest * (np.eye(rows) - drawn @ solve) + t @ influence

    def __call__(self, resamples: Sequence[float]) -> tuple[float, ...]:
        """Resamples of one score, as many as there are rows of `counts`."""
        values = np.asarray(resamples, float)
        return tuple((values.mean() + self._matrix @ (values - values.mean())).tolist())


def _equal_videos(videos: NDArray[np.int64]) -> float:
    """The equivalent number of equally long videos."""
    sizes = np.bincount(videos)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(videos) else 0.0


def _degrees(videos: NDArray[np.int64]) -> float:
    return max(1.0, _equal_videos(videos) - 1)


def _jackknife(videos: NDArray[np.int64]) -> NDArray[np.float64]:
    """Factor by video of its influence, so that the sum of squares is the jackknife's variance."""
    sizes = np.bincount(videos)
    return math.sqrt((len(sizes) - 1) / len(sizes)) / (1 - sizes / sizes.sum())


def _dealt(videos: NDArray[np.int64]) -> NDArray[np.int64]:
    """Videos, or if there are too many, groups of them with about equal numbers of clips."""
    sizes = np.bincount(videos)
    if len(sizes) <= _MOST_GROUPS:
        return videos
    load, group = np.zeros(_MOST_GROUPS), np.zeros(len(sizes), np.int64)
    for video in np.argsort(-sizes, kind="stable"):
        group[video] = load.argmin()
        load[group[video]] += sizes[video]
    return group[videos]
