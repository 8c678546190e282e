"""Counts of cells outside the range: they add up, travel as plain numbers, and no order changes a verdict."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

from xsuperres.fields.grid import Location
from xsuperres.inference.tally import Tally, tallied

N, Y, X = 12, 5, 7
PLANES = [
    (np.full((1, 1), -1.0, np.float32), np.full((1, 1), 1.0, np.float32)),
    (np.full((Y, 1), -0.5, np.float32), np.linspace(0, 2, Y, dtype=np.float32)[:, None]),
    (np.full((Y, X), np.nan, np.float32), np.full((Y, X), np.nan, np.float32)),
]
EVERYWHERE = Location(np.arange(Y), np.arange(X))


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(N, len(PLANES), Y, X)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    return values


def same(one: Tally, other: Tally) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Tally))


def test_against_numpy(values):
    found = tallied(PLANES, values, EVERYWHERE)
    for index, (low, high) in enumerate(PLANES[:2]):
        field = values[:, index]
        assert found.below[index] == (field < low).sum() and found.above[index] == (field > high).sum()
        assert found.known[index] == np.isfinite(field).sum() and found.seen[index] == field.size
        assert (found.lowest[index], found.highest[index]) == (np.nanmin(field), np.nanmax(field))
    assert found.known[2] == 0 and found.seen[2] == N * Y * X and np.isinf(found.lowest[2])


def test_parts_add_up(values):
    """Fields and cells apart."""
    parts = [
        tallied(PLANES, values[start : start + 5, :, :, cut], Location(np.arange(Y), np.arange(X)[cut]))
        for start in range(0, N, 5)
        for cut in (slice(0, 3), slice(3, X))
    ]
    assert same(sum(parts[1:], parts[0]), tallied(PLANES, values, EVERYWHERE))


def test_they_travel_as_plain_numbers(values):
    found = tallied(PLANES, values, EVERYWHERE)
    text = json.dumps(found.numbers, allow_nan=False)
    assert same(Tally.of(json.loads(text)), found)


@pytest.mark.parametrize("seed", range(5))
def test_a_verdict_stands_in_any_order(values, seed):
    """Once there are too many there always are, and in the end it is that of all at once."""
    order = np.random.default_rng(seed).permutation(N)
    whole, size = tallied(PLANES, values, EVERYWHERE), N * Y * X
    for share in np.linspace(0, 0.5, 11):
        found, before = tallied(PLANES, values[:0], EVERYWHERE), set()
        for step in order:
            found = found + tallied(PLANES, values[[step]], EVERYWHERE)
            now = set(found.alarming(share, size).tolist())
            assert now >= before
            before = now
        assert before == set(whole.alarming(share, size).tolist())
        sides = np.maximum(whole.above, whole.below) > share * whole.known
        assert before == set(np.flatnonzero(sides).tolist())
