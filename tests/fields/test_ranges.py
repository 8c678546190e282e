"""Ranges of training inputs against numpy on all values at once: by cell, by latitude, of all; limits; other grids."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

from xsuperres.fields.ranges import Extremes, InputRange
from xsuperres.testing import toy_field

COUNT, SHAPE = 20, (6, 8)


@pytest.fixture
def values() -> np.ndarray:
    """Return fields (n, variables, y, x) with gaps: single cells, a cell that is never there, infinities."""
    rng = np.random.default_rng(2)
    values = rng.normal([[[280.0]], [[5.0]]], [[[8.0]], [[2.0]]], (COUNT, 2, *SHAPE)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[3, 0, 2, 2] = np.inf
    values[:, 1, 4, 5] = np.nan
    return values


def coarse_grid(grid, **sizes):
    return grid(toy_field(time=1, **({"y": SHAPE[0], "x": SHAPE[1]} | sizes)))


def gathered(values, coarse, *, fixed, blocks=1) -> tuple[InputRange, ...]:
    extremes = Extremes(coarse, fixed=fixed)
    for block in np.array_split(values, blocks):
        extremes.add(block)
    return extremes.ranges()


@pytest.mark.parametrize("blocks", [1, 3, COUNT])
@pytest.mark.parametrize(("fixed", "over", "shape"), [(True, (0,), SHAPE), (False, (0, 2), (SHAPE[0], 1))])
def test_they_are_those_of_all_values(values, grid, blocks, fixed, over, shape):
    found = gathered(values, coarse_grid(grid), fixed=fixed, blocks=blocks)
    assert len(found) == 2
    for index, part in enumerate(found):
        finite = np.where(np.isfinite(values[:, index]), values[:, index], np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a cell that is never there
            np.testing.assert_array_equal(part.lowest, np.nanmin(finite, axis=over).reshape(shape))
            np.testing.assert_array_equal(part.highest, np.nanmax(finite, axis=over).reshape(shape))
        np.testing.assert_array_equal(part.count, np.isfinite(finite).sum(axis=over).reshape(shape))
        assert part.lowest.dtype == part.highest.dtype == part.count.dtype == np.float32
        assert part.span == (np.nanmin(finite), np.nanmax(finite))
    assert not fixed or np.isnan(found[1].lowest[4, 5])


def test_rows_of_a_rotated_pole_are_no_latitudes(values, grid, rotated_field):
    coarse = grid(rotated_field.isel(rlat=slice(0, SHAPE[0]), rlon=slice(0, SHAPE[1])))
    assert coarse.y.kind == "latitude", "of the rotated pole"
    (part, _) = gathered(values, coarse, fixed=False)
    assert part.lowest.shape == part.count.shape == (1, 1)
    (part, _) = gathered(values, coarse, fixed=True)
    assert part.lowest.shape == SHAPE


def plane(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_limits_are_the_wider_the_fewer_values_there_were():
    widths = []
    for count in (2, 4, 16, 1600):
        low, high = InputRange(plane(270, 270), plane(280, 280), plane(count, count)).limits()
        np.testing.assert_allclose(low + high, 550, rtol=1e-6)
        widths.append(float((high - low)[0, 0]))
    np.testing.assert_allclose(widths, [10 * (1 + 2 * (8 / count + 1e-3)) for count in (2, 4, 16, 1600)], rtol=1e-5)


def test_a_cell_that_hardly_changed_has_half_the_usual_margin():
    low, high = InputRange(plane(0, 0, 0, 5), plane(2, 2, 2, 5), plane(16, 16, 16, 16)).limits()
    np.testing.assert_allclose(low, [[-1.005, -1.005, -1.005, 4.495]], rtol=1e-6)
    np.testing.assert_allclose(high, [[3.005, 3.005, 3.005, 5.505]], rtol=1e-6)


def test_equal_values_are_inside():
    """Ranges of no width, also after rounding: a constant, and zeros among other cells."""
    value = np.float32(280.1)
    low, high = InputRange(plane(value, value), plane(value, value), plane(9, 9)).limits()
    assert (low <= value).all() and (high >= value).all()
    low, high = InputRange(plane(0, 270), plane(0, 290), plane(1e9, 1e9)).limits()
    assert low[0, 0] < 0 < high[0, 0]


def test_what_was_never_there_has_no_limits():
    nothing = InputRange(plane(np.nan), plane(np.nan), plane(0))
    assert np.isnan(nothing.limits()).all() and np.isnan(nothing.span).all()
    low, high = InputRange(plane(np.nan, 1), plane(np.nan, 2), plane(0, 9)).limits()
    assert np.isnan([low[0, 0], high[0, 0]]).all() and low[0, 1] < 1 < 2 < high[0, 1]


def test_rows_go_by_latitude(grid):
    """The nearest row; beyond the outermost ones those."""
    own = coarse_grid(grid)
    rows = np.arange(SHAPE[0], dtype=np.float32)[:, None]
    part = InputRange(rows, rows + 10, rows + 1)
    lat = own.y.centres[0] + own.y.spacing * (np.arange(10) - 2.1)
    field = toy_field(time=1, y=10, x=5).drop_vars(["elevation", "land_fraction"])
    there = part.on(own, grid(field.assign_coords(lat=("lat", lat, field.lat.attrs), lon=field.lon + 100)))
    nearest = np.array([0, 0, 0, 1, 2, 3, 4, 5, 5, 5])
    np.testing.assert_array_equal(there.lowest.ravel(), nearest)
    np.testing.assert_array_equal(there.highest.ravel(), nearest + 10)
    np.testing.assert_array_equal(there.count.ravel(), nearest + 1)


def test_on_a_grid_without_latitudes_all_rows_are_one(grid, rotated_field):
    rows = np.arange(SHAPE[0], dtype=np.float32)[:, None]
    part = InputRange(rows, rows + 10, rows + 1).on(coarse_grid(grid), grid(rotated_field))
    assert (part.lowest.item(), part.highest.item(), part.count.item()) == (0, 15, 21)
    assert part.on(grid(rotated_field), coarse_grid(grid)) is part


QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1, "validations": 1},
    "progress": False,
    "activate": False,
}


@pytest.mark.parametrize("domain", ["fixed", "open"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_model_knows_those_of_all_fields_it_was_given(domain, window):
    """Held-out ones too, each once: also where blocks are read one by one and windows overlap."""
    fine = toy_field(time=9, y=16, x=24)
    other = (fine * 2).rename("other").assign_attrs(units="1")
    options = QUICK | {"time_window": window, "data": {"domain": domain}, "validation": 0.3}
    options |= {"sampling": {"batch_size": 1, "memory_budget": 1}, "predictors": other}
    model = fine.chunk(time=1).sr.fit(2, **options)
    assert [part.count.max() for part in model.ranges] == [9 if domain == "fixed" else 9 * 12] * 2
    over = "time" if domain == "fixed" else ("time", "lon")
    for field, part in zip((fine, other), model.ranges, strict=True):
        coarse = field.sr.coarsen(2)
        np.testing.assert_allclose(part.lowest.squeeze(), coarse.min(over), rtol=1e-6)
        np.testing.assert_allclose(part.highest.squeeze(), coarse.max(over), rtol=1e-6)


def test_a_stretch_held_out_in_space_counts_too():
    fine = toy_field(time=3, y=16, x=60)
    model = fine.sr.fit(2, **(QUICK | {"validation": "space"}))
    assert model.ranges[0].lowest.shape == (8, 1)
    np.testing.assert_allclose(model.ranges[0].highest[:, 0], fine.sr.coarsen(2).max(("time", "lon")), rtol=1e-6)


def test_pairs_are_judged_by_their_coarse_side():
    fine = toy_field(time=3, y=16, x=24)
    forecast = (fine.sr.coarsen(2) + 7).assign_attrs(fine.attrs)
    model = forecast.drop_vars(["elevation", "land_fraction"]).sr.fit(target=fine, **(QUICK | {"validation": None}))
    np.testing.assert_allclose(model.ranges[0].lowest, forecast.min("time"), rtol=1e-6)


def test_another_domain_has_rows_of_its_own(grid):
    fine = toy_field(time=3, y=16, x=24)
    model = fine.sr.fit(2, **(QUICK | {"validation": None, "static": [], "data": {"domain": "open"}}))
    there = fine.isel(lat=slice(4, 12)).assign_coords(lon=fine.lon + 50).drop_vars(["elevation", "land_fraction"])
    bound = model.on(grid(there), xr.Dataset())
    np.testing.assert_array_equal(bound.ranges[0].lowest, model.ranges[0].lowest[2:6])
