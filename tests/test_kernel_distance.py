"""The kernel distance is unbiased and its interval covers: against the closed form for Gaussians."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.errors import UserError
from sat_ssvae.metrics.kernel_distance import bootstrap_interval, kernel_distance


class Gaussian:
    """Independent dimensions of equal spread around a mean vector."""

    def __init__(self, mean: torch.Tensor, std: float):
        self.mean, self.std = mean.double(), std

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + self.std * noise


def expected_kernel(p: Gaussian, q: Gaussian) -> float:
    """E (a.b / D + 1)^3 for independent a ~ p and b ~ q, from the moments of a.b."""
    dim, inner = len(p.mean), float(p.mean @ q.mean)
    p2, q2 = float(p.mean @ p.mean), float(q.mean @ q.mean)
    square_a = p2 + dim * p.std**2
    second = inner**2 + p.std**2 * q2 + q.std**2 * square_a
    third = inner**3 + 3 * inner * p.std**2 * q2 + 3 * q.std**2 * inner * (p2 + (dim + 2) * p.std**2)
    return third / dim**3 + 3 * second / dim**2 + 3 * inner / dim + 1


def true_distance(p: Gaussian, q: Gaussian) -> float:
    return expected_kernel(p, p) + expected_kernel(q, q) - 2 * expected_kernel(p, q)


def pair(dim: int, shift: float, scale: float) -> tuple[Gaussian, Gaussian]:
    """Two distributions `shift` standard deviations apart in one direction; the second is `scale` as wide."""
    mean = torch.full((dim,), 0.5)
    moved = mean.clone()
    moved[0] += shift
    return Gaussian(mean, 1.0), Gaussian(moved, scale)


CASES = [(0.0, 1.0), (0.6, 1.0), (2.0, 1.0), (0.0, 1.4)]


def test_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 7, generator=generator) for n in (5, 4))

    def k(a, b):
        return float((a.double() @ b.double() / 7 + 1) ** 3)

    def within(z):
        pairs = list(itertools.permutations(range(len(z)), 2))
        return sum(k(z[i], z[j]) for i, j in pairs) / len(pairs)

    across = sum(k(a, b) for a in x for b in y) / 20
    assert kernel_distance(x, y) == pytest.approx(within(x) + within(y) - 2 * across, rel=1e-9)


@pytest.mark.parametrize(("shift", "scale"), CASES)
@pytest.mark.parametrize(("n", "m"), [(2, 3), (20, 10)])
def test_unbiased_whatever_the_number_of_samples(n, m, shift, scale):
    p, q = pair(4, shift, scale)
    generator = torch.Generator().manual_seed(1)
    trials = 6_000 // n
    values = torch.tensor([kernel_distance(p.sample(n, generator), q.sample(m, generator)) for _ in range(trials)])
    standard_error = values.std().item() / trials**0.5
    assert abs(values.mean().item() - true_distance(p, q)) < 4 * standard_error


@pytest.mark.parametrize("dim", [8, 256])
@pytest.mark.parametrize(("shift", "scale"), CASES)
def test_interval_covers(dim, shift, scale):
    # The kernel divides by the dimension: the shift grows with it, so that it stays visible.
    p, q = pair(dim, shift * (dim / 8) ** 0.5, scale)
    truth, trials = true_distance(p, q), 150
    generator = torch.Generator().manual_seed(2)
    estimates, widths, covered = [], [], 0
    for trial in range(trials):
        x, y = p.sample(64, generator), q.sample(96, generator)
        low, high = bootstrap_interval(x, y, seed=trial, resamples=200)
        covered += low <= truth <= high
        estimates.append(kernel_distance(x, y))
        widths.append(high - low)
    assert covered / trials >= 0.91  # of 150 intervals with coverage 0.95, fewer happen once in 50 times
    ideal = 2 * 1.96 * torch.tensor(estimates).std()
    assert torch.tensor(widths).mean() < (2.5 if (shift, scale) == (0, 1) else 2.0) * ideal


def test_interval_is_centred_where_a_naive_bootstrap_is_not():
    p, _ = pair(8, 0, 1)
    generator = torch.Generator().manual_seed(3)
    x, y = p.sample(40, generator), p.sample(40, generator)
    low, high = bootstrap_interval(x, y)
    resamples = []
    for _ in range(200):
        i, j = (torch.randint(40, (40,), generator=generator) for _ in range(2))
        resamples.append(kernel_distance(x[i], y[j]))
    assert (low + high) / 2 == pytest.approx(kernel_distance(x, y))
    assert torch.tensor(resamples).mean() > kernel_distance(x, y) + 0.1 * (high - low)


def test_interval_narrows_with_more_samples():
    p, q = pair(8, 1, 1)
    generator = torch.Generator().manual_seed(4)
    x, y = p.sample(400, generator), q.sample(400, generator)
    few, many = (bootstrap_interval(x[:count], y[:count]) for count in (50, 400))
    assert many[1] - many[0] < 0.55 * (few[1] - few[0])
    assert many[0] < kernel_distance(x, y) < many[1]


@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), m=st.integers(2, 12), dim=st.integers(1, 20))
def test_symmetric_and_blind_to_order(seed, n, m, dim):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, dim, generator=generator), torch.randn(m, dim, generator=generator) + 1
    value = kernel_distance(x, y)
    assert kernel_distance(y, x) == pytest.approx(value, rel=1e-9, abs=1e-9)
    shuffled = x[torch.randperm(n, generator=generator)]
    assert kernel_distance(shuffled, y.flip(0)) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_seed_decides_the_interval_and_the_global_generator_does_not_move():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(20, 3, generator=generator), torch.randn(4, 3, generator=generator)
    before = torch.get_rng_state()
    assert bootstrap_interval(x, y, seed=7) == bootstrap_interval(x, y, seed=7)
    assert bootstrap_interval(x, y, seed=7) != bootstrap_interval(x, y, seed=8)
    assert torch.equal(before, torch.get_rng_state())


def test_users_mistakes_and_wrong_shapes():
    x = torch.randn(5, 3)
    with pytest.raises(UserError, match="at least 2 clips in each set, got 5 and 1"):
        kernel_distance(x, x[:1])
    with pytest.raises(UserError, match="at least 4 clips in each set, got 3 and 5"):
        bootstrap_interval(x[:3], x)
    with pytest.raises(UserError, match="NaN or infinite pixels"):
        bootstrap_interval(x, x.clone().fill_(torch.nan))
    with pytest.raises(ValueError, match=r"features \(n, D\)"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval(x, x, resamples=1)
