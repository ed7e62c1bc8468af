"""LCR's closed form against Pearson correlations of every pair, computed by NumPy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.spectral.correlation import correlation_loss, local_correlation

sizes = st.tuples(st.integers(1, 2), st.integers(2, 6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
windows = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


def brute_force(latents, window, tiling):
    """Mean over windows of the mean np.corrcoef over pairs; None without pairs."""
    x = latents.double().numpy()
    x = (x - x.mean((0, 2, 3, 4), keepdims=True)) / x.std((0, 2, 3, 4), ddof=1, keepdims=True)
    groups = [(x[:, :, :1], (1, *window[1:])), (x[:, :, 1:], window)]
    means = []
    for group, extents in groups:
        size = group.shape[2:]
        if size[0] == 0:
            continue
        fitted = [min(a, b) for a, b in zip(extents, size, strict=True)]
        starts = [range(0, n, k) if tiling == "tiled" else range(n - k + 1) for n, k in zip(size, fitted, strict=True)]
        values = []
        for sample, *corner in itertools.product(range(len(x)), *starts):
            index = tuple(slice(c, c + k) for c, k in zip(corner, fitted, strict=True))
            vectors = group[sample][(slice(None), *index)].reshape(group.shape[1], -1).T
            if len(vectors) > 1:
                pairs = itertools.combinations(vectors, 2)
                values.append(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))
        means.append(np.mean(values) if values else None)
    return means


@settings(max_examples=80, deadline=None)
@given(sizes, windows, st.sampled_from(["tiled", "sliding"]), st.integers(0, 2**31))
def test_equals_pairwise_pearson_correlation(size, window, tiling, seed):
    latents = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    if latents[:, 0].numel() < 3:
        return  # two values standardise to +-1 and their centred vectors may vanish: nothing to compare
    expected = brute_force(latents, window, tiling)
    actual = local_correlation(latents, window, tiling)
    for ours, reference in zip(actual, [*expected, None], strict=False):
        if reference is None:
            assert ours is None
        else:
            assert ours.item() == pytest.approx(reference, abs=2e-4)


def test_threshold_one_is_the_articles_form():
    latents = torch.randn(2, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    correlation = local_correlation(latents, (3, 3, 3))
    assert correlation_loss(correlation, threshold=1.0).item() == pytest.approx(1 - correlation.mean.item())


def test_no_loss_above_the_threshold():
    one = torch.randn(1, 8, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    smooth = one * torch.linspace(0.9, 1.1, 4).view(1, 1, 1, 1, 4) + torch.zeros(1, 8, 3, 4, 4)
    noisy = torch.randn(1, 8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert correlation_loss(local_correlation(noisy), 0.75) > 0.5
    # A ramp standardises to +-r in each half: windows of two columns agree perfectly.
    assert correlation_loss(local_correlation(smooth), 0.75) == 0


@pytest.mark.parametrize("size", [(1, 4, 1, 1, 1), (3, 4, 1, 1, 1)])
def test_one_position_windows_have_no_correlation_instead_of_nan(size):
    correlation = local_correlation(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    assert correlation.mean is None
    assert correlation_loss(correlation) is None


def test_constant_latents_give_finite_loss_and_gradient():
    latents = torch.zeros(1, 4, 2, 4, 4, requires_grad=True)
    loss = correlation_loss(local_correlation(latents))
    loss.backward()
    assert loss.isfinite() and latents.grad.isfinite().all()


def test_runs_in_float32_under_autocast():
    latents = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = local_correlation(latents).mean
    assert inside.dtype == torch.float32
    assert inside.item() == local_correlation(latents).mean.item()


def test_minimising_the_loss_raises_the_correlation():
    latents = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = local_correlation(latents).mean.item()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(correlation_loss(local_correlation(latents), 1.0), latents)
        latents = (latents - 20 * gradient).detach().requires_grad_()
    assert local_correlation(latents).mean.item() > before + 0.3
