import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.degradations import Degradation
from sat_ssvae.metrics.fidelity import psnr


def picture(frames=6, height=33, width=40):
    """Waves `3 T H W` that fine detail lies on."""
    y, x = torch.arange(height).view(1, -1, 1), torch.arange(width)
    time = torch.arange(frames).view(-1, 1, 1)
    waves = 0.5 * torch.sin(0.2 * (x + y) + time) + 0.2 * torch.cos(2.5 * x + y)
    return torch.stack([waves] * 3)  # gray: the codec keeps colours at half the resolution


def spoiled(text, video, seed=0):
    return Degradation.parse(text)(video, 8, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("weak", "strong"), [("noise:5", "noise:50"), ("blur:1.2", "blur:12"), ("compress:5", "compress:45")]
)
def test_more_of_it_is_worse_and_the_draw_is_the_seeds(weak, strong):
    video = picture()
    before = video.clone()
    results = [spoiled(text, video) for text in (weak, strong)]
    assert all(result.shape == video.shape and result.abs().max() <= 1 for result in results)
    little, much = (psnr(result[None], video[None]).item() for result in results)
    assert much + 3 < little < 60
    assert torch.equal(video, before) and torch.equal(spoiled(strong, video), results[1])
    assert torch.equal(spoiled(strong, video, seed=1), results[1]) == ("noise" not in strong)


def test_the_noise_has_the_size_that_was_asked_for():
    noise = spoiled("noise:25", torch.zeros(3, 5, 64, 64))
    assert noise.std().item() * 127.5 == pytest.approx(25, rel=0.02) and abs(noise.mean()) < 0.01


def test_a_blur_by_one_changes_nothing():
    torch.testing.assert_close(spoiled("blur:1", picture()), picture(), atol=1e-5, rtol=0)


@given(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40), st.sampled_from(["noise:9", "blur:3", "compress:30"]))
def test_any_size(frames, height, width, text):
    assert spoiled(text, picture(frames, height, width)).shape == (3, frames, height, width)


@pytest.mark.parametrize("text", ["fog:3", "noise", "noise:", "noise:-1", "noise:nan", "blur:0.5", "compress:52", ":3"])
def test_unknown_ones(text):
    with pytest.raises(UserError, match=f"degradation `{text}`: expected KIND:AMOUNT, one of noise:0..255, blur"):
        Degradation.parse(text)


def test_its_name_reads_back():
    for text in ("noise:25", "blur:2.5", "compress:40"):
        assert str(Degradation.parse(text)) == text
