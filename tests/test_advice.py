"""The top of a report: arms in their order, what to take, what it costs, and what to run next."""

import dataclasses
import re

import pytest

from sat_ssvae.comparison.answer import PRIMARY
from sat_ssvae.comparison.provenance import Provenance
from sat_ssvae.comparison.report.advice import (
    basis,
    headline,
    leading,
    leading_value,
    minutes_of,
    next_command,
    psnr_cost,
    ranking,
    speed_up_words,
    undecided,
    with_setting,
)
from sat_ssvae.comparison.report.page import render
from sat_ssvae.comparison.results import ABOVE_MEAN_COLOUR, Estimate
from sat_ssvae.comparison.verdict import judge
from sat_ssvae.comparison.wording import speed_up_text

from .comparisons import SAMPLES, comparison
from .parsed_page import Parsed

FEW = SAMPLES[:2]


def advised(results):
    verdicts = judge(results)
    return next_command(results, verdicts, ranking(results, verdicts)[0])


def without_gain(results, *names):
    """Arms whose VAEs explain less than half of the clips' variance."""
    arms = [
        dataclasses.replace(arm, reconstruction=arm.reconstruction | {ABOVE_MEAN_COLOUR: Estimate(1.0)})
        if arm.name in names
        else arm
        for arm in results.arms
    ]
    return dataclasses.replace(results, arms=tuple(arms))


class TestRanking:
    def test_faster_arms_come_first_and_what_does_not_differ_shares_the_baselines_place(self):
        results = comparison(
            [0.4, 2.6, 1.0, 1.9], metrics=FEW, names=["stock", "slow", "fast", "same", "quick"], width=0.01
        )
        standings = ranking(results, judge(results))
        assert [one.arm for one in standings] == ["fast", "quick", "stock", "same", "slow"]
        assert [one.place for one in standings] == [1, 2, 3, 3, 5]

    def test_an_arm_that_cannot_be_judged_has_no_place(self):
        results = without_gain(comparison([2.6, 2.0], metrics=FEW), "ssvae")
        standings = ranking(results, judge(results))
        assert [(one.arm, one.place) for one in standings] == [("lcr only", 1), ("stock", 2), ("ssvae", None)]

    def test_the_primary_measure_stands_for_an_arm(self):
        (verdict,) = judge(comparison([2.0], metrics=SAMPLES, noise=0.0))
        read = leading(verdict)
        assert read.metric == PRIMARY
        assert leading_value(verdict) == read.value == pytest.approx(2.0, rel=0.1)
        assert speed_up_words(verdict) == speed_up_text(read)

    def test_without_it_the_first_that_counts_does(self):
        (verdict,) = judge(comparison([2.0], metrics=[name for name in SAMPLES if name != PRIMARY]))
        assert leading(verdict) == verdict.counted[0]

    def test_a_score_that_is_never_reached_counts_by_its_interval(self):
        (verdict,) = judge(comparison([0.4], metrics=FEW))
        assert 0 < leading_value(verdict) < 0.7


class TestHeadline:
    def headline(self, results):
        return headline(results, ranking(results, judge(results)))

    def test_a_faster_arm_is_taken_with_its_cost(self):
        text = self.headline(comparison([2.6, 1.9], metrics=FEW))
        assert (
            re.match(r"Take ssvae: 2\.\d× fewer steps \(95 %: \d.*× to \d.*×\) to stock's final score\. ", text)
            and "Its reconstruction: −0.1" in text
            and text.endswith(", worse.")
        )

    def test_without_a_faster_arm_the_baseline_stays(self):
        assert self.headline(comparison([0.4], metrics=FEW)) == "Stay with stock: every other arm is slower."
        text = self.headline(comparison([1.0, 0.4], metrics=FEW))
        assert text == "Stay with stock for now: no other arm is shown to be faster, and slower: lcr only."

    def test_an_arm_that_cannot_be_judged_is_not_called_slower(self):
        text = self.headline(without_gain(comparison([0.4, 0.4], metrics=FEW), "lcr only"))
        assert text == "Stay with stock for now: no other arm is shown to be faster, and slower: ssvae."

    def test_a_primary_measure_that_is_undecided_gives_no_number_of_fewer_steps(self):
        results = comparison([{SAMPLES[0]: 2.6, SAMPLES[1]: 2.6, PRIMARY: 0.95}], metrics=SAMPLES[:3], width=0.1)
        text = self.headline(results)
        assert text.startswith("Take ssvae: faster on 2 of 3 sample distances, but undecided by the primary measure: ")
        assert "fewer steps" not in text and "0." in text

    def test_intervals_are_taken_over_seeds_and_videos(self):
        results = comparison([2.6], metrics=[PRIMARY])
        results = dataclasses.replace(results, provenance=Provenance({}, {"a.mp4": 120, "b.mp4": 120}))
        verdicts = judge(results)
        text = basis(results, ranking(results, verdicts))
        assert text.endswith("Intervals are 95 % and taken over the 3 seeds and the 2 held-out videos.")

    def test_one_run_is_called_one(self):
        text = self.headline(comparison([2.6], metrics=FEW, seeds=(0,)))
        assert text.startswith("ssvae leads in this one run: 2.6× fewer steps (95 %: ")

    def test_nothing_is_taken_where_nothing_can_be_judged(self):
        results = without_gain(comparison([2.6], metrics=FEW), "stock")
        assert self.headline(results) == "Take none yet: no arm can be judged."
        assert "train longer, or compress less" in render(results, judge(results))

    def test_longer_training_is_not_advised_for_what_is_not_trained_here(self):
        def of(*given):
            results = without_gain(comparison([2.6], metrics=[PRIMARY], seeds=(0,)), "ssvae")
            place = {"checkpoint": "wan2.1:my vae", "autoencoder": "wan2.1:/home/my vae"}
            arms = [dataclasses.replace(arm, training=place) if arm.name in given else arm for arm in results.arms]
            return dataclasses.replace(
                results, arms=tuple(arms), configuration={"vae": {"max_steps": 1000}}, command="sat-ssvae compare"
            )

        theirs = of("ssvae")
        assert "mean colour: ssvae +1.00 dB); not trained here: look at its recon" in judge(theirs)[0].text
        assert advised(theirs).command.startswith("sat-ssvae reconstruct --checkpoint 'wan2.1:/home/my vae' --input")
        assert advised(of("stock")).command == "sat-ssvae compare vae.max_steps=4000"
        both = without_gain(of("ssvae"), "stock", "ssvae")
        assert "; train stock longer, or compress less; ssvae is not trained here: look at" in judge(both)[0].text
        assert advised(both).command == "sat-ssvae compare vae.max_steps=4000"
        neither = without_gain(of("stock", "ssvae"), "stock", "ssvae")
        assert "; not trained here: look at their reconstructions. " in judge(neither)[0].text


class TestUndecided:
    def said(self, results):
        return undecided(results, judge(results))

    def test_seeds_that_differ_ask_for_more_seeds(self):
        results = comparison([1.3], metrics=[PRIMARY], seeds=(0, 1), noise=0.1, width=0.001)
        text = self.said(results)
        assert re.match(r"Too wide to decide by the primary measure: ssvae \((0\.\d+×|up) to \d.*×\); this 95 % ", text)
        assert text.endswith("Most of the width comes from having only 2 seeds: more narrow it.")
        assert text in Parsed(render(results, judge(results))).text
        assert "more seeds narrow the intervals" in advised(results).why

    def test_scores_that_are_uncertain_ask_for_more_held_out_videos(self):
        results = comparison([1.1], metrics=[PRIMARY], noise=0.0, width=0.3)
        heldout = {f"{number}.mp4": 24 for number in range(10)}
        results = dataclasses.replace(results, provenance=Provenance({}, heldout))
        assert self.said(results).endswith(
            "Most of the width comes from scoring on 240 held-out clips of 10 videos: more held-out videos narrow it."
        )
        assert "only more held-out videos (--data) narrow the intervals much" in advised(results).why

    def test_of_several_arms_each_is_named_with_what_narrows_it(self):
        results = comparison([1.1, 1.1], metrics=[PRIMARY], noise=0.0, width=0.3)
        seeds, evaluation = (
            dataclasses.replace(verdict, counted=(dataclasses.replace(verdict.counted[0], widest=source),))
            for verdict, source in zip(judge(results), ("seeds", "evaluation"), strict=True)
        )
        text = undecided(results, [seeds, evaluation])
        assert "; these 95 % intervals lie on both sides" in text
        assert "For ssvae most of the width comes from having only 3 seeds" in text
        assert "For lcr only most of the width comes from scoring on 240 held-out clips:" in text

    @pytest.mark.parametrize("speed", [2.6, 0.4])
    def test_what_is_decided_has_no_doubt(self, speed):
        assert self.said(comparison([speed], metrics=FEW)) == ""


class TestNextCommand:
    def test_the_smoke_preset_is_followed_by_the_default_one(self):
        results = dataclasses.replace(comparison([2.6], metrics=FEW), command="sat-ssvae compare --preset smoke")
        assert advised(results).command == "sat-ssvae compare --preset default"

    def test_how_long_the_default_takes_is_said_only_where_all_is_trained_here(self):
        results = comparison([2.6], metrics=[PRIMARY], seeds=(0,))
        results = dataclasses.replace(results, command="sat-ssvae compare --preset=smoke")
        assert (
            advised(results).command == "sat-ssvae compare --preset default" and "half an hour" in advised(results).why
        )
        given = dataclasses.replace(results.arms[1], training={"checkpoint": "wan2.1:/vae"})
        assert "hour" not in advised(dataclasses.replace(results, arms=(results.arms[0], given))).why

    def test_one_seed_is_followed_by_three(self):
        advice = advised(comparison([2.6], metrics=FEW, seeds=(4,)))
        assert advice.command == "bash scripts/compare_convergence.sh 'seeds=[4,5,6]'" and "one run" in advice.why

    @pytest.mark.parametrize("stage", ["transformer", "training"])  # of a comparison, of CogVideoX itself
    def test_more_seeds_take_the_time_of_training_again(self, stage):
        minutes = {f"{stage} stock": 600.0, f"{stage} ssvae": 300.0, "scoring ssvae": 60.0, "latents ssvae": 500.0}
        results = dataclasses.replace(comparison([2.6], metrics=FEW, seeds=(0,)), budget={"minutes": minutes})
        assert advised(results).minutes == 2 * 960

    def test_what_cannot_be_judged_is_trained_longer(self):
        results = without_gain(comparison([2.6], metrics=FEW), "stock")
        results = dataclasses.replace(results, configuration={"vae": {"max_steps": 1000}}, command="sat-ssvae compare")
        assert advised(results).command == "sat-ssvae compare vae.max_steps=4000"

    def test_every_stage_of_an_autoencoder_is_trained_longer(self):
        results = without_gain(comparison([2.6], metrics=FEW), "stock")
        stages = [{"max_steps": 3000}, {"max_steps": 1500, "freeze_encoder": True}]
        arms = {"stock": {"stages": []}, "ssvae": {"stages": []}}
        results = dataclasses.replace(
            results, configuration={"vae": {}, "stages": stages, "arms": arms}, command="sat-ssvae compare"
        )
        assert advised(results).command == "sat-ssvae compare stages.0.max_steps=12000 stages.1.max_steps=6000"
        arms = {"stock": {"stages": stages}, "ssvae": {"stages": []}}
        own = dataclasses.replace(results, configuration=results.configuration | {"arms": arms})
        assert advised(own).command == "sat-ssvae compare" and advised(own).why.startswith("train the autoencoders")

    def test_transformers_that_train_longer_are_evaluated_there(self):
        """Without new evaluations the curves would stay as they are."""
        results = comparison([1.0], metrics=FEW)
        flat = tuple(dataclasses.replace(point, value=4.0, low=3.9, high=4.1) for point in results.curves)
        transformer = {"max_steps": 20, "evaluation_steps": [10, 20]}
        results = dataclasses.replace(
            results, curves=flat, configuration={"transformer": transformer}, command="sat-ssvae compare"
        )
        assert advised(results).command == (
            "sat-ssvae compare transformer.max_steps=80 'transformer.evaluation_steps=[10,20,40,80]'"
        )

    def test_more_seeds_are_not_advised_where_all_distances_compare_blur(self):
        results = comparison([2.6], metrics=FEW, seeds=(0,), floors=dict.fromkeys(FEW, 0.9))
        settings = {"configuration": {"vae": {"max_steps": 1000}}, "command": "sat-ssvae compare"}
        results = dataclasses.replace(results, **settings)
        assert judge(results)[0].conclusion == "no evidence"
        assert advised(results).command == "sat-ssvae compare vae.max_steps=4000"
        place = {"checkpoint": "wan2.1:/vae", "autoencoder": "wan2.1:/vae"}
        arms = (dataclasses.replace(results.arms[0], floors={}), dataclasses.replace(results.arms[1], training=place))
        given = dataclasses.replace(results, arms=arms)
        assert advised(given).command.startswith("sat-ssvae reconstruct --checkpoint wan2.1:/vae")
        text = Parsed(render(given, judge(given))).text
        assert "it compares blur: compress less" in text and "every sample distance is mostly" in text

    def test_a_search_of_shifts_is_followed_by_another_seed_of_it(self):
        settings = {"shifts": [1.0, 2.0], "shift_seed": 1000, "vae_seeds": [0, 1]}
        results = comparison([1.0], metrics=[PRIMARY], seeds=(1000,))
        results = dataclasses.replace(results, configuration=settings, command="sat-ssvae compare")
        assert advised(results).command == "sat-ssvae compare shift_seed=1001"

    def test_few_held_out_clips_are_followed_by_more(self):
        results = comparison([2.6], metrics=FEW)
        few = {"measurement": {"held-out clips": 12}, "configuration": {"data": {"heldout_stride": 2.0}}}
        assert "data.heldout_stride=0.5" in advised(dataclasses.replace(results, **few)).command
        few["configuration"] = {"data": {"heldout_stride": 2.0, "max_heldout": 12}}  # a shorter stride gives no more
        assert "heldout_stride" not in advised(dataclasses.replace(results, **few)).command

    def test_a_faster_arm_is_looked_at(self):
        results = comparison([2.6], metrics=FEW)
        trained = dataclasses.replace(results.arms[1], training={"autoencoder": "runs/a b/vae/ssvae"})
        advice = advised(dataclasses.replace(results, arms=(results.arms[0], trained)))
        assert advice.command.startswith("sat-ssvae reconstruct --checkpoint 'runs/a b/vae/ssvae' --input")

    def test_what_is_undecided_gets_more_seeds(self):
        assert "seeds=[0,1,2,3,4,5]" in advised(comparison([1.0], metrics=FEW)).command

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("compare a.b=1", "compare a.b=1 seeds=4"),
            ("compare seeds=1 a.b=1", "compare a.b=1 seeds=4"),
            ("compare 'seeds=[0,1]' a.b=1", "compare a.b=1 seeds=4"),
            ("compare vae_seeds=1", "compare vae_seeds=1 seeds=4"),
            ("compare 'seeds=[0, 1]' a.b=1", "compare a.b=1 seeds=4"),
        ],
    )
    def test_a_setting_is_given_once(self, before, after):
        assert with_setting(before, "seeds", "4") == after


def test_costs_in_words():
    results = comparison([2.6], metrics=FEW, psnr=(20.3, 21.3))
    assert psnr_cost(results, "stock") == "" and psnr_cost(results, "ssvae").endswith("better")
    minutes = {"autoencoder ssvae": 3.0, "transformer ssvae": 2, "autoencoder my ssvae": 9.0}
    timed = dataclasses.replace(results, budget={"minutes": minutes})
    assert minutes_of(timed, "ssvae") == {"autoencoder": 3.0, "transformer": 2.0}
    assert minutes_of(results, "ssvae") == {}
