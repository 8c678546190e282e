"""Windows: they cover the domain, wrap on a periodic longitude, and never cross a gap."""

from __future__ import annotations

import numpy as np
import pytest

from xsuperres.samples.plan import WindowPlan


def drawn(plan: WindowPlan, fields: int = 3, epochs: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([plan.windows(fields, rng) for _ in range(epochs)])


def columns_of(plan: WindowPlan, start: int) -> np.ndarray:
    """Return the unwrapped columns that a window from `start` reads."""
    return start + np.arange(plan.shape[1])


def coverage(plan: WindowPlan, windows: np.ndarray, fields: int) -> np.ndarray:
    """Count how often each cell of each field is read, (field, row, column)."""
    count = np.zeros((fields, plan.rows, plan.columns), int)
    for field, row, column in windows:
        rows = slice(row, row + plan.shape[0])
        np.add.at(count[field, rows], (slice(None), columns_of(plan, column) % plan.columns), 1)
    return count


PLANS = {
    "regional": WindowPlan(rows=9, parts=[slice(0, 13)], patch=4),
    "periodic": WindowPlan(rows=9, parts=[slice(0, 13)], periodic=True, patch=4),
    "two parts": WindowPlan(rows=9, parts=[slice(0, 6), slice(6, 17)], patch=4),
    "patch wider than the domain": WindowPlan(rows=5, parts=[slice(0, 7)], patch=32),
    "patch wider than a part": WindowPlan(rows=9, parts=[slice(0, 3), slice(3, 15)], patch=5),
    "full": WindowPlan(rows=5, parts=[slice(0, 7)]),
    "full periodic": WindowPlan(rows=5, parts=[slice(0, 7)], periodic=True, margin=3),
    "margin wider than the globe": WindowPlan(rows=5, parts=[slice(0, 4)], periodic=True, margin=6),
}
every = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@every
def test_windows_lie_inside_the_domain(plan):
    windows = drawn(plan)
    assert windows.dtype == np.int64 and windows.shape[1] == 3
    field, row, column = windows.T
    assert set(field) == {0, 1, 2}
    assert row.min() >= 0 and row.max() + plan.shape[0] <= plan.rows
    if plan.periodic:
        assert column.min() >= -plan.margin and column.max() + plan.shape[1] <= plan.last_column
    else:
        assert column.min() >= 0 and column.max() + plan.shape[1] <= plan.columns


@every
def test_windows_cover_every_cell_of_every_field(plan):
    assert (coverage(plan, drawn(plan), 3) > 0).all()


@every
def test_an_epoch_reads_about_as_many_cells_as_there_are(plan):
    assert len(plan.windows(5, np.random.default_rng(0))) == 5 * plan.per_field
    inside = (plan.shape[1] - 2 * plan.margin) * plan.shape[0]
    assert abs(plan.per_field * inside - plan.rows * plan.columns) <= inside / 2 + 1e-9


def test_windows_wrap_only_where_longitude_is_periodic():
    def wraps(plan):
        return (drawn(plan)[:, 2] + plan.shape[1] > plan.columns).any()

    assert wraps(PLANS["periodic"]) and not wraps(PLANS["regional"])


def test_every_start_of_a_globe_is_equally_likely():
    """No seam: the first and the last column are read as often as any other."""
    plan = PLANS["periodic"]
    counts = coverage(plan, drawn(plan, epochs=800), 3).sum(axis=(0, 1))
    assert counts.std() / counts.mean() < 0.05


@pytest.mark.parametrize("name", ["two parts", "patch wider than a part"])
def test_windows_never_cross_a_gap(name):
    plan = PLANS[name]
    for _field, _row, column in drawn(plan):
        read = columns_of(plan, column)
        assert any(part.start <= read[0] and read[-1] < part.stop for part in plan.parts)


def test_the_order_and_the_places_are_drawn_anew():
    plan, rng = PLANS["regional"], np.random.default_rng(3)
    first, second = plan.windows(4, rng), plan.windows(4, rng)
    assert not np.array_equal(first, second)
    assert not np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))
    assert not np.array_equal(first[:, 0], np.sort(first[:, 0]))
    np.testing.assert_array_equal(first, plan.windows(4, np.random.default_rng(3)))


@every
def test_each_field_is_read_equally_often(plan):
    windows = plan.windows(6, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(windows[:, 0]), np.full(6, plan.per_field))
