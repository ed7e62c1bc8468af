"""Diffusion processes: their algebra, and their samplers against Gaussians whose solution is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sat_ssvae.diffusion.process import (
    DiffusionProcess,
    FlowMatching,
    VPrediction,
    edit,
    guided,
    stratified_uniform,
)

PROCESSES = [
    FlowMatching(),
    FlowMatching(t_distribution="logit_normal", logit_mean=0.3, logit_std=0.8, solver="euler"),
    VPrediction(),
    VPrediction(shift_scale=3.0),
]
processes = st.sampled_from(PROCESSES)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian_predictor(process, mean, std):
    """The best possible prediction E[target | x_t] for data that are N(mean, std^2) in every element."""

    def predict(x, t):
        a, s = (factor[:, None] for factor in process.signal_and_noise(t))
        variance = a**2 * std**2 + s**2
        centred = x - a * mean
        x0 = mean + a * std**2 / variance * centred
        noise = s / variance * centred
        return process.target(x0, noise, t)

    return predict


@given(process=processes, t=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_true_target_gives_back_x0_exactly(process, t, seed):
    x0, noise = randn(3, 4, 2, 2, 2, seed=seed), randn(3, 4, 2, 2, 2, seed=seed + 1)
    times = torch.full((3,), t)
    target = process.target(x0, noise, times)
    estimate = process.denoise(lambda x, _: target, process.corrupt(x0, noise, times), times)
    torch.testing.assert_close(estimate, x0, atol=2e-5, rtol=0)
    loss = process.loss(lambda x, _: target, x0, noise, times)
    assert loss.shape == (3,)
    assert (loss == 0).all()


@given(process=processes, seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_ends_of_the_process_are_data_and_pure_noise(process, seed):
    x0, noise = randn(2, 3, 4, seed=seed), randn(2, 3, 4, seed=seed + 1)
    torch.testing.assert_close(process.corrupt(x0, noise, torch.ones(2)), noise)
    start = process.corrupt(x0, noise, torch.zeros(2))
    # CogVideoX's first discrete step carries sqrt(beta_start) of noise (divided by the SNR shift), flow none.
    expected_noise = 0.0 if isinstance(process, FlowMatching) else math.sqrt(0.00085 * process.shift_scale)
    torch.testing.assert_close((start - x0).std() / noise.std(), torch.tensor(expected_noise), atol=2e-3, rtol=0.05)


@given(process=processes, t=st.floats(0, 1), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_corruption_uses_the_stated_factors(process, t, seed):
    x0, noise, times = randn(2, 3, 4, seed=seed), randn(2, 3, 4, seed=seed + 1), torch.full((2,), t)
    signal, sigma = (factor[:, None, None] for factor in process.signal_and_noise(times))
    torch.testing.assert_close(process.corrupt(x0, noise, times), signal * x0 + sigma * noise)


def test_loss_is_per_sample_and_in_float32():
    process = FlowMatching()
    x0, noise = randn(4, 2, 3), randn(4, 2, 3, seed=1)
    offsets = torch.tensor([0.0, 1.0, 2.0, 3.0])

    def predict(x, t):
        return (process.target(x0, noise, t) + offsets[:, None, None]).double()

    loss = process.loss(predict, x0, noise, torch.full((4,), 0.5))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, offsets**2)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.kind}-{p.model_dump()}"[:40])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-0.5, 2.0)])
def test_sampler_reproduces_a_gaussian(process, mean, std):
    noise = randn(2000, 2)
    samples = process.sample(gaussian_predictor(process, mean, std), noise, steps=1000)
    # The flow of a Gaussian is affine: noise n becomes mean + std * n.
    torch.testing.assert_close(samples, mean + std * noise, atol=0.03, rtol=0)
    torch.testing.assert_close(samples.mean() - std * noise.mean(), torch.tensor(mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(samples.std() / noise.std(), torch.tensor(std), atol=0.01, rtol=0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solver_has_its_order_of_convergence(solver, order):
    process = FlowMatching(solver=solver)
    noise = randn(64, 2)
    exact = 0.4 + 0.6 * noise
    errors = []
    for steps in (20, 40):
        samples = process.sample(gaussian_predictor(process, 0.4, 0.6), noise, steps=steps)
        errors.append((samples - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@given(process=processes, seed=st.integers(0, 50), steps=st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_a_perfect_model_of_one_point_is_sampled_in_any_number_of_steps(process, seed, steps):
    x0 = randn(2, 3, seed=seed)

    def predict(x, t):  # all data are x0: the noise in x_t is known
        a, s = (factor[:, None] for factor in process.signal_and_noise(t))
        return process.target(x0, (x - a * x0) / s, t)

    torch.testing.assert_close(process.sample(predict, randn(2, 3, seed=99), steps), x0, atol=1e-4, rtol=0)


def test_v_prediction_schedule_is_the_published_one():
    t = torch.arange(1000) / 999
    signal, noise = VPrediction().signal_and_noise(t)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(1000))
    assert signal[-1] == 0
    assert noise[-1] == 1
    assert (signal.diff() < 0).all()
    # First beta 0.00085; a schedule without zero terminal SNR ends at prod(1 - beta) = 0.00466.
    assert signal[0].item() ** 2 == pytest.approx(1 - 0.00085, rel=1e-6)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    plain = torch.cumprod(1 - betas, 0).sqrt()
    middle = (plain[500] - plain[-1]) / (plain[0] - plain[-1]) * plain[0]
    assert signal[500].item() == pytest.approx(middle.item(), rel=1e-6)


def test_shift_scale_divides_the_signal_to_noise_ratio():
    t = torch.tensor([0.1, 0.3, 0.5])

    def snr(scale):
        # The stretch to zero terminal SNR, which comes after the shift, is small at early steps.
        signal, noise = VPrediction(shift_scale=scale).signal_and_noise(t)
        return signal**2 / noise**2

    ratio = snr(1.0) / snr(3.0)
    assert ((ratio > 2.4) & (ratio < 4.5)).all()


@given(batch=st.integers(1, 64), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_stratified_draws_hit_every_part_once(batch, seed):
    draws = stratified_uniform(batch, torch.Generator().manual_seed(seed))
    assert sorted((draws * batch).floor().long().clamp(max=batch - 1).tolist()) == list(range(batch))


@given(process=processes, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_noise_levels_are_in_range_and_depend_on_the_generator_alone(process, seed):
    first = process.sample_t(33, torch.Generator().manual_seed(seed))
    second = process.sample_t(33, torch.Generator().manual_seed(seed))
    assert torch.equal(first, second)
    assert ((first >= 0) & (first <= 1)).all()


def test_noise_levels_have_their_distribution():
    generator = torch.Generator().manual_seed(0)
    uniform = FlowMatching().sample_t(20000, generator).sort().values
    torch.testing.assert_close(uniform, (torch.arange(20000) + 0.5) / 20000, atol=1e-4, rtol=0)
    process = FlowMatching(t_distribution="logit_normal", logit_mean=0.5, logit_std=0.7)
    logits = torch.logit(process.sample_t(20000, generator).double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(0.7, abs=0.01)
    index = VPrediction().sample_t(20000, generator) * 999
    torch.testing.assert_close(index, index.round(), atol=1e-3, rtol=0)
    assert torch.bincount(index.round().long(), minlength=1000).tolist() == [20] * 1000


@pytest.mark.parametrize("process", PROCESSES)
def test_sdedit_keeps_what_is_near_and_forgets_what_is_noised_away(process):
    predict = gaussian_predictor(process, mean=0.5, std=0.2)
    x0, noise = 0.5 + 0.2 * randn(4, 64), randn(4, 64, seed=1)
    nearly = edit(process, predict, x0, noise, 0.003, 2)
    assert (nearly - x0).abs().mean() < 0.1 < (edit(process, predict, x0, noise, 0.9, 4) - x0).abs().mean()
    torch.testing.assert_close(edit(process, predict, x0, noise, 1.0, 8), process.sample(predict, noise, 8))


@pytest.mark.parametrize("process", PROCESSES)
def test_sdedit_takes_noise_away_that_the_data_do_not_have(process):
    """Its one step is the mean of what fits, which is nearer to the clean data than a sample of it."""
    predict = gaussian_predictor(process, mean=0.5, std=0.2)
    clean = 0.5 + 0.2 * randn(8, 512)
    degraded = clean + 0.6 * randn(8, 512, seed=1)
    noise = randn(8, 512, seed=2)
    one, many = (edit(process, predict, degraded, noise, 0.5, steps) for steps in (1, 20))
    before, mean, sample = ((x - clean).square().mean().item() for x in (degraded, one, many))
    assert mean < sample < before and mean < 0.2 * before
    t = process.levels(1, 0.5).expand(8)
    torch.testing.assert_close(one, process.denoise(predict, process.corrupt(degraded, noise, t), t))


@given(process=processes, steps=st.integers(1, 30), start=st.floats(0.01, 1))
def test_levels_fall_from_the_start(process, steps, start):
    levels = process.levels(steps, start)
    assert levels.shape == (steps,) and (levels.diff() <= 0).all() and levels.min() >= 0
    assert levels[0].item() == pytest.approx(start, abs=2e-3)


def test_guidance_moves_away_from_the_textless_prediction():
    with_text, without = randn(2, 3), randn(2, 3, seed=1)
    predict = guided(lambda x, t: with_text, lambda x, t: without, 3.0)
    torch.testing.assert_close(predict(with_text, torch.ones(2)), without + 3 * (with_text - without))


def test_too_many_ddim_steps_are_refused():
    process = VPrediction(num_steps=10)
    with pytest.raises(ValueError, match="11 sampling steps"):
        process.sample(lambda x, t: x, randn(1, 2), 11)
    assert process.sample(lambda x, t: x * 0, randn(1, 2), 10).shape == (1, 2)


def test_configuration_selects_the_process_by_kind():
    adapter = TypeAdapter(DiffusionProcess)
    assert adapter.validate_python({"kind": "v_prediction", "shift_scale": 3}) == VPrediction(shift_scale=3)
    assert adapter.validate_python({"kind": "flow_matching"}) == FlowMatching()
    with pytest.raises(ValidationError, match="shift_scale"):
        adapter.validate_python({"kind": "flow_matching", "shift_scale": 3})


@given(st.floats(0.1, 10), st.integers(1, 12), st.floats(0.05, 1))
def test_a_shift_moves_the_levels_of_sampling_and_keeps_their_ends(shift, steps, start):
    levels = FlowMatching(shift=shift).levels(steps, start)
    assert levels[0] == pytest.approx(start) and (levels.diff() < 0).all() and (levels > 0).all()
    plain = FlowMatching().levels(steps, start)
    if steps > 1:
        assert ((levels[1:] >= plain[1:] - 1e-6) if shift >= 1 else (levels[1:] <= plain[1:] + 1e-6)).all()


def test_a_shift_in_numbers():
    """s t / (1 + (s - 1) t), in training and in sampling; 1 changes nothing."""
    assert FlowMatching(shift=3).levels(4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5])
    drawn = [FlowMatching(shift=s).sample_t(64, torch.Generator().manual_seed(0)) for s in (1, 3)]
    torch.testing.assert_close(drawn[1], 3 * drawn[0] / (1 + 2 * drawn[0]))
    assert drawn[1].median() == pytest.approx(0.75, abs=0.02)
