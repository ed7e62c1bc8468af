"""The diagonal Gaussian posterior, against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence

from sat_ssvae.vae.posterior import Posterior


def moments(seed=0):
    return torch.randn(2, 6, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_kl_equals_the_library_formula():
    posterior = Posterior.from_moments(moments())
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(posterior.kl(), expected, rtol=1e-5, atol=1e-4)


def test_samples_have_the_moments():
    wide = Posterior(torch.full((1, 1, 1, 200, 200), 3.0), torch.full((1, 1, 1, 200, 200), -2.0))
    sample = wide.sample(torch.Generator().manual_seed(0))
    assert abs(sample.mean().item() - 3.0) < 0.01
    assert abs(sample.std().item() - wide.std.mean().item()) < 0.01


def test_sampling_uses_the_given_generator_alone():
    posterior = Posterior.from_moments(moments())
    state = torch.get_rng_state()
    first = posterior.sample(torch.Generator().manual_seed(1))
    assert torch.equal(first, posterior.sample(torch.Generator().manual_seed(1)))
    assert torch.equal(state, torch.get_rng_state())


def test_extreme_log_variances_stay_finite():
    extreme = Posterior.from_moments(torch.tensor([0.0, 1e6]).view(1, 2, 1, 1, 1))
    assert extreme.kl().isfinite().all() and extreme.sample(torch.Generator().manual_seed(0)).isfinite().all()
