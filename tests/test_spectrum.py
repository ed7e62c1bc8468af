"""Spectra against numpy and definitions; the Gaussian floor against Monte Carlo and its closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.spectral import spectrum

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
EIGENVALUES = st.lists(st.floats(1e-6, 50), min_size=1, max_size=40).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)

# scipy 1.17.1: scipy.fft.dctn(np.arange(12.0).reshape(2, 2, 3) ** 1.5, norm="ortho").flatten()
SCIPY = [
    51.71764667057591, -9.272279138912502, 0.35233379326109926, -17.26539994888501, 1.6645839843257608,
    0.10174617493943439, -35.43352884233479, 3.0408196026663177, 0.1395725062046438, 5.401968982734051,
    0.5668755519204183, 0.0827554404978745,
]  # fmt: skip


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fft_dct(x: np.ndarray, axis: int) -> np.ndarray:
    """Orthonormal DCT-II as the Fourier transform of the mirrored signal."""
    n = x.shape[axis]
    mirrored = np.concatenate([x, np.flip(x, axis)], axis)
    k = np.arange(n).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    transformed = np.take(np.fft.fft(mirrored, axis=axis), range(n), axis)
    values = (transformed * np.exp(-1j * np.pi * k / (2 * n))).real / 2
    return values * np.where(k == 0, np.sqrt(1 / n), np.sqrt(2 / n))


@given(shape=SHAPES)
def test_dct_equals_the_fourier_way(shape):
    x = randn(2, 3, *shape)
    expected = x.numpy()
    for axis in (-3, -2, -1):
        expected = fft_dct(expected, axis)
    np.testing.assert_allclose(spectrum.dct3(x), expected, atol=1e-12)


def test_dct_equals_scipy():
    x = torch.arange(12.0, dtype=torch.float64).reshape(2, 2, 3) ** 1.5
    np.testing.assert_allclose(spectrum.dct3(x).flatten(), SCIPY, atol=1e-12)


@given(shape=SHAPES)
def test_dct_keeps_energy_and_a_constant_is_all_dc(shape):
    x = randn(2, *shape)
    assert spectrum.dct3(x).square().sum().item() == pytest.approx(x.square().sum().item())
    flat = spectrum.dct3(torch.ones(shape, dtype=torch.float64)).flatten()
    assert flat[0].item() == pytest.approx(math.sqrt(math.prod(shape)))
    assert flat[1:].abs().sum().item() < 1e-9


@given(shape=SHAPES)
def test_zigzag_is_a_permutation_from_low_to_high(shape):
    order = spectrum.zigzag_order(shape)
    assert sorted(order.tolist()) == list(range(math.prod(shape)))
    planes = np.stack(np.unravel_index(order.numpy(), shape)).sum(0)
    assert (np.diff(planes) >= 0).all()
    assert order[0] == 0


def test_amplitude_by_hand():
    latents = randn(2, 3, 4, 8, 8) + 2
    order = spectrum.zigzag_order((2, 4, 4))
    per_channel = []
    for c in range(3):
        blocks = [
            latents[n, c, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
            for n in range(2)
            for t in range(2)
            for h in range(2)
            for w in range(2)
        ]
        magnitude = torch.stack([spectrum.dct3(block).abs().flatten()[order] for block in blocks]).mean(0)
        per_channel.append(magnitude / magnitude[0])
    torch.testing.assert_close(spectrum.dct_amplitude(latents, (2, 4, 4)), torch.stack(per_channel).mean(0))


def test_what_does_not_fill_a_block_is_left_out_and_small_latents_shrink_the_block():
    latents = randn(2, 3, 5, 9, 11) + 1
    torch.testing.assert_close(spectrum.dct_amplitude(latents), spectrum.dct_amplitude(latents[:, :, :4, :8, :8]))
    assert spectrum.dct_amplitude(latents[:, :, :1, :3, :2]).shape == (6,)


def test_smoother_latents_have_a_lower_amplitude_and_a_higher_low_frequency_share():
    rough = randn(8, 4, 4, 8, 8)
    smooth = torch.nn.functional.avg_pool3d(rough, 3, stride=1, padding=1, count_include_pad=False)
    assert spectrum.dct_amplitude(smooth)[40:].mean() < 0.5 * spectrum.dct_amplitude(rough)[40:].mean()
    assert spectrum.low_frequency_share(smooth) > 2 * spectrum.low_frequency_share(rough)


@pytest.mark.parametrize("fraction", [0.1, 0.125, 0.5, 1.0])
def test_white_noise_has_its_share_in_every_band(fraction):
    assert spectrum.low_frequency_share(randn(200, 2, 4, 8, 8), fraction) == pytest.approx(fraction, abs=0.01)


@given(scale=st.floats(0.01, 100), offset=st.floats(-5, 5))
def test_shares_do_not_depend_on_scale_or_offset(scale, offset):
    latents = randn(3, 2, 4, 4, 4)
    moved = latents * scale + offset
    assert spectrum.low_frequency_share(moved) == pytest.approx(spectrum.low_frequency_share(latents), rel=1e-6)
    before, after = (spectrum.cumulative_explained_variance(spectrum.channel_eigenvalues(z)) for z in (latents, moved))
    torch.testing.assert_close(before, after)


def test_channel_eigenvalues_equal_numpy():
    mixing = randn(5, 5, seed=1)
    latents = torch.einsum("nc...,cd->nd...", randn(6, 5, 3, 4, 4), mixing).float()
    rows = latents.double().movedim(1, 0).flatten(1).numpy()
    expected = np.sort(np.linalg.eigvals(np.cov(rows)).real)[::-1]
    np.testing.assert_allclose(spectrum.channel_eigenvalues(latents), expected, rtol=1e-9)


def test_latent_eigenvalues_of_white_channels_are_those_of_the_channels():
    values = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    latents = randn(4000, 3, 2, 3, 2) * values.sqrt().view(1, 3, 1, 1, 1)
    expected = values.repeat_interleave(12)
    torch.testing.assert_close(spectrum.latent_eigenvalues(latents), expected, rtol=0.12, atol=0)


def test_latent_eigenvalues_see_correlation_between_positions_and_keep_the_variance():
    smooth = torch.nn.functional.avg_pool3d(randn(500, 3, 4, 8, 8), 3, stride=1, padding=1)
    values = spectrum.latent_eigenvalues(smooth)
    assert values.shape == (3 * 4 * 8 * 8,)
    assert values.sum().item() == pytest.approx(smooth.var(0).sum().item())
    channels = spectrum.channel_eigenvalues(smooth)
    assert spectrum.mean_gaussian_floor(values) < 0.7 * spectrum.mean_gaussian_floor(channels)


def test_latent_eigenvalues_diagonalise_a_covariance_that_the_dct_diagonalises():
    shape = (2, 3, 4)
    power = torch.linspace(3, 0.1, math.prod(shape), dtype=torch.float64)
    coefficients = randn(20000, math.prod(shape)) * power.sqrt()
    bases = [spectrum.dct_matrix(size) for size in shape]
    latents = torch.einsum("nijk,it,jh,kw->nthw", coefficients.view(-1, *shape), *bases)[:, None]
    full = torch.linalg.eigvalsh(torch.cov(latents.flatten(1).T)).flip(0)
    torch.testing.assert_close(spectrum.latent_eigenvalues(latents), full, rtol=0.05, atol=0)


@given(values=EIGENVALUES)
def test_cumulative_variance_rises_to_one_and_modes_reach_their_share(values):
    cumulative = spectrum.cumulative_explained_variance(values)
    assert cumulative[-1].item() == pytest.approx(1)
    assert (cumulative.diff() >= 0).all() and (cumulative.diff(n=2) <= 1e-12).all()  # largest first
    for share in (0.3, 0.9, 1.0):
        modes = spectrum.modes_for(values, share)
        assert cumulative[modes - 1] >= share - 1e-9
        assert modes == 1 or cumulative[modes - 2] < share


def test_modes_by_hand():
    values = torch.tensor([1.0, 5.0, 3.0, 1.0])
    assert spectrum.cumulative_explained_variance(values).tolist() == pytest.approx([0.5, 0.8, 0.9, 1.0])
    assert [spectrum.modes_for(values, share) for share in (0.5, 0.51, 0.8, 0.9, 1.0)] == [1, 2, 2, 3, 4]


def flow_floor(values, t):
    """The floor of flow matching at noise levels t."""
    level = torch.as_tensor(t, dtype=torch.float64)
    return spectrum.gaussian_floor(values, 1 - level, level)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_floor_is_what_a_fitted_linear_predictor_leaves(t):
    values = torch.tensor([3.0, 0.8, 0.15, 0.05], dtype=torch.float64)
    basis = torch.linalg.qr(randn(4, 4, seed=3)).Q
    clean = randn(200_000, 4, seed=1) * values.sqrt() @ basis.T
    noise = randn(200_000, 4, seed=2)
    noisy, target = (1 - t) * clean + t * noise, noise - clean
    predictor = torch.linalg.lstsq(noisy, target).solution
    left = (target - noisy @ predictor).square().mean().item()
    assert flow_floor(values, t).item() == pytest.approx(left, rel=0.01)


@given(values=EIGENVALUES)
def test_mean_floor_is_the_integral_over_t(values):
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    integral = np.mean([flow_floor(values[i : i + 1], t).mean().item() for i in range(len(values))])
    closed = (math.pi / 2 * values.sqrt().sum() / len(values)).item()
    assert spectrum.mean_gaussian_floor(values) == pytest.approx(closed)
    assert integral == pytest.approx(closed, rel=2e-3)


@given(values=EIGENVALUES)
def test_an_uneven_spectrum_lowers_the_floor(values):
    even = torch.full_like(values, values.mean().item())
    assert spectrum.mean_gaussian_floor(values) <= spectrum.mean_gaussian_floor(even) + 1e-9


def test_floor_at_the_ends():
    values = torch.tensor([2.0, 0.0])
    assert flow_floor(values, torch.tensor([1.0])).tolist() == [1.0]  # only the mean is known
    assert flow_floor(torch.tensor([2.0, 3.0]), 0.0).item() == 1.0  # only the noise is unknown
    assert flow_floor(values, torch.zeros(2, 3) + 0.5).shape == (2, 3)


def test_half_precision_latents_are_analysed_in_double():
    latents = (randn(4, 3, 4, 8, 8) * 0.01 + 30).bfloat16()
    exact = latents.double()
    torch.testing.assert_close(spectrum.channel_eigenvalues(latents), spectrum.channel_eigenvalues(exact))
    assert spectrum.dct_amplitude(latents).dtype == torch.float64


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="N c t h w"):
        spectrum.dct_amplitude(torch.zeros(3, 4, 8, 8))
    with pytest.raises(ValueError, match="fraction"):
        spectrum.low_frequency_share(torch.zeros(1, 3, 4, 8, 8), 0)
    with pytest.raises(ValueError, match="share"):
        spectrum.modes_for(torch.ones(3), 1.5)


def test_a_wave_has_one_frequency_at_every_compression():
    """A cosine over 64x96 pixels, as latents of 4x4 and of 8x8 pixels a position see it."""
    for factor in (4, 8):
        y = (torch.arange(64 // factor, dtype=torch.float64) + 0.5) * factor
        wave = torch.cos(math.pi * 5 / 64 * y)[:, None].expand(-1, 96 // factor)  # 2.5 periods in 64 pixels
        latents = 3 * wave.expand(2, 4, 3, -1, -1) + 7
        got = spectrum.spatial_spectrum(latents, (64, 96))
        peak = int(got.mean.argmax())
        assert got.frequency[peak] == pytest.approx(5 / 128, rel=0.1)
        power = got.amplitude.square()
        assert power[:, peak].min() > 0 and power.sum(1).sub(power[:, peak]).abs().max() < 1e-9 * power[:, peak].min()
        assert got.frequency.max() < 1 / (2 * factor) and (got.frequency.diff() > 0).all()
        t = spectrum.temporal_spectrum(latents, 9)
        assert t.frequency.tolist() == pytest.approx([1 / 18, 2 / 18]) and t.amplitude.max() < 1e-9


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_the_decay_of_a_power_law(exponent):
    shape = torch.arange(32, dtype=torch.float64)
    radius = torch.hypot(shape[:, None], shape).clamp_min(1)
    rows = spectrum.dct_matrix(32)
    latents = rows.T @ (randn(6, 8, 4, 32, 32) * radius**-exponent) @ rows
    got = spectrum.spatial_spectrum(1000 * latents, (256, 256))
    assert got.decay.shape == (6,) and got.decay.mean() == pytest.approx(exponent, abs=0.08)
    assert spectrum.spatial_spectrum(latents - 40, (256, 256)).mean.tolist() == pytest.approx(got.mean.tolist())


def test_white_noise_has_amplitude_one_everywhere():
    latents = 5 * randn(8, 6, 9, 16, 12) - 2
    for got in (spectrum.spatial_spectrum(latents, (128, 96)), spectrum.temporal_spectrum(latents, 33)):
        assert got.mean.tolist() == pytest.approx([1] * len(got.frequency), abs=0.08)
        assert got.amplitude.shape == (8, len(got.frequency))
    assert spectrum.spatial_spectrum(latents[..., :2, :2], (16, 16)).decay is None
    assert len(spectrum.temporal_spectrum(latents[:, :, :1], 1).frequency) == 0
