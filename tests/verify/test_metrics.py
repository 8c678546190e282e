"""Metrics against numpy, written independently of the package."""

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import UnknownNameError
from xsuperres.fields.grid import grid_of
from xsuperres.testing import toy_field
from xsuperres.verify.metrics import METRICS, Pair, gradient_amplitude, recoarsened, weighted_mean

UNITS = ["rmse", "mae", "bias", "consistency"]


def cells(lat):
    """Return |sin north - sin south| of rows whose bounds lie half-way, ends clipped at the poles."""
    middle = (lat[1:] + lat[:-1]) / 2
    edges = np.concatenate([[lat[0] - (lat[1] - lat[0]) / 2], middle, [lat[-1] + (lat[-1] - lat[-2]) / 2]])
    return np.diff(np.sin(np.deg2rad(np.clip(edges, -90, 90))))


@pytest.fixture
def fields():
    """Return truth and prediction on a grid up to the pole, with NaN in both."""
    truth = toy_field(time=3, y=12, x=16, dtype="float64")
    truth = truth.assign_coords(lat=("lat", np.linspace(35.0, 90.0, 12), truth.lat.attrs))
    rng = np.random.default_rng(1)
    prediction = 0.8 * truth + 60 + rng.normal(0, 1, truth.shape) + truth.lon
    hole = rng.random(truth.shape) < 0.1
    return truth.where(~hole), prediction.where(~hole)


def pair_of(truth, prediction, dims=("time", "lat", "lon"), weights=None, **more):
    grid = grid_of(truth)
    planes = [f.reset_coords(drop=True).drop_vars(list(f.indexes)) for f in (prediction, truth)]
    weights = grid.weights().expand_dims("region") if weights is None else weights
    return Pair(*planes, weights, grid, dims, **more)


def oracle(truth, prediction):
    t, p = truth.values, prediction.values
    valid = np.isfinite(t) & np.isfinite(p)
    w = np.broadcast_to(cells(truth.lat.values)[:, None], t.shape)[valid]
    t, p = t[valid], p[valid]
    mean = lambda v: np.average(v, weights=w)  # noqa: E731
    at, ap = t - mean(t), p - mean(p)
    return {
        "rmse": np.sqrt(mean((p - t) ** 2)),
        "mae": mean(abs(p - t)),
        "bias": mean(p - t),
        "correlation": mean(at * ap) / np.sqrt(mean(at**2) * mean(ap**2)),
        "sd_ratio": np.sqrt(mean(ap**2) / mean(at**2)),
    }


@pytest.mark.parametrize("name", ["rmse", "mae", "bias", "correlation", "sd_ratio"])
def test_metric_equals_numpy(fields, name):
    found = float(METRICS.get(name)(pair_of(*fields)).squeeze())
    assert found == pytest.approx(oracle(*fields)[name], rel=1e-9)


def test_unweighted_gives_another_number(fields):
    flat = xr.ones_like(grid_of(fields[0]).weights()).expand_dims("region")
    found = float(METRICS.get("rmse")(pair_of(*fields, weights=flat)).squeeze())
    assert abs(found / oracle(*fields)["rmse"] - 1) > 1e-3


@pytest.mark.parametrize("dims", [("time",), ("lat", "lon"), ("time", "lon"), ("lat",)])
def test_other_dims_stay(fields, dims):
    truth, prediction = fields
    found = METRICS.get("bias")(pair_of(truth, prediction, dims=dims)).isel(region=0)
    left = [dim for dim in truth.dims if dim not in dims]
    area = xr.DataArray(cells(truth.lat.values), dims="lat")
    expected = (prediction - truth).weighted(area).mean(dims)
    assert set(found.dims) == set(left)
    np.testing.assert_allclose(found.transpose(*left), expected.transpose(*left), rtol=1e-9)


def test_no_valid_cell_gives_nan(fields):
    truth, prediction = fields
    found = METRICS.get("rmse")(pair_of(truth.where(truth.time != truth.time[0]), prediction, dims=("lat", "lon")))
    assert np.isnan(found.isel(time=0)).all()
    assert np.isfinite(found.isel(time=slice(1, None))).all()


def test_constant_field_has_no_correlation(fields):
    truth, prediction = fields
    pair = pair_of(truth, prediction * 0 + 288.1)
    assert np.isnan(METRICS.get("correlation")(pair)).all()


def test_gradient_of_a_plane_slope():
    """A field that rises by 2 per metre of a unit sphere northward has a gradient of 2 everywhere."""
    field = toy_field(time=1, y=10, x=20, periodic=True, dtype="float64")
    northward = 2 * np.deg2rad(field.lat) + 0 * field
    grid = grid_of(field)
    found = gradient_amplitude(xr.DataArray(grid.canonical(northward)), grid)
    np.testing.assert_allclose(found, 2.0, rtol=1e-9)


def test_gradient_equals_numpy_and_wraps():
    field = toy_field(time=1, y=6, x=8, periodic=True, dtype="float64").isel(time=0)
    values, lat = field.values, field.lat.values
    step = np.deg2rad(360 / 8) * cells(lat) / np.deg2rad(lat[1] - lat[0])
    east = ((np.roll(values, -1, axis=1) - values) / step[:, None]) ** 2
    x = (east + np.roll(east, 1, axis=1)) / 2
    north = (np.diff(values, axis=0) / np.deg2rad(np.diff(lat))[:, None]) ** 2
    y = np.concatenate([north[:1], (north[1:] + north[:-1]) / 2, north[-1:]])
    grid = grid_of(field)
    np.testing.assert_allclose(gradient_amplitude(xr.DataArray(grid.canonical(field)), grid), np.sqrt(x + y), rtol=1e-9)


def test_gradient_sees_a_checkerboard_and_not_across_nan():
    field = toy_field(time=1, y=4, x=6, dtype="float64").isel(time=0)
    grid = grid_of(field)
    board = xr.DataArray((np.indices((4, 6)).sum(axis=0) % 2).astype(float), dims=grid.dims)
    assert float(gradient_amplitude(board, grid).min()) > 0
    board[:, 3] = np.nan
    found = gradient_amplitude(
        board.where(board.isnull(), board + xr.DataArray([0, 0, 0, 0, 1e6, 1e6], dims="lon")), grid
    )
    assert np.isfinite(found.isel(lon=[0, 1, 2, 4, 5])).all()
    assert float(found.max()) < 1e3  # a difference over the hole would be about 1e7
    assert np.isnan(found.isel(lon=3)).all()


def test_gradient_ratio_of_a_scaled_field(fields):
    truth, _ = fields
    found = METRICS.get("gradient_ratio")(pair_of(truth, 0.5 * truth + 100))
    assert float(found.squeeze()) == pytest.approx(0.5, rel=1e-9)


def test_consistency_equals_numpy():
    fine = toy_field(time=2, y=12, x=16, dtype="float64")
    off = fine + 1.0
    area = cells(fine.lat.values)[:, None] * np.ones((12, 16))

    def mean(values):
        blocks = lambda v: v.reshape(*v.shape[:-2], 3, 4, 4, 4).sum(axis=(-3, -1))  # noqa: E731
        return blocks(values * area) / blocks(area)

    coarse = mean(fine.values) + np.linspace(0, 1, 12).reshape(3, 4)
    repeated = xr.DataArray(coarse.repeat(4, axis=-2).repeat(4, axis=-1), dims=fine.dims)
    found = METRICS.get("consistency")(pair_of(fine, off, scale=4, coarse=repeated))
    weights = area.reshape(3, 4, 4, 4).sum(axis=(1, 3))
    square = np.average(((mean(off.values) - coarse) ** 2).mean(axis=0), weights=weights)
    assert float(found.squeeze()) == pytest.approx(np.sqrt(square), rel=1e-9)


def test_recoarsened_repeats_whole_cells():
    field = toy_field(time=2, y=8, x=12, dtype="float64")
    grid = grid_of(field)
    bare = field.reset_coords(drop=True).drop_vars(list(field.indexes))
    found = recoarsened(bare, grid, 4)
    assert found.dims == bare.dims
    np.testing.assert_array_equal(found[:, ::4, ::4].values.repeat(4, -2).repeat(4, -1), found)


def test_weights_outside_a_region_do_not_count(fields):
    truth, prediction = fields
    area = grid_of(truth).weights()
    north = xr.concat([area, area.where(truth.lat.values[:, None] > 60, 0.0)], "region")
    found = METRICS.get("bias")(pair_of(truth, prediction, weights=north))
    cut = (prediction - truth).sel(lat=slice(60.1, None))
    expected = cut.weighted(xr.DataArray(cells(truth.lat.values), dims="lat", coords={"lat": truth.lat})).mean()
    assert float(found[1]) == pytest.approx(float(expected), rel=1e-9)


def test_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'rmse'"):
        METRICS.get("rsme")
    assert METRICS.canonical("pearson") == "correlation"
    assert [name for name in METRICS if METRICS.get(name).has_units] == UNITS


def test_weighted_mean_with_dims_of_the_field_alone():
    field = xr.DataArray([[1.0, 3.0], [np.nan, 5.0]], dims=("time", "x"))
    area = xr.DataArray([1.0, 2.0], dims="x")
    np.testing.assert_array_equal(weighted_mean(field, area, ("time",)), [1.0, 4.0])
