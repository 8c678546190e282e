"""Pairwise covering: few combinations in which each two choices meet.

A fault of a network is nearly always one of a part, or of two parts that do not fit: a set of combinations in which
every pair of choices occurs finds it, at a fifth of the full product or less. The full product runs with `make
test-full`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["covering", "pairs_of"]

Row = tuple[Any, ...]
Choice = tuple[int, Any]  # the factor's position and what is chosen of it


def pairs_of(row: Row) -> set[tuple[Choice, Choice]]:
    """Return the pairs of choices in a combination."""
    return set(itertools.combinations(enumerate(row), 2))


def covering(*factors: Sequence[Any], first: Iterable[Row] = ()) -> list[Row]:
    """Return combinations of one choice per factor that hold every pair of choices of two factors.

    Greedy, and the same at every call: a combination starts with the first pair that is missing, and takes of each
    other factor the choice that brings the most missing pairs, of equals the one that was chosen least.

    Parameters
    ----------
    factors : sequences of hashable
        The choices.
    first : iterable of tuples
        Combinations that are wanted in any case; they come first, and what they cover is not covered again.

    Examples
    --------
    >>> covering("ab", "xy", [1, 2])
    [('a', 'x', 1), ('a', 'y', 2), ('b', 'x', 2), ('b', 'y', 1)]
    """
    rows = list(first)
    missing = dict.fromkeys(
        pair
        for one, other in itertools.combinations(range(len(factors)), 2)
        for pair in itertools.product(((one, c) for c in factors[one]), ((other, c) for c in factors[other]))
    )
    for row in rows:
        for pair in pairs_of(row):
            missing.pop(pair, None)
    while missing:
        chosen = dict(next(iter(missing)))
        for at, choices in enumerate(factors):
            if at not in chosen:
                chosen[at] = _best(at, choices, chosen, missing, rows)
        row = tuple(chosen[at] for at in range(len(factors)))
        rows.append(row)
        for pair in pairs_of(row):
            missing.pop(pair, None)
    return rows


def _best(at: int, choices: Sequence[Any], chosen: dict[int, Any], missing: dict, rows: list[Row]) -> Any:
    """Return the choice of the factor `at` that brings the most missing pairs with those `chosen`."""

    def worth(choice: Any) -> tuple[int, int]:
        pairs = (tuple(sorted([(at, choice), other], key=lambda pair: pair[0])) for other in chosen.items())
        return sum(pair in missing for pair in pairs), -sum(row[at] == choice for row in rows)

    return max(choices, key=worth)
