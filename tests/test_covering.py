"""The covering function: every pair is there, nothing is chosen that was not offered, and the set is small."""

from __future__ import annotations

import itertools

from covering import covering, pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

factors = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(lambda sizes: [list(range(n)) for n in sizes])


@settings(max_examples=40)
@given(factors, st.integers(0, 6))
def test_every_pair_is_there(choices, count):
    first = list(itertools.islice(itertools.product(*choices), count))
    rows = covering(*choices, first=first)
    assert rows[: len(first)] == first
    assert set(rows) <= set(itertools.product(*choices))
    wanted = set().union(*map(pairs_of, itertools.product(*choices)))
    assert set().union(*map(pairs_of, rows)) == wanted
    for at, row in enumerate(rows[len(first) :], len(first)):
        assert pairs_of(row) - set().union(*map(pairs_of, rows[:at])), "a combination that brings nothing"
    assert covering(*choices, first=first) == rows


def test_it_is_near_the_smallest_possible():
    """Which is the product of the two largest factors."""
    rows = covering(range(6), range(5), range(4), range(2), range(2))
    assert 30 <= len(rows) <= 34 < 480


def test_what_is_there_is_not_covered_again():
    everything = list(itertools.product("ab", "xy", "12"))
    assert covering("ab", "xy", "12", first=everything) == everything
