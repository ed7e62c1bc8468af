"""The results of an arm's autoencoders, trained with different seeds, as one.

arm = pooled([result_of_seed_0, result_of_seed_1, result_of_seed_2])
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .clusters import student_interval
from .results import ArmResult, Estimate


def pooled(results: Sequence[ArmResult]) -> ArmResult:
    """The arm's mean over its autoencoders: spectra, floors, and reconstruction with the wider of two intervals."""
    first = results[0]
    if len(results) == 1:
        return first
    return replace(
        first,
        reconstruction=_pooled_estimates([result.reconstruction for result in results]),
        floors=_pooled_estimates([result.floors for result in results]),
        training_distances=_pooled_estimates([result.training_distances for result in results]),
        dct_amplitude=_mean([result.dct_amplitude for result in results]),
        spatial_spectrum=tuple(
            zip(
                [frequency for frequency, _ in first.spatial_spectrum],
                _mean([[amplitude for _, amplitude in result.spatial_spectrum] for result in results]),
                strict=True,
            )
        ),
        explained_variance=_mean([result.explained_variance for result in results]),
        reconstruction_difference=_pooled_estimates([result.reconstruction_difference for result in results]),
    )


def pooled_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Their mean. Its interval: the wider of the mean interval over clips and Student's over the estimates."""
    values = [estimate.value for estimate in estimates]
    low, high = student_interval(values) if len(values) > 1 else (values[0], values[0])
    lows = [estimate.low for estimate in estimates if estimate.low is not None]
    highs = [estimate.high for estimate in estimates if estimate.high is not None]
    if len(lows) == len(highs) == len(values):
        low, high = min(low, float(np.mean(lows))), max(high, float(np.mean(highs)))
    return Estimate(float(np.mean(values)), low, high)


def _pooled_estimates(of_each: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {metric: pooled_estimate([estimates[metric] for estimates in of_each]) for metric in of_each[0]}


def _mean(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(np.mean(list(rows), axis=0).tolist())
