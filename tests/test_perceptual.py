"""ST-LPIPS against numbers of the original `stlpips-pytorch` 0.0.2, and what a training loss needs of it."""

import sys
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.errors import UserError
from sat_ssvae.metrics.perceptual import MIN_SIZE, STLPIPS, PerceptualName, build_perceptual

from .small_models import pattern

# Made by the original package (CPU, float32) from pattern(2, 3, *size) and pattern(2, 3, *size, phase=0.5).
ORIGINAL = [
    ("alex", (64, 64), [0.07748650014400482, 0.08145184814929962]),
    ("alex", (32, 32), [0.06815493106842041, 0.05750817432999611]),
    ("alex", (33, 57), [0.5874615907669067, 0.5719853639602661]),
    ("vgg", (64, 64), [0.515434741973877, 0.5034821629524231]),
    ("vgg", (32, 32), [0.11551354825496674, 0.1209864392876625]),
    ("vgg", (33, 57), [0.19578656554222107, 0.1907021850347519]),
]


@pytest.fixture(scope="module")
def networks():
    return {backbone: STLPIPS(backbone) for backbone in ("alex", "vgg")}


@pytest.mark.parametrize(("backbone", "size", "expected"), ORIGINAL)
def test_equals_the_original(networks, backbone, size, expected):
    distance = networks[backbone](pattern(2, 3, *size), pattern(2, 3, *size, phase=0.5))
    assert distance.shape == (2,)
    torch.testing.assert_close(distance, torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_equal_images_have_no_distance_and_order_does_not_matter(networks, backbone):
    network = networks[backbone]
    x, y = pattern(1, 3, 40, 48), pattern(1, 3, 40, 48, phase=1.0)
    assert network(x, x).item() == 0
    torch.testing.assert_close(network(x, y), network(y, x))
    assert network(x, y).item() > 0


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_distance_grows_with_the_difference(networks, backbone):
    x = pattern(1, 3, 64, 64, phase=0.3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    distances = [networks[backbone](x + amount * noise, x).item() for amount in (0.05, 0.1, 0.2, 0.4)]
    assert distances == sorted(distances)
    assert distances[-1] > 4 * distances[0]


def test_tolerates_a_shift_better_than_pixels_do(networks):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image = torch.nn.functional.interpolate(image, size=(96, 96), mode="bicubic").clamp(-1, 1)
    shifted, original = image[..., :64, 1:65], image[..., :64, :64]
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    as_far_in_pixels = original + noise * (shifted - original).square().mean().sqrt()
    network = networks["alex"]
    assert network(shifted, original).item() < 0.25 * network(as_far_in_pixels, original).item()


@given(height=st.integers(MIN_SIZE, 70), width=st.integers(MIN_SIZE, 70))
def test_works_for_every_size(networks, height, width):
    distance = networks["alex"](pattern(1, 3, height, width), pattern(1, 3, height, width, phase=0.2))
    assert torch.isfinite(distance).all() and (distance > 0).all()


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_gradient_is_that_of_the_function(networks, backbone):
    network = networks[backbone]
    x = pattern(1, 3, 32, 32, phase=0.1).requires_grad_()
    y = pattern(1, 3, 32, 32)
    (gradient,) = torch.autograd.grad(network(x, y).sum(), x)
    direction = gradient / gradient.norm()
    step = 1e-2
    with torch.no_grad():
        change = (network(x + step * direction, y) - network(x - step * direction, y)).item() / (2 * step)
    assert change == pytest.approx(gradient.norm().item(), rel=0.05)


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_flat_frames_give_finite_gradients(networks, level):
    x = torch.full((1, 3, 32, 32), level, requires_grad=True)
    networks["alex"](x, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_is_frozen_inside_a_module_that_trains():
    outer = torch.nn.Sequential(build_perceptual("st-lpips-alex"))
    outer.train()
    assert not any(module.training for module in outer[0].modules())
    assert not any(parameter.requires_grad for parameter in outer.parameters())
    x, y = pattern(1, 3, 32, 32), pattern(1, 3, 32, 32, phase=1)
    torch.testing.assert_close(outer[0](x, y), outer[0](x, y), rtol=0, atol=0)


def test_follows_the_dtype_it_is_moved_to(networks):
    x, y = pattern(1, 3, 32, 32), pattern(1, 3, 32, 32, phase=0.5)
    double = STLPIPS("alex").double()
    assert double(x.double(), y.double()).item() == pytest.approx(networks["alex"](x, y).item(), rel=1e-4)


def test_small_images_are_a_users_mistake(networks):
    with pytest.raises(UserError, match="at least 32x32, got 31x64"):
        networks["alex"](pattern(1, 3, 31, 64), pattern(1, 3, 31, 64))


@pytest.mark.parametrize(("x", "y"), [((1, 3, 32, 32), (2, 3, 32, 32)), ((1, 1, 32, 32),) * 2, ((3, 32, 32),) * 2])
def test_wrong_shapes_are_refused(networks, x, y):
    with pytest.raises(ValueError, match="N 3 H W"):
        networks["alex"](torch.zeros(x), torch.zeros(y))


def test_every_name_is_known_and_others_are_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    for name in get_args(PerceptualName):
        if name.startswith("st-"):
            assert build_perceptual(name).metric == "stlpips"
        else:
            with pytest.raises(UserError, match="pip install lpips"):
                build_perceptual(name)
    with pytest.raises(UserError, match="known: st-lpips-alex"):
        build_perceptual("vgg-lpips")
