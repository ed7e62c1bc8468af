"""Sizes that do not fit: padded by repeating, cropped back exactly."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.autoencoders.padding import pad_to_valid

from .small_models import random_video, tiny_vae


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
def test_padding_gives_a_valid_size_and_cropping_undoes_it(frames, height, width):
    vae = tiny_vae()
    x = random_video(frames, height, width)
    padded = pad_to_valid(x, vae)
    vae.latent_size(*padded.shape[2:])  # raises for sizes that do not fit
    assert all(0 <= big - small < 4 for big, small in zip(padded.shape[2:], x.shape[2:], strict=True))
    assert torch.equal(padded[:, :, :frames, :height, :width], x)
    assert torch.equal(padded[:, :, -1, :height, :width], x[:, :, -1])
    assert torch.equal(padded[:, :, 0, -1, :width], x[:, :, 0, -1])
    assert torch.equal(padded[:, :, 0, :height, -1], x[:, :, 0, :, -1])
