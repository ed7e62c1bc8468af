"""Some of many things, evenly spread."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.spacing import evenly_spaced


@given(total=st.integers(1, 100), wanted=st.integers(1, 100))
def test_choices_are_even_and_distinct(total, wanted):
    chosen = evenly_spaced(total, wanted)
    assert len(chosen) == min(total, wanted)
    assert chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < total
    if 1 < wanted <= total:
        assert (chosen[0], chosen[-1]) == (0, total - 1)
        gaps = [after - before for before, after in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1
    assert evenly_spaced(9, 1) == [4]
