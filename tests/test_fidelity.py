"""Reconstruction scores against their definitions, computed another way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.data.video_io import to_uint8, to_unit_range
from sat_ssvae.errors import UserError
from sat_ssvae.metrics.fidelity import perceptual_distance, psnr, reconstruction_scores, ssim
from sat_ssvae.metrics.perceptual import build_perceptual


def clips(batch=2, frames=3, size=(24, 32), seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(batch, 3, frames, *size, generator=generator) * 2 - 1
    x = (y + 0.2 * torch.randn(y.shape, generator=generator)).clamp(-1, 1)
    return x, y


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two single-channel images in [-1, 1] by explicit sums over 11x11 windows (Wang et al. 2004)."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            covariance = (window * a * b).sum() - mean_a * mean_b
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


def test_psnr_is_the_mean_over_frames_of_its_definition():
    clip_x, clip_y = clips()
    x, y = clip_x.double().numpy(), clip_y.double().numpy()
    expected = [
        np.mean([10 * np.log10(4 / np.mean((x[b, :, t] - y[b, :, t]) ** 2)) for t in range(3)]) for b in range(2)
    ]
    np.testing.assert_allclose(psnr(clip_x, clip_y), expected, rtol=1e-5)


@given(error=st.floats(0.001, 0.9))
def test_psnr_of_a_constant_error(error):
    y = torch.zeros(1, 3, 2, 4, 4)
    assert psnr(y + error, y).item() == pytest.approx(20 * np.log10(2 / error), rel=1e-4)


def test_psnr_of_an_equal_clip_is_infinite():
    x, _ = clips()
    assert torch.isinf(psnr(x, x)).all()


def test_the_score_of_an_equal_frame_is_that_of_rounding():
    x = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert reconstruction_scores(x, x)["psnr"].tolist() == pytest.approx([58.92] * 2, abs=0.01)
    assert psnr(to_unit_range(to_uint8(x)), x).tolist() == pytest.approx([58.92] * 2, abs=0.1)


def test_ssim_is_its_definition():
    x, y = clips(batch=1, frames=2, size=(14, 13))
    pairs = [(x[0, c, t].double().numpy(), y[0, c, t].double().numpy()) for c in range(3) for t in range(2)]
    expected = np.mean([reference_ssim(*pair) for pair in pairs])
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-5)


def test_ssim_is_one_for_equal_and_falls_with_noise():
    _, y = clips(size=(32, 32))
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    values = [ssim(y + amount * noise, y).mean().item() for amount in (0, 0.05, 0.2, 0.5)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)


def test_pixels_outside_the_range_count_as_cut():
    x, y = clips(size=(32, 32))
    torch.testing.assert_close(psnr(x * 3, y), psnr((x * 3).clamp(-1, 1), y))
    torch.testing.assert_close(ssim(x * 3, y), ssim((x * 3).clamp(-1, 1), y))


def test_scores_are_per_clip_whatever_the_batch():
    x, y = clips(batch=3, frames=14, size=(32, 40))
    network = build_perceptual("st-lpips-alex")
    together = reconstruction_scores(x, y, network)
    assert set(together) == {"psnr", "ssim", "stlpips"}
    assert all(values.shape == (3,) for values in together.values())
    for b in range(3):
        alone = reconstruction_scores(x[b : b + 1], y[b : b + 1], network)
        for name, values in alone.items():
            torch.testing.assert_close(values[0], together[name][b], rtol=1e-4, atol=1e-6)


def test_perceptual_distance_is_the_mean_over_frames():
    x, y = clips(batch=1, frames=3, size=(32, 32))
    network = build_perceptual("st-lpips-alex")
    frames = [network(x[:, :, t], y[:, :, t]) for t in range(3)]
    torch.testing.assert_close(perceptual_distance(x, y, network), torch.stack(frames).mean(0), rtol=1e-4, atol=1e-7)
    assert not perceptual_distance(x.requires_grad_(), y, network).requires_grad


def test_without_a_network_there_is_no_perceptual_score():
    assert set(reconstruction_scores(*clips())) == {"psnr", "ssim"}


def test_what_does_not_fit_is_refused():
    x, y = clips()
    with pytest.raises(ValueError, match="B C T H W"):
        psnr(x, y[:1])
    with pytest.raises(ValueError, match="B C T H W"):
        ssim(x[0], y[0])
    with pytest.raises(UserError, match="at least 11 pixels"):
        ssim(x[..., :10, :], y[..., :10, :])
