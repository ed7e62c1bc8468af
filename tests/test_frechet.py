"""The Frechet distance against closed forms, and the features of clips from a TorchScript with I3D's signature."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.errors import UserError
from sat_ssvae.metrics.frechet import I3D, SIDE, ClipCollector, frechet_distance

from .foreign_models import small_i3d
from .small_models import random_video

CPU = torch.device("cpu")


def sample_of(mean, covariance, count, seed=0):
    """Points whose sample mean and covariance (n - 1) are exactly these."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / (count - 1)), z.T, upper=False).T
    return z @ torch.linalg.cholesky(torch.as_tensor(covariance, dtype=torch.float64)).T + torch.as_tensor(mean)


numbers = st.floats(-3, 3)
scales = st.floats(0.1, 3)


@given(st.lists(st.tuples(numbers, numbers, scales, scales), min_size=1, max_size=6))
def test_equals_the_closed_form_of_independent_gaussians(values):
    means, others, first, second = (np.array(column) for column in zip(*values, strict=True))
    x = sample_of(means, np.diag(first**2), 20)
    y = sample_of(others, np.diag(second**2), 30, seed=1)
    expected = ((means - others) ** 2).sum() + ((first - second) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-8)


@given(st.tuples(scales, scales, st.floats(-0.9, 0.9)), st.tuples(scales, scales, st.floats(-0.9, 0.9)))
def test_equals_the_closed_form_of_correlated_gaussians(first, second):
    """Of a 2x2 matrix M with positive eigenvalues, tr(M^(1/2))^2 = tr(M) + 2 det(M)^(1/2)."""
    a, b = (np.array([[s**2, r * s * t], [r * s * t, t**2]]) for s, t, r in (first, second))
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 1 + np.trace(a) + np.trace(b) - 2 * root
    x, y = sample_of([0.0, 1.0], a, 12), sample_of([0.0, 0.0], b, 9, seed=1)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-7)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 40))
def test_is_symmetric_and_sound_with_fewer_clips_than_dimensions(n, m, dimension):
    generator = torch.Generator().manual_seed(n + 10 * m + 100 * dimension)
    x, y = (torch.randn(count, dimension, generator=generator) for count in (n, m))
    distance = frechet_distance(x, y)
    assert distance == pytest.approx(frechet_distance(y, x), rel=1e-9, abs=1e-9) and distance >= 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    rotation = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator).double()).Q
    turned = frechet_distance(x.double() @ rotation + 5, y.double() @ rotation + 5)
    assert turned == pytest.approx(distance, rel=1e-6, abs=1e-6)


def test_what_has_no_distance():
    with pytest.raises(UserError, match="at least 2 clips in each set, got 1 and 3"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(3, 4))
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(torch.full((2, 4), float("nan")), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\(n, D\)"):
        frechet_distance(torch.zeros(2, 3), torch.zeros(3, 4))


def test_clips_are_cut_one_after_the_other_whatever_the_pieces(tmp_path):
    i3d = I3D(small_i3d(tmp_path / "i3d.pt"), CPU)
    video = random_video(25, 20, 30)
    collector = ClipCollector(i3d, frames=11)
    for piece in video.split([3, 9, 13], dim=2):
        collector.add(piece)
    frames = torch.nn.functional.interpolate(video[0].clamp(-1, 1).transpose(0, 1), size=(SIDE, SIDE), mode="bilinear")
    expected = [i3d(frames[start : start + 11].transpose(0, 1)[None]) for start in (0, 11)]
    torch.testing.assert_close(collector.features(), torch.cat(expected))
    assert ClipCollector(i3d, frames=11).features().shape == (0, 0)


def test_files_that_are_no_i3d(tmp_path):
    with pytest.raises(UserError, match=r"gone.pt: not a TorchScript file of I3D \(No such file"):
        I3D(tmp_path / "gone.pt", CPU)
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match=r"text.pt: not a TorchScript file of I3D"):
        I3D(tmp_path / "text.pt", CPU)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "relu.pt")
    with pytest.raises(UserError, match=r"relu.pt: cannot be called as FVD's I3D is"):
        I3D(tmp_path / "relu.pt", CPU)(torch.zeros(1, 3, 10, SIDE, SIDE))
    i3d = I3D(small_i3d(tmp_path / "i3d.pt"), CPU)
    with pytest.raises(UserError, match="one feature vector per clip"):
        i3d(torch.zeros(1, 3, 10, SIDE, 2 * SIDE))
