import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.autoencoders.classes import as_autoencoder
from sat_ssvae.autoencoders.padding import pad_to_valid
from sat_ssvae.autoencoders.roundtrip import round_trip
from sat_ssvae.errors import UserError

from . import foreign_models
from .small_models import random_video, tiny_vae


def crop_to(x, like):
    frames, height, width = like.shape[2:]
    return x[:, :, :frames, :height, :width]


def whole(vae, video):
    return crop_to(vae.decode(vae.encode(pad_to_valid(video, vae)).mode()), video)


@settings(max_examples=15)
@given(
    frames=st.integers(1, 12),
    height=st.integers(9, 17),
    width=st.integers(8, 16),
    chunk=st.integers(1, 13),
    temporal=st.sampled_from([(False, True), (True, True), (False, False)]),
)
@torch.no_grad()
def test_ssvae_in_chunks_is_ssvae_in_one_piece(frames, height, width, chunk, temporal):
    vae, video = tiny_vae(temporal_downsample=temporal), random_video(frames, height, width)
    parts = list(round_trip(vae, video.split(chunk, dim=2)))
    assert all(part.shape[2] for part in parts)
    torch.testing.assert_close(torch.cat(parts, 2), whole(vae, video), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_frame_by_frame_chunks_do_not_matter():
    vae, video = as_autoencoder(foreign_models.modelscope()), random_video(5, 20, 30)
    torch.testing.assert_close(torch.cat(list(round_trip(vae, video.split(2, dim=2))), 2), whole(vae, video))


@pytest.mark.parametrize("build", [foreign_models.cogvideox, foreign_models.wan22, foreign_models.ltx2])
@torch.no_grad()
def test_others_start_anew_with_each_chunk(build):
    vae, video = as_autoencoder(build()), random_video(8, 20, 30)
    parts = list(round_trip(vae, video.split(5, dim=2)))
    assert [part.shape for part in parts] == [(1, 3, 5, 20, 30), (1, 3, 3, 20, 30)]
    for part, chunk in zip(parts, video.split(5, dim=2), strict=True):
        torch.testing.assert_close(part, whole(vae, chunk))


@pytest.mark.parametrize("chunk", [3, 9])
@torch.no_grad()
def test_tiles_have_streams_of_their_own(chunk):
    vae, video = tiny_vae(), random_video(9, 30, 40)
    padded = pad_to_valid(video, vae)
    tiled = crop_to(vae.decode(vae.encode(padded, tile_size=16).mode(), tile_size=16), video)
    parts = list(round_trip(vae, video.split(chunk, dim=2), tile_size=16))
    torch.testing.assert_close(torch.cat(parts, 2), tiled, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tiled, whole(vae, video), atol=1e-3)
    for size in (6, 2):
        with pytest.raises(UserError, match=f"tile_size {size}: must be a multiple of 4, 4 at least"):
            next(round_trip(vae, [video], tile_size=size))


@torch.no_grad()
def test_tiles_of_other_autoencoders():
    vae, video = as_autoencoder(foreign_models.wan21()), random_video(8, 60, 40)
    parts = list(round_trip(vae, video.split(5, dim=2), tile_size=32))
    assert [part.shape for part in parts] == [(1, 3, 5, 60, 40), (1, 3, 3, 60, 40)]
    padded = pad_to_valid(video[:, :, :5], vae)
    expected = vae.decode(vae.encode(padded, tile_size=32).mode(), tile_size=32)
    torch.testing.assert_close(parts[0], crop_to(expected, parts[0]))
