"""Which truth belongs to which step of a scored forecast: that of its valid time, whatever the labels."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.testing import toy_field

REFERENCE, PERIOD, TIME = ({"standard_name": n} for n in ("forecast_reference_time", "forecast_period", "time"))
DAY = np.timedelta64(1, "D").astype("m8[ns]")
STATIC = ["elevation", "land_fraction"]


def score(fine: xr.DataArray, truth: xr.DataArray, **options) -> xr.Dataset:
    return fine.sr.score(truth, **options)


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    return toy_field(time=10, y=8, x=12)


@pytest.fixture(scope="module")
def table(truth) -> xr.DataArray:
    """Return forecasts (init, lead, ...) on the grid of the truth, each of its own error."""
    where = np.array([0, 2, 5])[:, None] + np.arange(4)
    made = truth.drop_vars(["time", *STATIC]).isel(time=xr.Variable(("init", "lead"), where))
    error = xr.DataArray(np.arange(12.0, dtype=np.float32).reshape(3, 4), dims=("init", "lead"))
    return (
        (made + error)
        .assign_coords(
            init=("init", truth.time.values[[0, 2, 5]], REFERENCE),
            lead=("lead", np.arange(4), {"units": "days"} | PERIOD),
        )
        .assign_attrs(truth.attrs | {"xsuperres_scale": 2})
    )


def bias(fine: xr.DataArray, truth: xr.DataArray, dim=("lat", "lon"), **options) -> xr.DataArray:
    table = score(fine, truth, metrics="bias", baselines="bicubic", dim=dim, **options)
    return table.bias.sel(product="prediction", region="all", drop=True)


def as_cfgrib(da: xr.DataArray) -> xr.DataArray:
    steps = da.lead.values * DAY
    da = da.drop_vars("lead").rename(init="time", lead="step").assign_coords(step=("step", steps, PERIOD))
    return da.assign_coords(valid_time=(("time", "step"), da.time.values[:, None] + steps, TIME))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("form", ["climpred", "cfgrib", "lead first"])
def test_forecasts_are_scored_against_a_series_at_their_valid_times(truth, table, form, lazy):
    given = {"climpred": table, "cfgrib": as_cfgrib(table), "lead first": table.transpose("lead", ..., "init")}[form]
    found = bias(given.chunk() if lazy else given, truth.chunk(time=3) if lazy else truth)
    outer, inner = (dim for dim in ("init", "time", "lead", "step") if dim in found.dims)
    np.testing.assert_allclose(found.transpose(outer, inner), np.arange(12.0).reshape(3, 4), atol=1e-3)
    with pytest.raises(DataError, match="lacks 1 of 12 valid times of the forecast, the first 2001-01-09"):
        bias(given, truth.isel(time=slice(0, 8)))


@pytest.mark.parametrize("form", ["climpred", "cfgrib", "cfgrib without valid_time"])
def test_forecasts_of_one_lead_go_by_valid_time(truth, table, form):
    """The field of the initial day is another day's, though its label is the same."""
    one = as_cfgrib(table).isel(step=2) if "cfgrib" in form else table.isel(lead=2)
    one = one.drop_vars("valid_time") if "without" in form else one
    right = truth.isel(time=[2, 4, 7])
    np.testing.assert_allclose(bias(one, right), [2.0, 6.0, 10.0], atol=1e-3)
    np.testing.assert_array_equal(bias(one, truth), bias(one, right))
    with pytest.raises(DataError, match="lacks 2 of 3 valid times"):
        bias(one, truth.isel(time=[0, 2, 5]))
    for fine in (one.isel({one.dims[0]: 1}), as_cfgrib(table).isel(time=1, step=2)):
        np.testing.assert_allclose(bias(fine, truth.isel(time=4)), 6.0, atol=1e-3)
        with pytest.raises(DataError, match="other valid times: expected 2001-01-05.*, got 2001-01-03"):
            bias(fine, truth.isel(time=2))


def test_truth_laid_out_like_the_forecasts_is_compared_with_all_that_is_known(truth, table):
    laid_out = (table - np.float32(1)).assign_attrs(table.attrs)
    np.testing.assert_allclose(bias(table, laid_out), np.ones((3, 4)), atol=1e-3)
    other = as_cfgrib(laid_out).assign_coords(
        valid_time=(("time", "step"), as_cfgrib(table).valid_time.values + DAY, TIME)
    )
    with pytest.raises(DataError, match="truth has other valid times"):
        bias(as_cfgrib(table), other)
    one, later = as_cfgrib(table).isel(time=0), as_cfgrib(laid_out).isel(time=1)
    with pytest.raises(DataError, match="truth has other initial times: expected 2001-01-01.*, got 2001-01-03"):
        bias(one, later)
    with pytest.raises(DataError, match="truth has other valid times"):  # one field is not the truth of all leads
        bias(one, truth.isel(time=0))


def test_what_forecasts_were_made_from_has_their_times(truth, table):
    coarse = table.sr.coarsen(2)
    np.testing.assert_allclose(bias(table, truth, coarse=coarse), np.arange(12.0).reshape(3, 4), atol=1e-3)
    with pytest.raises(DataError, match="coarse has other initial times"):
        bias(table.isel(init=0), truth, dim=("lat", "lon"), coarse=coarse.isel(init=1))


def test_the_training_period_is_told_by_valid_times(truth, table):
    """Of a day that was trained on, whenever the forecast of it began."""
    model = truth.isel(time=slice(0, 4)).sr.fit(
        2, validation=None, optimization={"max_steps": 1, "validations": 1}, progress=False, activate=False
    )
    with pytest.warns(XSuperResWarning, match=r"6 time step\(s\) of the truth lie in the model's training period"):
        score(table, truth, model=model, metrics="bias", baselines="bicubic")
    with pytest.warns(XSuperResWarning, match=r"1 time step\(s\) of the truth lie in the model's training period"):
        score(table.isel(lead=3), truth, model=model, metrics="bias", baselines="bicubic")


def test_series_keep_to_their_labels(truth):
    """No series is cut to another one, and none is looked for by a time that is no forecast's."""
    fine = (truth + np.float32(1)).assign_attrs(truth.attrs | {"xsuperres_scale": 2})
    with pytest.raises(DataError, match="10 steps along 'time', the scored field has 9"):
        bias(fine.isel(time=slice(0, 9)), truth)
    with pytest.raises(DataError, match=r"dims \['time'\] that the scored field has not"):
        bias(fine.isel(time=0), truth)
