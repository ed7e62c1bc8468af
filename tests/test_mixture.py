"""Which source a batch comes from."""

from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.data.mixture import PERIOD, Mixture, shares

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@given(WEIGHTS)
def test_shares_are_proportional_and_nobody_is_forgotten(weights):
    counts = shares(weights)
    assert sum(counts) == PERIOD and min(counts) >= 1
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - PERIOD * weight / sum(weights)) <= len(weights) + 1


def test_one_to_seven():
    assert shares([7, 1]) == [875, 125]


@given(WEIGHTS, st.integers(0, 2**40), st.integers(0, 5 * PERIOD))
def test_a_source_is_read_in_order_from_any_batch_on(weights, seed, start):
    """Each source's own batch numbers are consecutive, wherever reading begins; ranks draw alike."""
    mixture, again = Mixture(weights, seed), Mixture(weights, seed)
    following: dict[int, int] = {}
    for batch in range(start, start + 40):
        source, number = mixture(batch)
        assert again(batch) == (source, number)
        assert following.get(source, number) == number
        following[source] = number + 1
    assert Mixture(weights, seed)(0)[1] == 0


def test_a_period_holds_each_batch_once():
    mixture = Mixture([3, 1, 1], seed=5)
    seen = {mixture(batch) for batch in range(2 * PERIOD)}
    assert seen == {(s, n) for s, share in enumerate(shares([3, 1, 1])) for n in range(2 * share)}
