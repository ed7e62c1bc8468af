"""The two sentences: right in every case that can happen, and never more than the intervals allow."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sat_ssvae.comparison.analysis import SpeedUp
from sat_ssvae.comparison.curves import NO_PROGRESS
from sat_ssvae.comparison.results import ABOVE_MEAN_COLOUR, Estimate
from sat_ssvae.comparison.verdict import conclude, counting, judge, reconstruction_verdict, summary_table
from sat_ssvae.comparison.wording import blur, describe, ratio, speed_up_text

from .comparisons import DECODED, DENOISING, SAMPLES, STEPS, arm_result, comparison, decay, judged


def a_speed_up(metric="kernel_distance_real/frame", low=None, high=None, **changes):
    value = None if low is None or low == 0 else (low * high) ** 0.5
    read = SpeedUp(
        metric=metric,
        baseline="stock",
        candidate="ssvae",
        status="measured" if value else "not reached",
        value=value,
        low=low,
        high=high,
        baseline_steps=1600.0,
        candidate_steps=800.0,
        target=1.0,
        seeds=3,
        reached=3 if value else 0,
        interval_from="seeds",
        floor_share=None,
    )
    return dataclasses.replace(read, **changes)


def by_metric(fast, slow=()):
    return {metric: fast if metric not in slow else 0.45 for metric in DECODED}


class TestConclusions:
    def test_clear_win(self):
        verdict = judged(comparison([2.6], psnr=(20.3, 20.3)), "ssvae")
        assert verdict.conclusion == "faster"
        first, second = verdict.sentences
        assert first.startswith(
            "Diffusion converges faster on ssvae than on stock: of 4 sample distances, faster on all ("
        )
        assert "slower on none" in first
        assert first.endswith("; 3 seeds, 95 % intervals.")
        assert second.startswith("No clear difference in reconstruction was found (PSNR 20.30 dB against 20.30 dB")

    def test_clear_loss(self):
        verdict = judged(comparison([0.4]), "ssvae")
        assert verdict.conclusion == "slower"
        assert verdict.sentences[0].startswith("Diffusion converges more slowly on ssvae than on stock: of 4 ")
        assert "faster on none and slower on all (stock's final score not reached, at most 0." in verdict.sentences[0]

    def test_mixed(self):
        verdict = judged(comparison([by_metric(2.6, slow=SAMPLES[:1])]), "ssvae")
        assert verdict.conclusion == "mixed"
        assert "by some sample distances, slower by others: of 4" in verdict.sentences[0]
        assert "faster on 3 (" in verdict.sentences[0]
        assert "slower on 1 (" in verdict.sentences[0]

    def test_undecided(self):
        verdict = judged(comparison([1.1], noise=0.1, width=0.3), "ssvae")
        assert verdict.conclusion == "undecided"
        assert verdict.sentences[0].startswith("No clear difference in convergence between ssvae and stock was found")
        assert "undecided on all" in verdict.sentences[0]

    @pytest.mark.parametrize(("speed", "word"), [(2.6, "faster"), (0.4, "more slowly")])
    def test_a_difference_in_the_minority_is_told_and_not_claimed(self, speed, word):
        verdict = judged(comparison([{m: speed if m == SAMPLES[0] else 1.1 for m in DECODED}], width=0.3), "ssvae")
        assert verdict.conclusion == "undecided"
        expected = f"Diffusion converges {word} on ssvae than on stock by some sample distances, though by fewer than"
        assert verdict.sentences[0].startswith(f"{expected} half: of 4 sample distances, ")

    @pytest.mark.parametrize("speed", [2.6, 0.4])
    def test_denoising_at_fixed_noise_levels_decides_nothing(self, speed):
        """A shifted noise schedule moves it: it is shown, and only decoded samples count."""
        speeds = {metric: speed if metric in DENOISING else 1.0 for metric in DECODED}
        verdict = judged(comparison([speeds], noise=0.001, width=0.001), "ssvae")
        assert verdict.conclusion == "equal" and "denoising" not in verdict.sentences[0]
        alone = judged(comparison([speed], metrics=DENOISING), "ssvae")
        assert alone.conclusion == "no evidence" and "no distance of decoded samples was taken" in alone.text

    def test_equal(self):
        verdict = judged(comparison([1.0], noise=0.001, width=0.001), "ssvae")
        assert verdict.conclusion == "equal"
        assert "about equally fast" in verdict.sentences[0]

    def test_a_win_of_the_minority_is_no_win(self):
        read = [a_speed_up(metric, 0.9, 1.3) for metric in SAMPLES[:3]] + [a_speed_up(SAMPLES[3], 1.2, 2.0)]
        assert conclude(tuple(read)) == "undecided"


class TestJudgeable:
    """An arm that reconstructs nothing, or whose transformer does not train, is not judged, whatever its distances."""

    def results(self, gain, arm=1, speed=4.0):
        results = comparison([speed])
        bad = dataclasses.replace(results.arms[arm], reconstruction={ABOVE_MEAN_COLOUR: gain})
        return dataclasses.replace(results, arms=tuple(bad if i == arm else a for i, a in enumerate(results.arms)))

    @pytest.mark.parametrize("arm", [0, 1])
    @pytest.mark.parametrize("gain", [Estimate(-4.0, -4.5, -3.5), Estimate(4.0, 2.0, 6.0), Estimate(1.0)])
    def test_a_vae_that_hardly_beats_the_mean_colour(self, arm, gain):
        verdict = judged(self.results(gain, arm), "ssvae")
        assert verdict.conclusion == "not judgeable" and verdict.counted == ()
        name = ("stock", "ssvae")[arm]
        explains = "explains less than half" if gain.value < 3 else "is not shown to explain half"
        assert f"cannot be judged: the VAE of {name} {explains} of the clips' variance" in verdict.text
        assert "4.0×" not in verdict.text and "4.0×" not in summary_table(self.results(gain, arm), [verdict])

    def test_a_vae_that_beats_it_clearly(self):
        assert judged(self.results(Estimate(8.0, 7.5, 8.5)), "ssvae").conclusion == "faster"

    @pytest.mark.parametrize(("gain", "conclusion"), [(7.1, "faster"), (2.0, "not judgeable")])
    def test_two_vaes_that_differ_are_judged_by_their_mean(self, gain, conclusion):
        results = self.results(Estimate(gain, gain - 9, gain + 9))
        again = tuple(dataclasses.replace(point, vae_seed=1) for point in results.curves)
        results = dataclasses.replace(results, vae_seeds=(0, 1), curves=results.curves + again)
        assert judged(results, "ssvae").conclusion == conclusion

    def test_a_transformer_that_does_not_train(self):
        """It may have the baseline's final score from the start, as on latents of random weights."""
        results = comparison([1.0], metrics=SAMPLES)
        points = tuple(
            dataclasses.replace(p, value=0.2, low=0.19, high=0.21) if p.arm == "ssvae" else p for p in results.curves
        )
        verdict = judged(dataclasses.replace(results, curves=points), "ssvae")
        assert verdict.conclusion == "not judgeable"
        assert f"the transformer of ssvae {NO_PROGRESS}" in verdict.text

    def test_a_transformer_that_trains_by_half_of_the_distances_is_judged(self):
        results = comparison([2.6], metrics=SAMPLES)
        points = [
            dataclasses.replace(p, value=0.2, low=0.19, high=0.21)
            if p.arm == "stock" and p.metric in SAMPLES[1::2]
            else p
            for p in results.curves
        ]
        verdict = judged(dataclasses.replace(results, curves=tuple(points)))
        assert verdict.conclusion == "faster" and "of 2 sample distances, faster on all" in verdict.text

    def test_a_number_that_is_the_grids_is_no_headline(self):
        """At the first evaluation it was there already: how much sooner is not known."""
        verdict = judged(comparison([100.0], metrics=SAMPLES), "ssvae")
        assert verdict.conclusion == "faster"
        assert "faster on all (at the first evaluation already, at least 15× by the intervals)" in verdict.text


class TestScope:
    def test_one_seed_says_so(self):
        first = judged(comparison([2.6], seeds=(0,)), "ssvae").sentences[0]
        assert first.startswith("In this one run diffusion converged faster on ssvae than on stock: ")
        assert "one run, so the intervals cover evaluation noise only" in first

    def test_one_seed_without_intervals_claims_nothing(self):
        verdict = judged(comparison([2.6], seeds=(0,), width=0), "ssvae")
        assert verdict.conclusion == "no evidence"
        assert "cannot be judged: there is one seed and no evaluation with an interval" in verdict.text

    def test_losses_alone_claim_nothing(self):
        verdict = judged(comparison([2.6], metrics=["loss", "loss_above_floor"]), "ssvae")
        assert verdict.conclusion == "no evidence"
        assert "no other measure compares different latents" in verdict.text

    def test_losses_beside_decoded_measures_do_not_count(self):
        speeds = {SAMPLES[0]: 0.4, "loss": 5.0}
        verdict = judged(comparison([speeds], metrics=list(speeds)), "ssvae")
        assert verdict.conclusion == "slower"
        assert "of 1 sample distance," in verdict.text

    def test_a_flat_baseline_claims_nothing(self):
        results = comparison([2.0], metrics=SAMPLES)
        points = tuple(dataclasses.replace(p, value=3.0) if p.arm == "stock" else p for p in results.curves)
        verdict = judged(dataclasses.replace(results, curves=points), "ssvae")
        assert verdict.conclusion == "not judgeable"
        assert f"the transformer of stock {NO_PROGRESS}; train it longer" in verdict.text

    def test_each_candidate_has_its_own(self):
        results = comparison([2.6, 0.4])
        assert [verdict.conclusion for verdict in judge(results)] == ["faster", "slower"]


class TestOneSetOfMeasures:
    """What counts for one arm counts for all: a measure left out for one alone would lift or lower its verdict."""

    def test_a_floor_just_above_the_limit_in_one_arm_leaves_it_out_for_all(self):
        """As in a run of ours: .498 of a distance in one arm and .507 in the blurrier one, which had gained by it."""
        results = comparison([2.6, 2.6], noise=0, metrics=SAMPLES)
        half = decay(STEPS[-1] / 2, speed=2.6)
        shares = {"stock": 0.0, "ssvae": 0.498, "lcr only": 0.507}
        arms = [
            dataclasses.replace(arm, floors={SAMPLES[0]: Estimate(shares[arm.name] * half)}) for arm in results.arms
        ]
        verdicts = judge(dataclasses.replace(results, arms=tuple(arms)))
        shares = [verdict.speed_ups[0].floor_share for verdict in verdicts]
        assert shares == [pytest.approx(0.507, abs=0.003)] * 2
        for verdict in verdicts:
            assert [read.metric for read in verdict.counted] == list(SAMPLES[1:])

    def test_a_measure_on_which_an_arm_has_no_speed_up_counts_against_its_claim(self):
        """Without it, two of three would be a majority of two."""
        results = comparison([2.6, 2.6], metrics=SAMPLES)
        flat = [
            dataclasses.replace(p, value=0.2, low=0.19, high=0.21) if p.arm == "ssvae" and p.metric == SAMPLES[0] else p
            for p in results.curves
        ]
        first, second = judge(dataclasses.replace(results, curves=tuple(flat)))
        assert first.conclusion == second.conclusion == "faster"
        assert "of 4 sample distances, faster on 3 (" in first.text and "without a speed-up on 1;" in first.text
        assert "of 4 sample distances, faster on all (" in second.text


class TestFloor:
    def test_a_distance_that_is_mostly_floor_measures_blur(self):
        """The first small trial of measuring_convergence.md: blur hides everything against real clips."""
        results = comparison([2.6], floors={SAMPLES[0]: 0.8, SAMPLES[1]: 0.7}, psnr=(20.3, 18.9))
        verdict = judged(results, "ssvae")
        assert "of 2 sample distances" in verdict.sentences[0]
        assert (
            "2 measures (samples to real clips) compare blur, not convergence, and are left out" in verdict.sentences[1]
        )
        assert "ssvae reconstructs worse by PSNR and SSIM (PSNR 18.90 dB against 20.30 dB" in verdict.sentences[1]

    def test_all_of_them_leave_nothing_to_judge(self):
        results = comparison([2.6], floors=dict.fromkeys(SAMPLES, 0.9), metrics=SAMPLES)
        verdict = judged(results, "ssvae")
        assert verdict.conclusion == "no evidence"
        assert "every sample distance is mostly a VAE's own reconstruction error" in verdict.text

    def test_a_small_floor_counts(self):
        results = comparison([2.6], floors={SAMPLES[0]: 0.02}, metrics=SAMPLES)
        assert "of 4 sample distances, faster on all" in judged(results, "ssvae").text


class TestReconstruction:
    def test_worse_reconstruction_may_explain_a_speed_up(self):
        second = judged(comparison([2.6], psnr=(20.3, 18.9)), "ssvae").sentences[1]
        assert second.startswith("ssvae reconstructs worse by PSNR and SSIM (PSNR 18.90 dB against 20.30 dB, SSIM ")
        assert "so part of any speed-up may come from blur" in second

    def test_better_is_said(self):
        assert "also reconstructs better" in judged(comparison([2.6], psnr=(20.3, 22.0)), "ssvae").sentences[1]
        slower = judged(comparison([0.4], psnr=(20.3, 22.0), metrics=SAMPLES[:1]), "ssvae")
        assert slower.sentences[1].startswith("ssvae reconstructs better")

    def test_paired_clips_decide_where_intervals_overlap(self):
        results = comparison([1.0], psnr=(20.3, 20.0), metrics=SAMPLES)
        assert reconstruction_verdict(results, "ssvae", "psnr") == -1
        unpaired = dataclasses.replace(results.arms[1], reconstruction_difference={})
        results = dataclasses.replace(results, arms=(results.arms[0], unpaired))
        assert reconstruction_verdict(results, "ssvae", "psnr") == 0

    def test_lower_is_better_for_a_perceptual_distance(self):
        results = comparison([1.0], psnr=(20.3, 15.0), metrics=SAMPLES)
        assert results.arms[1].reconstruction["stlpips"].value > results.arms[0].reconstruction["stlpips"].value
        assert reconstruction_verdict(results, "ssvae", "stlpips") == -1

    def test_no_interval_claims_no_difference(self):
        results = comparison([1.0], metrics=SAMPLES)
        bare = [
            dataclasses.replace(arm, reconstruction={"psnr": Estimate(value)}, reconstruction_difference={})
            for arm, value in zip(results.arms, (20.3, 18.9), strict=True)
        ]
        results = dataclasses.replace(results, arms=tuple(bare))
        assert reconstruction_verdict(results, "ssvae", "psnr") is None
        assert "Reconstruction was measured without intervals (PSNR 18.90 dB" in judged(results, "ssvae").text

    def test_not_measured_is_said(self):
        results = comparison([1.0], metrics=SAMPLES)
        bare = tuple(dataclasses.replace(arm_result(arm.name), reconstruction={}) for arm in results.arms)
        assert "was not measured" in judged(dataclasses.replace(results, arms=bare), "ssvae").sentences[1]


ends = st.floats(0.05, 20)


@st.composite
def any_speed_ups(draw):
    """Speed-ups on any subset of metrics with any intervals, floors and statuses."""
    read = []
    for metric in draw(st.lists(st.sampled_from((*DECODED, "loss", "loss_above_floor")), unique=True)):
        low, high = sorted((draw(ends), draw(ends)))
        kind = draw(st.sampled_from(["measured", "not reached", "undefined", "bare"]))
        share = draw(st.none() | st.floats(0, 1))
        if kind == "measured":
            read.append(a_speed_up(metric, low, high, floor_share=share))
        elif kind == "not reached":
            ends_below = {"low": min(low, 1.0), "high": min(high, 1.0)}
            read.append(a_speed_up(metric, **ends_below, floor_share=share, value=None, status="not reached"))
        elif kind == "undefined":
            read.append(a_speed_up(metric, floor_share=share, status="undefined", reason="it diverged"))
        else:
            read.append(a_speed_up(metric, floor_share=share, value=2.0, status="measured"))
    return tuple(read)


@given(any_speed_ups())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_nothing_is_concluded_without_the_intervals(read):
    counted = [one for one in read if one.metric in counting([read])]
    conclusion = conclude(counted)
    for one in counted:
        assert one.low is not None
        assert not one.measures_blur
        assert describe(one.metric).group == "samples"
    faster, slower = any(s.low > 1 for s in counted), any(s.high < 1 for s in counted)
    if conclusion == "faster":
        assert faster and not slower
    if conclusion == "slower":
        assert slower and not faster
    if conclusion == "equal":
        assert not faster and not slower
    assert (conclusion == "mixed") == (faster and slower)
    assert (conclusion == "no evidence") == (not counted)


@given(any_speed_ups())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_the_baseline_has_no_advantage(read):
    """Exchanging the arms (every speed-up becomes its reciprocal) exchanges faster and slower."""
    both = [s for s in read if s.status == "measured" and s.low is not None]
    turned = [a_speed_up(s.metric, 1 / s.high, 1 / s.low, floor_share=s.floor_share) for s in both]
    mirror = {"faster": "slower", "slower": "faster"}
    there, back = (conclude([one for one in some if one.metric in counting([some])]) for some in (both, turned))
    assert mirror.get(there, there) == back


@given(st.sampled_from([0.2, 0.7, 1.0, 1.5, 3.0]), st.integers(1, 3), st.floats(0, 0.2))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_measure_is_counted_once(speed, seeds, width):
    verdict = judged(comparison([speed], seeds=tuple(range(seeds)), width=width, metrics=SAMPLES[:2]), "ssvae")
    assert len(verdict.sentences) == 2
    for sentence in verdict.sentences:
        assert sentence.endswith(".")
        assert sentence[0].isupper() or sentence.startswith("ssvae")
    counts = {name: sum(s.outcome == name for s in verdict.counted) for name in ("faster", "slower")}
    for name, count in counts.items():
        if verdict.conclusion != "no evidence":
            word = {0: "none", 1: "1", 2: "all"}[count] if len(verdict.counted) == 2 else None
            assert word is None or f"{name} on {word}" in verdict.sentences[0]


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (a_speed_up(low=1.9, high=3.6), "2.6× (1.9× to 3.6×)"),
        (
            a_speed_up(low=1.9, high=float("inf"), value=2.0, status="at least"),
            "at the first evaluation (from 1.9×)",
        ),
        (
            a_speed_up(low=0.0, high=0.81),
            "not reached in 3 of 3 runs (up to 0.81× at the best common score)",
        ),
        (
            a_speed_up(low=0.5, high=0.81, seeds=1, reached=0, value=None, status="not reached"),
            "not reached (0.50× to 0.81× at the best common score)",
        ),
        (a_speed_up(reached=2), "not reached in 1 of 3 runs"),
        (a_speed_up(low=0.0, high=2.4, value=1.2, status="measured"), "1.20× (up to 2.4×)"),
        (a_speed_up(value=1.2, status="measured"), "1.20×"),
        (a_speed_up(status="undefined", reason="it diverged"), "not defined"),
        # An end beyond a hundredfold says as much as an open one.
        (
            a_speed_up(low=0.0009, high=1170.0, value=None, status="not reached", reached=0),
            "not reached in 3 of 3 runs (any ratio at the best common score)",
        ),
        (a_speed_up(low=1.3, high=1170.0, value=2.0, status="measured"), "2.0× (from 1.30×)"),
        (a_speed_up(low=0.0009, high=0.4, value=0.2, status="measured"), "0.20× (up to 0.40×)"),
    ],
)
def test_texts_of_speed_ups(read, text):
    assert speed_up_text(read) == text


@given(st.floats(0.01, 1000))
def test_ratios_read_back_within_their_digits(value):
    assert float(ratio(value)[:-1]) == pytest.approx(value, rel=0.05, abs=0.006)


@pytest.mark.parametrize(("share", "text"), [(0.64, "64 %"), (1.28, "100 %")])
def test_a_distance_is_not_blur_by_more_than_all_of_it(share, text):
    assert blur(share) == text


def test_unknown_metrics_are_shown_under_their_own_name():
    assert describe("unified_reward/v2").label == "unified reward, v2"
    assert describe("unified_reward/v2").group == "other"
    assert describe("loss").label == "Loss on standardised latents"
