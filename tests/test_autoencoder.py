"""Shapes, causality, streaming and errors of the autoencoder."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae import UserError
from sat_ssvae.vae.layers import CausalConv3d, Downsample, Stream, Upsample
from sat_ssvae.vae.norm import RMSNorm, repeat_first_frame

from .small_models import random_video, tiny_vae


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.booleans(), min_size=0, max_size=3),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_any_depth_keeps_the_compression_it_declares(temporal, chunks, height, width):
    vae = tiny_vae(temporal_downsample=temporal, channel_multipliers=(1, 2, 2, 4)[: len(temporal) + 1])
    frames = vae.temporal_factor * chunks + 1
    x = random_video(frames, vae.spatial_factor * height, vae.spatial_factor * width)
    with torch.no_grad():
        latent = vae.encode(x).mode()
        assert latent.shape[2:] == vae.latent_size(*x.shape[2:]) == (chunks + 1, height, width)
        assert vae.decode(latent).shape == x.shape


def test_frames_depend_on_no_later_frame():
    vae = tiny_vae()
    x = random_video(9)
    changed = x.clone()
    changed[:, :, 5:] += 1
    with torch.no_grad():
        first, second = vae.encode(x).mean, vae.encode(changed).mean
        assert torch.equal(first[:, :, :3], second[:, :, :3])
        assert not torch.equal(first[:, :, 3:], second[:, :, 3:])
        z = first.clone()
        z[:, :, 3:] += 1
        assert torch.equal(vae.decode(first)[:, :, :5], vae.decode(z)[:, :, :5])


def test_the_first_frame_of_a_video_is_encoded_as_an_image():
    vae = tiny_vae()
    x = random_video(5)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(x).mean[:, :, :1], vae.encode(x[:, :, :1]).mean)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**31))
def test_layers_in_chunks_equal_the_whole(partition, seed):
    """The first chunk of a downsampling is odd and the rest even, as the encoder feeds them; decoders take any."""
    torch.manual_seed(seed)
    cases = [
        (CausalConv3d(4, 6), partition),
        (Upsample(8, 8, temporal=True), partition),
        (Upsample(8, 4, temporal=False), partition),
        (Downsample(4, 8, temporal=True), [2 * partition[0] - 1, *(2 * part for part in partition[1:])]),
        (Downsample(4, 8, temporal=False), partition),
    ]
    for layer, sizes in cases:
        channels = 8 if isinstance(layer, Upsample) else 4
        x = torch.randn(1, channels, sum(sizes), 4, 6)
        stream, parts = Stream(), []
        with torch.no_grad():
            for chunk in x.split(sizes, dim=2):
                parts.append(layer(chunk, stream))
                stream.first = False
            torch.testing.assert_close(torch.cat(parts, dim=2), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temporal", [True, False])
def test_upsampling_equals_repeating_and_convolving(temporal):
    torch.manual_seed(0)
    layer = Upsample(8, 4, temporal)
    x = torch.randn(2, 8, 3, 4, 5)
    repeated = F.interpolate(x, scale_factor=(2 if temporal else 1, 2, 2), mode="nearest")
    if temporal:
        repeated = repeated[:, :, 1:]  # the first frame stays single
    conv = layer.conv.conv
    expected = F.conv3d(repeat_first_frame(repeated, 2), conv.weight, conv.bias, padding=(0, 1, 1))
    shortcut = x.repeat_interleave(4 * (2 if temporal else 1) * 4 // 8, dim=1)
    time = 2 if temporal else 1
    b, _, t, h, w = x.shape
    shortcut = (
        shortcut.view(b, 4, time, 2, 2, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, 4, t * time, 2 * h, 2 * w)
    )
    if temporal:
        shortcut = shortcut[:, :, 1:]
    torch.testing.assert_close(layer(x), expected + shortcut, atol=1e-5, rtol=1e-5)


def test_checkpointed_blocks_keep_less_and_give_the_same_gradients():
    def kept_and_gradients(vae):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = vae.decode(vae.encode(random_video(5)).mean).square().mean()
        loss.backward()
        return sum(kept), [p.grad for p in vae.parameters() if p.grad is not None]

    plain, checkpointed = tiny_vae(), tiny_vae()
    checkpointed.checkpoint_activations()
    (many, expected), (few, gradients) = kept_and_gradients(plain), kept_and_gradients(checkpointed)
    assert few < 0.6 * many
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-7, rtol=1e-5)


def test_rms_norm_bounds_the_norm_instead_of_adding_to_it():
    norm = RMSNorm(4)
    x = torch.full((1, 4, 1, 1, 1), 1e-9)
    torch.testing.assert_close(norm(x), torch.ones_like(x))
    assert norm(torch.zeros_like(x)).abs().max() == 0


def test_convolutions_run_in_bfloat16_under_autocast():
    vae = tiny_vae()
    seen = set()
    for module in vae.modules():
        if isinstance(module, CausalConv3d | Upsample | Downsample):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = vae.decode(vae.encode(random_video(5)).mean)
    assert seen == {torch.bfloat16}
    with torch.no_grad():
        full = vae.decode(vae.encode(random_video(5)).mean)
    assert (half - full).std() < 0.05 * full.std()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "4 frames: SSVAE takes 2k + 1; the nearest are 3 and 5"),
        ((1, 3, 5, 18, 16), "height 18: SSVAE takes multiples of 4; the nearest: 16 and 20"),
        ((1, 3, 5, 16, 2), "width 2: SSVAE takes multiples of 4; the nearest: 4"),
        ((1, 3, 5, 0, 16), "height 0: SSVAE takes multiples of 4; the nearest: 4"),
        ((1, 1, 5, 16, 16), "expected B C T H W with 3 channels"),
        ((3, 5, 16, 16), "expected B C T H W with 3 channels"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_the_nearest_that_do(shape, message):
    with pytest.raises(UserError) as caught:
        tiny_vae().encode(torch.zeros(shape))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temporal_downsample": (True,)}, "one entry per downsampling: 2 for 3"),
        ({"channel_multipliers": (1, 3, 3)}, "the shortcut needs 3 to divide"),
        ({"latent_channels": 0}, "greater than 0"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_vae(**changes)
