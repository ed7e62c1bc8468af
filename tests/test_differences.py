"""The line on each arm that says what sets it apart."""

import dataclasses

from sat_ssvae.comparison.report.differences import differing_settings
from sat_ssvae.comparison.report.page import render
from sat_ssvae.comparison.verdict import judge

from .comparisons import SAMPLES, comparison
from .parsed_page import Parsed


def arms(*described):
    """Arms with these (vae, training), the first the baseline."""
    names = ["stock", "ssvae", "third"][: len(described)]
    results = comparison([1.0] * (len(described) - 1), names=names, metrics=SAMPLES[:1])
    pairs = zip(results.arms, described, strict=True)
    return [dataclasses.replace(arm, vae=vae, training=training) for arm, (vae, training) in pairs]


def stages(*masked, lcr=0.0, **more):
    shared = {"lcr_weight": lcr, "reconstruction": {"error": "l1", "kl_weight": 5e-4}, **more}
    return {"stages": [{**shared, "lmr_mask_ratio": share} for share in masked], "autoencoder": f"runs/{masked}"}


VAE = {"latent_channels": 16, "channel_multipliers": [1, 4, 8]}


def test_only_what_differs_is_said_with_its_stages():
    told = differing_settings(arms((VAE, stages(0.0, 0.0)), (VAE, stages(0.2, 0.0, lcr=0.05))))
    assert told == {
        "stock": "lcr_weight 0, lmr_mask_ratio 0",
        "ssvae": "lcr_weight 0.05, lmr_mask_ratio 0.2 then 0",
    }


def test_an_arm_says_what_is_its_own_and_the_baseline_all_of_it():
    other = {**VAE, "channel_multipliers": [1, 2, 4]}
    table = {"0.2": 0.5, "0.4": 0.5}
    told = differing_settings(arms((VAE, stages(0.0)), (other, stages(0.0)), (VAE, stages(table))))
    assert told == {
        "stock": "channel_multipliers [1, 4, 8], lmr_mask_ratio 0",
        "ssvae": "channel_multipliers [1, 2, 4]",
        "third": "lmr_mask_ratio {0.2: 0.5, 0.4: 0.5}",
    }
    same = differing_settings(arms((VAE, stages(0.0)), (other, stages(0.0)), (VAE, stages(0.0))))
    assert same["third"] == "as stock"


def test_an_arm_that_was_not_trained_here_names_its_weights_and_what_all_state():
    foreign = {"class": "AutoencoderKLWan", "latent_channels": 48, "z_dim": 48}
    given = {"checkpoint": "wan2.1:/weights", "autoencoder": "wan2.1:/weights", "timestep shift": 2.0}
    told = differing_settings(arms((VAE, stages(0.0) | {"timestep shift": 1.0}), (foreign, given)))
    assert told == {
        "stock": "latent_channels 16, timestep shift 1",
        "ssvae": "not trained here: wan2.1:/weights, latent_channels 48, timestep shift 2",
    }


def test_a_baseline_that_states_nothing_is_not_called_like_itself():
    told = differing_settings(arms((VAE, stages(0.0)), (VAE, {"checkpoint": "runs/a/vae"})))
    assert told == {"stock": "trained here", "ssvae": "not trained here: runs/a/vae"}


def test_arms_that_do_not_differ_have_no_line():
    assert differing_settings(arms((VAE, stages(0.0)), (VAE, stages(0.0)))) == {}
    assert differing_settings(arms(({}, {}), ({}, {}))) == {}


def test_the_top_of_the_report_says_it():
    results = comparison([2.6], metrics=SAMPLES[:1])
    described = arms((VAE, stages(0.0)), (VAE, stages(0.2, lcr=0.05)))
    results = dataclasses.replace(results, arms=tuple(described))
    text = Parsed(render(results, judge(results))).text
    assert "Settings in which the arms differ" in text and "; all others are the same." in text
    assert "stock lcr_weight 0, lmr_mask_ratio 0 ssvae lcr_weight 0.05, lmr_mask_ratio 0.2" in text
    assert text.index("Run next") < text.index("lcr_weight 0.05") < text.index("Arms and measures")
