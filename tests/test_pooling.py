import dataclasses

import numpy as np
import pytest
from scipy import stats

from sat_ssvae.comparison.pooling import pooled, pooled_estimate
from sat_ssvae.comparison.results import Estimate

from .comparisons import arm_result


def test_the_interval_is_the_wider_of_clips_and_seeds():
    alike = pooled_estimate([Estimate(20.0, 19.0, 21.0), Estimate(20.01, 19.01, 21.01), Estimate(20.02, 19.02, 21.02)])
    assert (alike.value, alike.low, alike.high) == pytest.approx((20.01, 19.01, 21.01))
    values = [20.0, 21.0, 23.0]
    apart = pooled_estimate([Estimate(value, value - 0.1, value + 0.1) for value in values])
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (apart.low, apart.high) == pytest.approx((interval.low, interval.high))


def test_one_autoencoder_stays_as_it_is():
    arm = arm_result("stock")
    assert pooled([arm]) is arm


def test_several_autoencoders_become_their_mean():
    first, second = (
        arm_result("ssvae", psnr=20.0, baseline_psnr=21.0),
        arm_result("ssvae", psnr=22.0, baseline_psnr=21.0),
    )
    second = dataclasses.replace(second, dct_amplitude=tuple(2 * np.asarray(first.dct_amplitude)))
    first, second = (
        dataclasses.replace(arm, training_distances={"loss": Estimate(value)})
        for arm, value in ((first, 0.1), (second, 0.3))
    )
    second = dataclasses.replace(second, spatial_spectrum=tuple((f, 3 * a) for f, a in first.spatial_spectrum))
    both = pooled([first, second])
    assert np.asarray(both.spatial_spectrum) == pytest.approx(np.asarray(first.spatial_spectrum) * [1, 2])
    assert both.training_distances["loss"].value == pytest.approx(0.2)
    assert both.reconstruction["psnr"].value == 21 and both.dct_amplitude == pytest.approx(
        1.5 * np.asarray(first.dct_amplitude)
    )
    assert both.reconstruction_difference["psnr"].value == pytest.approx(0.0, abs=0.1)
    assert both.reconstruction_difference["psnr"].low < -5  # two autoencoders say little
