"""Speed-ups out of noisy curves: exact answers, honest intervals, and everything that is no number."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sat_ssvae.comparison.analysis import paired_difference, speed_up
from sat_ssvae.comparison.curves import NO_PROGRESS
from sat_ssvae.comparison.results import CurvePoint, Estimate

from .comparisons import STEPS, comparison, curve_points, decay

METRIC = "kernel_distance_reconstruction/frame"


def read(baseline, candidate, *, seeds=1, width=0.0, noise=0.0, steps=STEPS, seed=0):
    """The speed-up between two score functions of (step, seed)."""
    rng = np.random.default_rng(seed)
    points = []
    for s in range(seeds):
        for arm, score in (("stock", baseline), ("ssvae", candidate)):
            points += curve_points(
                arm,
                s,
                METRIC,
                lambda t, score=score, s=s: score(t, s),
                noise=noise,
                width=width,
                steps=steps,
                rng=rng,
            )
    results = dataclasses.replace(comparison([1.0], seeds=tuple(range(seeds)), metrics=[METRIC]), curves=tuple(points))
    return speed_up(results, "ssvae", METRIC)


class TestValue:
    @given(st.floats(1.05, 8))
    def test_is_the_ratio_of_steps(self, speed):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=speed))
        # The crossing is interpolated between evaluations, whose spacing bounds the error.
        assert answer.value == pytest.approx(speed, rel=0.12)
        assert answer.baseline_steps == pytest.approx(STEPS[-1])

    @given(st.floats(0.1, 3), st.floats(0, 5))
    def test_equal_curves_give_exactly_one(self, power, floor):
        def score(t, _):
            return decay(t, power=power, floor=floor)

        answer = read(score, score)
        assert (answer.status, answer.value) == ("measured", 1.0)

    @given(st.lists(st.floats(0.01, 100), min_size=2, max_size=12, unique=True))
    def test_equal_noisy_curves_give_exactly_one_or_no_improvement(self, scores):
        steps = range(100, 100 * len(scores) + 1, 100)
        score = dict(zip(steps, scores, strict=True))
        answer = read(lambda t, _: score[t], lambda t, _: score[t], steps=steps)
        assert answer.value == 1.0 or answer.reason == f"the baseline {NO_PROGRESS}"

    def test_is_the_geometric_mean_over_seeds(self):
        answer = read(lambda t, _: decay(t), lambda t, s: decay(t, speed=(2.0, 4.0)[s]), seeds=2)
        each = [read(lambda t, _: decay(t), lambda t, _, v=v: decay(t, speed=v)).value for v in (2.0, 4.0)]
        assert answer.value == pytest.approx(math.sqrt(each[0] * each[1]))
        assert (answer.seeds, answer.reached) == (2, 2)

    def test_is_no_number_when_not_reached(self):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=0.5))
        assert (answer.status, answer.value, answer.candidate_steps) == ("not reached", None, None)

    def test_is_no_number_when_one_seed_of_three_does_not_reach_it(self):
        answer = read(lambda t, _: decay(t), lambda t, s: decay(t, speed=(2.0, 2.0, 0.5)[s]), seeds=3)
        assert (answer.status, answer.value, answer.reached) == ("not reached", None, 2)
        assert answer.outcome == "undecided"

    def test_is_a_lower_bound_when_reached_at_the_first_evaluation(self):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=100.0))
        assert (answer.status, answer.value) == ("at least", pytest.approx(16.0))

    def test_one_lucky_evaluation_of_the_candidate_does_not_count(self):
        for lucky in STEPS:
            answer = read(lambda t, _: decay(t), lambda t, _, dip=lucky: decay(t, floor=1) if t != dip else -50.0)
            assert answer.status == "not reached"

    @pytest.mark.parametrize(
        ("baseline", "candidate", "reason"),
        [
            (
                lambda t, _: 2.0,
                lambda t, _: decay(t),
                f"the baseline {NO_PROGRESS}",
            ),
            (lambda t, _: math.nan, lambda t, _: decay(t), "the baseline diverged"),
        ],
    )
    def test_is_undefined_when_the_baseline_gives_no_target(self, baseline, candidate, reason):
        answer = read(baseline, candidate)
        assert (answer.outcome, answer.reason, answer.value) == ("undefined", reason, None)

    def test_is_undefined_when_an_arm_does_not_beat_its_own_first_evaluation(self):
        """Beyond the evaluation's noise: scores that only wander are no training, whichever way they end."""

        def trains(t, _):
            return decay(t)

        def wanders(t, _):
            return 0.3 + 0.01 * math.cos(t)

        assert read(trains, wanders, width=0.1).reason == f"the candidate {NO_PROGRESS}"
        assert read(wanders, trains, width=0.1).reason == f"the baseline {NO_PROGRESS}"
        assert read(trains, lambda t, _: 0.3 + 1e-5 * t).reason == f"the candidate {NO_PROGRESS}"

    def test_is_undefined_when_the_candidate_has_it_before_training(self):
        answer = read(lambda t, _: decay(t), lambda t, _: 0.01, steps=(0, *STEPS))
        assert answer.reason == "the candidate has the baseline's final score before any training"

    def test_a_diverged_candidate_did_not_reach_it(self):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=3) if t < 300 else math.nan)
        assert (answer.status, answer.outcome) == ("not reached", "no interval")
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=3) if t < 300 else math.nan, seeds=3)
        assert (answer.low, answer.outcome) == (0.0, "slower")

    def test_a_seed_without_a_partner_is_left_out(self):
        full = comparison([2.0], metrics=[METRIC])
        points = tuple(p for p in full.curves if (p.arm, p.seed) != ("ssvae", 2))
        assert speed_up(dataclasses.replace(full, curves=points), "ssvae", METRIC).seeds == 2
        points = tuple(p for p in full.curves if p.arm == "stock")
        answer = speed_up(dataclasses.replace(full, curves=points), "ssvae", METRIC)
        assert answer.reason == "no seed was measured in both arms"


class TestInterval:
    def test_one_seed_without_evaluation_intervals_has_none(self):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=2))
        assert (answer.low, answer.high, answer.interval_from, answer.outcome) == (
            None,
            None,
            "none",
            "no interval",
        )

    def test_one_seed_takes_it_from_the_evaluation(self):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=2), width=0.03)
        assert answer.interval_from == "evaluation"
        assert 1 < answer.low < answer.value < answer.high < 4

    def test_seeds_widen_it_by_what_they_disagree(self):
        agreeing, apart = (
            read(lambda t, _: decay(t), lambda t, s, v=v: decay(t, speed=v[s]), seeds=3)
            for v in ((2.0, 2.02, 1.98), (1.5, 2.0, 2.7))
        )
        assert agreeing.interval_from == apart.interval_from == "seeds"
        assert apart.low < agreeing.low <= agreeing.value <= agreeing.high < apart.high
        assert (agreeing.outcome, apart.outcome) == ("faster", "undecided")

    def test_seeds_and_evaluation_are_both_inside(self):
        alone = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=2), width=0.1)
        both = read(lambda t, _: decay(t), lambda t, s: decay(t, speed=(2, 2.1, 1.9)[s]), seeds=3, width=0.1)
        assert both.interval_from == "seeds and evaluation"
        # three seeds share the held-out clips: they do not average the evaluation's error away
        assert both.high / both.low > 0.8 * alone.high / alone.low

    def test_is_the_same_every_time(self):
        first, second = (
            read(lambda t, _: decay(t), lambda t, _: decay(t, speed=2), width=0.05, noise=0.03) for _ in range(2)
        )
        assert first == second

    def test_not_reached_in_every_seed_is_slower_only_when_the_seeds_agree(self):
        clearly = read(lambda t, _: decay(t), lambda t, s: decay(t, speed=0.5 + 0.02 * s), seeds=3)
        assert (clearly.status, clearly.value, clearly.outcome) == ("not reached", None, "slower")
        barely = read(lambda t, _: decay(t), lambda t, s: decay(t, speed=(0.999, 0.7, 0.95)[s]), seeds=3)
        assert barely.status == "not reached"
        assert barely.outcome == "undecided"

    def test_a_near_miss_in_every_seed_is_equal(self):
        answer = read(lambda t, _: decay(t), lambda t, s: decay(t, speed=0.99 - 0.01 * s), seeds=3)
        assert (answer.status, answer.value, answer.outcome) == ("not reached", None, "equal")

    def test_a_candidate_that_stalls_early_is_not_called_faster(self):
        """It is faster to its own poor plateau, which must not count."""
        answer = read(lambda t, _: decay(t), lambda t, s: max(decay(t, speed=3), 1.0 + 0.01 * s), seeds=3)
        assert answer.status == "not reached"
        assert answer.high < 1

    @given(st.floats(0.2, 5), st.integers(1, 3), st.floats(0, 0.1))
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_is_around_the_value(self, speed, seeds, noise):
        answer = read(lambda t, _: decay(t), lambda t, _: decay(t, speed=speed), seeds=seeds, width=0.05, noise=noise)
        if answer.low is not None and answer.value is not None and noise == 0:
            assert answer.low <= answer.value * 1.001
            assert answer.value <= answer.high * 1.001

    @pytest.mark.parametrize(("seeds", "width"), [(3, 0.0), (1, 0.08)])
    def test_covers_the_truth(self, seeds, width):
        """95 % intervals of simulated comparisons hold the true speed-up in at least 88 of 100."""
        held, trials = 0, 40
        for trial in range(trials):
            answer = read(
                lambda t, _: decay(t),
                lambda t, _: decay(t, speed=2.0),
                seeds=seeds,
                noise=0.04,
                width=width,
                seed=trial,
            )
            held += answer.low <= 2.0 <= answer.high
        assert held >= 0.88 * trials

    @pytest.mark.parametrize(("seeds", "width"), [(3, 0.0), (1, 0.08)])
    def test_equal_arms_are_seldom_called_different(self, seeds, width):
        """And when they are, the errors fall on both sides (the baseline's role gives no advantage)."""
        trials = 50
        outcomes = [
            read(lambda t, _: decay(t), lambda t, _: decay(t), seeds=seeds, noise=0.04, width=width, seed=trial).outcome
            for trial in range(trials)
        ]
        assert outcomes.count("faster") + outcomes.count("slower") <= 0.1 * trials


class TestAutoencoderSeeds:
    """Transformers on the same latents are not independent: the autoencoders count."""

    def read(self, speeds):
        """Three transformers on each of several autoencoders, whose true speed-ups these are."""
        points = []
        for vae_seed, speed in enumerate(speeds):
            for s in range(3):
                for arm, fast in (("stock", 1.0), ("ssvae", speed * (1 + 0.01 * s))):
                    points += [
                        dataclasses.replace(point, vae_seed=vae_seed)
                        for point in curve_points(arm, s, METRIC, lambda t, fast=fast: decay(t, speed=fast))
                    ]
        results = comparison([1.0], metrics=[METRIC])
        vae_seeds = tuple(range(len(speeds)))
        return speed_up(dataclasses.replace(results, curves=tuple(points), vae_seeds=vae_seeds), "ssvae", METRIC)

    def test_what_they_disagree_in_widens_the_interval(self):
        agreeing, apart = self.read([2.0, 2.02, 1.98]), self.read([1.3, 2.0, 3.1])
        assert agreeing.seeds == apart.seeds == 9
        assert agreeing.outcome == "faster" and apart.outcome == "undecided"

    def test_one_autoencoder_knows_nothing_of_it(self):
        one = self.read([2.0])
        assert one.seeds == 3 and one.outcome == "faster"


class TestResamples:
    """Clips differ more from each other than arms do: only what does not cancel may widen the interval."""

    CLIPS = 48

    def read(self, speed, *, own=0.3, resamples=200, seed=0):
        """Scores of clips: a difficulty that all evaluations of a clip share, times noise of its own."""
        rng = np.random.default_rng(seed)
        difficulty = np.exp(rng.standard_normal(self.CLIPS))
        counts = rng.multinomial(self.CLIPS, [1 / self.CLIPS] * self.CLIPS, size=200)
        points = []
        for arm, fast in (("stock", 1.0), ("ssvae", speed)):
            for step in STEPS:
                clips = decay(step, speed=fast) * difficulty * np.exp(own * rng.standard_normal(self.CLIPS))
                margin = 1.96 * clips.std(ddof=1) / math.sqrt(self.CLIPS)
                again = tuple((counts @ clips / self.CLIPS).tolist()[:resamples])
                mean = float(clips.mean())
                points.append(CurvePoint(arm, 0, METRIC, step, mean, mean - margin, mean + margin, again))
        results = comparison([1.0], seeds=(0,), metrics=[METRIC])
        return speed_up(dataclasses.replace(results, curves=tuple(points)), "ssvae", METRIC)

    def test_what_the_clips_share_cancels(self):
        paired, alone = self.read(2.0, own=0.1), self.read(2.0, own=0.1, resamples=0)
        assert paired.interval_from == alone.interval_from == "evaluation"
        assert (paired.value, paired.outcome) == (alone.value, "faster")
        assert math.log(paired.high / paired.low) < 0.5 * math.log(alone.high / alone.low)

    def test_too_few_are_not_used(self):
        assert self.read(2.0, resamples=50) == self.read(2.0, resamples=0)

    def test_they_cover_the_truth_and_equal_arms_are_seldom_called_different(self):
        trials = 40
        held = [read.low <= 2.0 <= read.high for read in (self.read(2.0, seed=seed) for seed in range(trials))]
        assert sum(held) >= 0.88 * trials
        outcomes = [self.read(1.0, seed=seed).outcome for seed in range(trials)]
        assert outcomes.count("faster") + outcomes.count("slower") <= 0.1 * trials


class TestFloor:
    def test_share_is_taken_at_half_training_in_the_worse_arm(self):
        results = comparison([1.0], floors={METRIC: 0.1}, noise=0, metrics=[METRIC])
        half = decay(STEPS[-1] / 2, floor=0.4)
        answer = speed_up(results, "ssvae", METRIC)
        assert answer.floor_share == pytest.approx(0.4 / half)
        worse = dataclasses.replace(results.arms[1], floors={METRIC: Estimate(0.9 * half)})
        answer = speed_up(dataclasses.replace(results, arms=(results.arms[0], worse)), "ssvae", METRIC)
        assert answer.floor_share == pytest.approx(0.9)
        assert answer.measures_blur

    def test_a_loss_has_a_floor_but_no_blur(self):
        results = comparison([1.0], floors={"loss": 0.9}, metrics=["loss"])
        assert speed_up(results, "ssvae", "loss").floor_share is None


class TestPairedDifference:
    def test_is_the_mean_difference_with_students_interval(self):
        answer = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        half = 4.302653 * 1.0 / math.sqrt(3)
        assert (answer.value, answer.low, answer.high) == pytest.approx((2.0, 2 - half, 2 + half))

    def test_what_is_common_to_both_arms_cancels(self):
        rng = np.random.default_rng(0)
        clips = 20 + 5 * rng.standard_normal(200)
        answer = paired_difference((clips - 1 + 0.1 * rng.standard_normal(200)).tolist(), clips.tolist())
        assert -1.03 < answer.low < -1 < answer.high < -0.97

    def test_one_clip_has_no_interval(self):
        assert paired_difference([2.0], [1.0]) == Estimate(1.0)

    @pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
    def test_other_clips_are_refused(self, ours, theirs):
        with pytest.raises(ValueError, match="same clips"):
            paired_difference(ours, theirs)

    @pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (11, 2.2281), (31, 2.0423), (200, 1.9720)])
    def test_the_interval_is_students(self, count, quantile):
        values = np.random.default_rng(count).standard_normal(count)
        answer = paired_difference(values.tolist(), [0.0] * count)
        assert answer.high - answer.value == pytest.approx(quantile * values.std(ddof=1) / count**0.5, rel=1e-4)
