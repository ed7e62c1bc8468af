"""Invariants of latent masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.spectral.masking import apply_mask, draw_mask, draw_ratios

extents = st.integers(1, 5)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), extents, extents, extents)
blocks = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(shapes, blocks)
def test_every_position_can_be_masked_by_blocks(shape, block):
    """For every number of frames and every block size, tails and images included; and no ratio masks everything."""
    generator = seeded()
    masks = torch.stack(
        [draw_mask("block", shape, torch.full(shape[:1], 0.5), block, generator=generator) for _ in range(150)]
    )
    assert masks.shape == (150, shape[0], 1, *shape[2:])
    assert masks.any(dim=0).all()
    assert not masks.all(dim=0).any()


@settings(max_examples=30, deadline=None)
@given(shapes, st.sampled_from(["channel", "block", "future"]), blocks)
def test_masks_broadcast_and_extremes_mean_what_they_say(shape, kind, block):
    latents = torch.zeros(shape)
    nothing = draw_mask(kind, shape, torch.zeros(shape[0]), block, generator=seeded())
    everything = draw_mask(kind, shape, torch.ones(shape[0]), block, generator=seeded())
    token = torch.ones(1, shape[1], 1, 1, 1)
    assert apply_mask(latents, nothing, token).sum() == 0
    masked = apply_mask(latents, everything, token)
    assert masked.shape == latents.shape
    if kind == "future":  # frame 0 is what the rest is predicted from
        assert (masked[:, :, 0] == 0).all()
        masked = masked[:, :, 1:]
    assert (masked == 1).all()


@pytest.mark.parametrize("kind", ["channel", "block", "future"])
def test_the_expected_share_is_the_ratio(kind):
    shape = (2000, 7, 4, 3, 5)
    mask = draw_mask(kind, shape, torch.full((2000,), 0.3), (2, 2, 2), generator=seeded())
    if kind == "future":
        mask = mask[:, :, 1:]
    assert mask.float().mean().item() == pytest.approx(0.3, abs=0.015)
    per_position = mask.float().mean(dim=0)
    if kind != "future":
        assert per_position.min() > 0.25 and per_position.max() < 0.35


def test_samples_have_masks_of_their_own():
    mask = draw_mask("block", (64, 4, 3, 4, 4), torch.full((64,), 0.5), generator=seeded())
    assert len(torch.unique(mask.flatten(1), dim=0)) > 60


def test_future_masks_hide_the_end():
    mask = draw_mask("future", (4, 2, 5, 1, 1), torch.tensor([0.0, 0.25, 0.5, 1.0]), generator=seeded())
    assert mask[:, 0, :, 0, 0].int().tolist() == [[0] * 5, [0] * 4 + [1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]


def test_ratio_table_keeps_each_probability_with_its_ratio():
    """Given unsorted: the published code gets ratios and probabilities out of step."""
    ratios = draw_ratios({0.75: 0.1, 0.0: 0.6, 0.25: 0.3}, 20_000, seeded())
    for ratio, probability in {0.75: 0.1, 0.0: 0.6, 0.25: 0.3}.items():
        assert (ratios == ratio).float().mean().item() == pytest.approx(probability, abs=0.015)


def test_equal_seeds_draw_equal_masks():
    arguments = ("block", (2, 4, 3, 4, 4), torch.full((2,), 0.5), (2, 2, 2))
    first = draw_mask(*arguments, generator=seeded(3))
    assert torch.equal(first, draw_mask(*arguments, generator=seeded(3)))
    assert not torch.equal(first, draw_mask(*arguments, generator=seeded(4)))


def test_gradients_flow_to_what_is_kept_and_to_the_token():
    latents = torch.randn(2, 6, 1, 2, 2, generator=seeded(), requires_grad=True)
    token = torch.randn(1, 6, 1, 1, 1, generator=seeded(), requires_grad=True)
    mask = draw_mask("channel", latents.shape, torch.full((2,), 0.5), generator=seeded())
    apply_mask(latents, mask, token).sum().backward()
    assert torch.equal(latents.grad, (~mask).float().expand_as(latents))
    assert torch.equal(token.grad, (mask.float() * torch.ones(2, 6, 1, 2, 2)).sum((0, 2, 3, 4), keepdim=True))
