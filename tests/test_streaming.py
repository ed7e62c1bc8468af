"""Encoding and decoding in chunks: equal to the whole, for every partition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae import UserError
from sat_ssvae.vae.posterior import Posterior

from .small_models import random_video, tiny_vae

SIZES = {"temporal_downsample": (True, False, True), "channel_multipliers": (1, 2, 2, 4), "num_mid_blocks": 2}
CLOSE = {"atol": 2e-5, "rtol": 0.0}


@pytest.fixture(scope="module", params=["as built", "for inference"])
def vae(request):
    """4x8x8, with attention in both halves (its projection starts at zero, so it is set)."""
    vae = tiny_vae(**SIZES)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if ".proj." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return vae.for_inference() if request.param == "for inference" else vae


def partitions(total):
    """Cuts of `range(total)` into chunks, empty ones included."""
    return st.lists(st.integers(0, total), max_size=6).map(
        lambda cuts: [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), total], strict=True)]
    )


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 5))
def test_encoding_in_any_chunks_equals_the_whole(vae, data, k):
    x = random_video(4 * k + 1, 16, 24, seed=k)
    sizes = data.draw(partitions(4 * k + 1))
    with torch.no_grad():
        whole = vae.encode(x)
        stream = vae.encode_stream()
        parts = [stream(chunk) for chunk in x.split(sizes, dim=2)]
    stream.finish()
    together = Posterior.cat(parts)
    torch.testing.assert_close(together.mean, whole.mean, **CLOSE)
    torch.testing.assert_close(together.logvar, whole.logvar, **CLOSE)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_decoding_in_any_chunks_equals_the_whole(vae, data, t):
    z = torch.randn(1, 4, t, 2, 3, generator=torch.Generator().manual_seed(t))
    sizes = data.draw(partitions(t))
    with torch.no_grad():
        whole = vae.decode(z)
        stream = vae.decode_stream()
        parts = [stream(chunk) for chunk in z.split(sizes, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, **CLOSE)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(0, 4))
def test_chunk_frames_changes_nothing(vae, chunk_frames, k):
    x = random_video(4 * k + 1, seed=k)
    with torch.no_grad():
        whole, chunked = vae.encode(x), vae.encode(x, chunk_frames=chunk_frames)
        torch.testing.assert_close(chunked.mean, whole.mean, **CLOSE)
        z = whole.mode()
        torch.testing.assert_close(vae.decode(z, chunk_frames=chunk_frames), vae.decode(z), **CLOSE)


@pytest.mark.parametrize("levels", [(False, False, True), (True, False, False), (False, False, False)])
def test_fewer_frames_at_a_time_than_a_latent_frame_has_change_nothing(levels):
    vae = tiny_vae(**SIZES | {"temporal_downsample": levels}).for_inference()
    x = random_video(4 * vae.temporal_factor + 1)
    seen = []
    vae.decoder.up[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2]))
    with torch.no_grad():
        whole, single = vae.encode(x), vae.encode(x, chunk_frames=1)
        torch.testing.assert_close(single.mean, whole.mean, **CLOSE)
        torch.testing.assert_close(vae.decode(whole.mean, chunk_frames=1), vae.decode(whole.mean), **CLOSE)
    assert max(seen[:-1]) == 1 and seen[-1] == x.shape[2]


def test_streams_on_one_model_do_not_see_each_other(vae):
    a, b = random_video(9, seed=1), random_video(9, seed=2)
    with torch.no_grad():
        first, second = vae.encode_stream(), vae.encode_stream()
        mixed = [(first(x), second(y)) for x, y in zip(a.split(2, dim=2), b.split(2, dim=2), strict=True)]
        for video, parts in zip((a, b), zip(*mixed, strict=True), strict=True):
            torch.testing.assert_close(Posterior.cat(parts).mean, vae.encode(video).mean, **CLOSE)


def test_bfloat16_in_chunks_is_as_near_to_the_exact_result_as_in_one_piece(vae):
    half = tiny_vae(**SIZES)
    half.load_state_dict(vae.state_dict())
    half.bfloat16()
    z = torch.randn(1, 4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = vae.decode(z)
        whole, chunked = (half.decode(z.bfloat16(), chunk_frames=n).float() for n in (None, 4))
    rounding = (whole - exact).std()
    assert (chunked - exact).std() < 1.25 * rounding
    assert rounding < 0.1 * exact.std()


def test_gradients_flow_through_chunks(vae):
    z = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (whole,) = torch.autograd.grad(vae.decode(z).square().sum(), z)
    (chunked,) = torch.autograd.grad(vae.decode(z, chunk_frames=4).square().sum(), z)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


def test_what_a_stream_cannot_take_is_one_line(vae):
    stream = vae.encode_stream()
    with torch.no_grad():
        assert stream(random_video(3)).mean.shape[2] == 1
        with pytest.raises(UserError, match=r"ends 2 frames after a latent frame.*repeat the last one 2 times"):
            stream.finish()
        with pytest.raises(UserError, match="a stream is one video"):
            stream(random_video(3, height=24))
        with pytest.raises(UserError, match="width 17: SSVAE takes multiples of 8; the nearest: 16 and 24"):
            vae.encode_stream()(random_video(1, width=17))
        stream = vae.decode_stream()
        stream(torch.zeros(1, 4, 1, 2, 2))
        with pytest.raises(UserError, match="a stream is one video"):
            stream(torch.zeros(1, 4, 1, 2, 3))
        with pytest.raises(UserError, match="b c t h w with 4 channels"):
            stream(torch.zeros(1, 5, 1, 2, 2))
        for chunk_frames in (0, -3):
            with pytest.raises(UserError, match="must be at least 1"):
                vae.encode(random_video(1), chunk_frames=chunk_frames)
            with pytest.raises(UserError, match="must be at least 1"):
                vae.decode(torch.zeros(1, 4, 1, 2, 2), chunk_frames=chunk_frames)
