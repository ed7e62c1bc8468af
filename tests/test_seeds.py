"""Random numbers as functions of a place in a run."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.engine.seeds import generator, seeded

places = st.tuples(*[st.integers(0, 10**6)] * 4)


def draws(place):
    return torch.randn(4, generator=generator(*place)).tolist()


@given(places)
def test_a_place_has_its_own_numbers_whatever_came_before(place):
    first = draws(place)
    torch.randn(3)
    assert draws(place) == first
    for position in range(4):
        other = [value + (index == position) for index, value in enumerate(place)]
        assert draws(other) != first


def test_neighbouring_places_differ():
    seen = [tuple(draws(place)) for place in itertools.product(range(3), repeat=4)]
    assert len(set(seen)) == len(seen)


def test_a_seeded_block_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    with seeded(1, 2):
        first = torch.randn(4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    with seeded(1, 2):
        assert torch.equal(torch.randn(4), first)
