"""The diffusion transformer: shapes, zero initialisation, positions, conditioning, equal initial weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sat_ssvae.config import parse_config
from sat_ssvae.diffusion.transformer import (
    DiT,
    DiTConfig,
    attend,
    build_dit,
    modulate,
    rotary_angles,
    rotate,
    timestep_features,
)
from sat_ssvae.errors import UserError


def config(**changes):
    values = {"latent_channels": 5, "latent_size": (3, 4, 6), "width": 32, "depth": 2, "heads": 2}
    return DiTConfig(**values | changes)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(model: DiT, seed: int = 1) -> DiT:
    """The same transformer with random weights where `build_dit` puts zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3, generator=generator)
    return model


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    patch=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    channels=st.integers(1, 7),
    batch=st.integers(1, 3),
    text=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_output_has_the_shape_of_the_latents(grid, patch, channels, batch, text):
    size = tuple(g * p for g, p in zip(grid, patch, strict=True))
    extra = {"text_dim": 6, "text_length": 4} if text else {}
    model = awake(build_dit(config(latent_channels=channels, latent_size=size, patch_size=patch, **extra), 0))
    states = randn(batch, 4, 6) if text else None
    x = randn(batch, channels, *size)
    out = model(x, torch.rand(batch), states)
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_fresh_transformer_predicts_zero_and_still_learns():
    model = build_dit(config(text_dim=6, text_length=4), seed=3)
    x = randn(2, 5, 3, 4, 6)
    out = model(x, torch.tensor([0.1, 0.9]), randn(2, 4, 6))
    assert not out.any()
    (out - x).square().mean().backward()
    assert model.video_out.weight.grad.abs().sum() > 0
    # The blocks start as identities: their gates are zero.
    for block in model.blocks:
        assert all(not expert.weight.any() and not expert.bias.any() for expert in block.experts)


def test_equal_seeds_give_equal_weights_whatever_the_global_rng():
    torch.manual_seed(1)
    first = build_dit(config(), seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build_dit(config(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    other = build_dit(config(), seed=6)
    assert not torch.equal(first.video_in.weight, other.video_in.weight)


def test_blocks_start_equal_for_other_latent_channels():
    few, many = build_dit(config(latent_channels=4), 5), build_dit(config(latent_channels=16), 5)
    for (name, a), b in zip(few.blocks.state_dict().items(), many.blocks.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_each_sample_is_treated_by_itself():
    model = awake(build_dit(config(), 0))
    x, t = randn(3, 5, 3, 4, 6), torch.tensor([0.2, 0.5, 0.8])
    together = model(x, t)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(x[order], t[order]), together[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(x[1:2], t[1:2]), together[1:2], atol=1e-5, rtol=1e-4)


def test_timestep_text_and_every_position_reach_the_output():
    model = awake(build_dit(config(text_dim=6, text_length=4), 0))
    x, text = randn(1, 5, 3, 4, 6).requires_grad_(), randn(1, 4, 6).requires_grad_()
    out = model(x, torch.tensor([0.3]), text)
    assert not torch.allclose(out, model(x, torch.tensor([0.31]), text), atol=1e-4)
    out[0, :, 0, 0, 0].sum().backward()
    assert (x.grad.abs().sum(dim=1) > 0).all()
    assert (text.grad.abs().sum(dim=2) > 0).all()


def test_modalities_have_their_own_modulation():
    model = awake(build_dit(config(text_dim=6, text_length=4), 0))
    block = model.blocks[0]
    text, video = randn(1, 4, 32), randn(1, 72, 32, seed=1)
    condition = randn(1, 32, seed=2)
    before = block([text, video], condition, model.phases)
    with torch.no_grad():
        block.experts[0].bias[-32:] += 1.0  # the gate of the feed-forward network, text only
    after = block([text, video], condition, model.phases)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


def test_positions_distinguish_tokens():
    model = awake(build_dit(config(), 0))
    x = randn(1, 5, 3, 4, 6)
    t = torch.tensor([0.5])
    for axis in (2, 3, 4):
        moved = model(x.flip(axis), t).flip(axis)
        assert not torch.allclose(moved, model(x, t), atol=1e-3), f"axis {axis} has no position"


@given(
    first=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)),
    second=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)),
    shift=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
)
@settings(max_examples=50, deadline=None)
def test_rotary_products_depend_on_the_distance_alone(first, second, shift):
    grid = (5, 6, 6)
    angles = rotary_angles(grid, 32).reshape(*grid, -1)
    query, key = randn(32), randn(32, seed=1)

    def product(a, b):
        phases = torch.polar(torch.ones_like(angles), angles)
        return rotate(query[None], phases[a][None])[0] @ rotate(key[None], phases[b][None])[0]

    def moved(a):
        return tuple(x + s for x, s in zip(a, shift, strict=True))

    torch.testing.assert_close(product(first, second), product(moved(first), moved(second)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(product(first, first), query @ key, atol=1e-4, rtol=1e-4)


def test_rotary_splits_the_head_as_published():
    angles = rotary_angles((2, 3, 4), 64)
    assert angles.shape == (24, 32)
    last = angles[-1]  # position (1, 2, 3)
    assert [last[0].item(), last[8].item(), last[20].item()] == [1, 2, 3]
    assert last[7].item() == pytest.approx(10000 ** (-14 / 16))


def test_modulate_is_torchs_layer_norm_then_affine():
    x, shift, scale = randn(2, 3, 8), randn(2, 1, 8, seed=1), randn(2, 1, 8, seed=2)
    torch.testing.assert_close(modulate(x, shift, scale), F.layer_norm(x, (8,)) * (1 + scale) + shift)


def test_attention_in_bfloat16_agrees_with_torchs_kernel():
    query, key, value = (randn(2, 3, 50, 16, seed=seed) for seed in range(3))
    reference = F.scaled_dot_product_attention(query, key, value)
    low = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), reference, atol=0.02, rtol=0.02)
    torch.testing.assert_close(attend(query, key, value), reference)


def test_bfloat16_stays_close_to_float32():
    model = awake(build_dit(config(), 0))
    x, t = randn(2, 5, 3, 4, 6), torch.tensor([0.3, 0.7])
    reference = model(x, t)
    low_model = DiT(config(precision="bfloat16"))
    low_model.load_state_dict(model.state_dict())
    low = low_model(x, t)
    assert low.dtype == torch.float32
    assert not torch.equal(low, reference)
    assert (low.float() - reference).std() < 0.05 * reference.std()


def test_timestep_features_resolve_a_thousandth():
    near = timestep_features(torch.tensor([0.5, 0.501]))
    assert near.shape == (2, 256)
    assert (near[0] - near[1]).norm() > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (2, 1, 1)}, "does not divide"),
        ({"width": 40}, "multiple of 16 \\* heads"),
        ({"text_dim": 4}, "both text_dim and text_length"),
        ({"latent_size": (0, 4, 4)}, "positive integers"),
        ({"depth": 0}, "depth"),
    ],
)
def test_wrong_sizes_are_named(changes, message):
    values = {"latent_channels": 5, "latent_size": [3, 4, 6], "width": 32, "heads": 2} | changes
    with pytest.raises(UserError, match=message):
        parse_config(DiTConfig, values)


def test_wrong_inputs_are_refused():
    model = build_dit(config(), 0)
    with pytest.raises(ValueError, match="takes"):
        model(randn(1, 5, 3, 4, 4), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="without text"):
        model(randn(1, 5, 3, 4, 6), torch.tensor([0.5]), randn(1, 4, 6))
    with_text = build_dit(config(text_dim=6, text_length=4), 0)
    with pytest.raises(ValueError, match="expected"):
        with_text(randn(1, 5, 3, 4, 6), torch.tensor([0.5]))


def test_width_of_the_grid_is_what_patching_leaves():
    assert config(patch_size=(1, 2, 3)).grid == (3, 2, 2)
    assert config(patch_size=(1, 2, 3)).patch_dim == 5 * math.prod((1, 2, 3))
