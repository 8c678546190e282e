"""Times of forecasts: leads, initial and valid times of every shape that files have."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields.forecasts import TimeAxes, at_valid_times, flattened, positions, sample_labels
from xsuperres.fields.grid import find_axes

INITS = np.array(["2001-01-01", "2001-01-03", "2001-01-08"], "M8[ns]")
STEPS = np.arange(4) * np.timedelta64(6, "h").astype("m8[ns]")
VALID = INITS[:, None] + STEPS[None, :]
REFERENCE, PERIOD, TIME = ({"standard_name": n} for n in ("forecast_reference_time", "forecast_period", "time"))


def field(dims: tuple[str, ...], sizes: tuple[int, ...], **coords) -> xr.DataArray:
    """Return a field (*dims, lat, lon) of numbers that count."""
    shape = (*sizes, 3, 4)
    plane = {"lat": [10.0, 11.0, 12.0], "lon": [0.0, 1.0, 2.0, 3.0]}
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return xr.DataArray(
        values, dims=(*dims, "lat", "lon"), coords={**plane, **coords}, name="t2m", attrs={"units": "K"}
    )


def cfgrib(*, valid: bool = True) -> xr.DataArray:
    da = field(("time", "step"), (3, 4), time=("time", INITS, REFERENCE), step=("step", STEPS, PERIOD))
    return da.assign_coords(valid_time=(("time", "step"), VALID, TIME)) if valid else da


def times_of(da: xr.DataArray) -> TimeAxes:
    return TimeAxes.of(da, find_axes(da).time)


FORMS = {
    "cfgrib": lambda: cfgrib(),
    "cfgrib without valid_time": lambda: cfgrib(valid=False),
    "names alone": lambda: field(("time", "step"), (3, 4), time=INITS, step=STEPS),
    "WeatherBench": lambda: field(
        ("time", "prediction_timedelta"),
        (3, 4),
        time=INITS,
        prediction_timedelta=("prediction_timedelta", [0, 6, 12, 18], {"units": "hours"}),
    ),
    "CDS": lambda: field(
        ("forecast_reference_time", "forecast_period"),
        (3, 4),
        forecast_reference_time=("forecast_reference_time", INITS, REFERENCE),
        forecast_period=("forecast_period", [0.0, 6.0, 12.0, 18.0], {"units": "hours"} | PERIOD),
        valid_time=(("forecast_reference_time", "forecast_period"), VALID, TIME),
    ),
    "climpred": lambda: field(
        ("init", "lead"), (3, 4), init=INITS, lead=("lead", [0.0, 0.25, 0.5, 0.75], {"units": "days"})
    ),
    "S and L": lambda: field(
        ("S", "L"), (3, 4), S=("S", INITS, REFERENCE), L=("L", [0, 6, 12, 18], {"units": "hours"} | PERIOD)
    ),
    "S and L by name": lambda: field(("S", "L"), (3, 4), S=INITS, L=("L", [0, 6, 12, 18], {"units": "hours"})),
    "leads last": lambda: cfgrib().transpose("lat", "lon", "time", "step"),
    "leads first": lambda: cfgrib().transpose("step", "lat", "lon", "time"),
    "other names": lambda: cfgrib(valid=False).rename(time="run", step="ahead"),
    "an auxiliary lead": lambda: (
        cfgrib(valid=False).rename(step="k").drop_vars("k").assign_coords(h=("k", STEPS, PERIOD))
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_leads_and_valid_times_of_many_forms(form):
    da = form()
    lead = next(dim for dim, size in da.sizes.items() if size == 4 and dim != "lon")
    init = next(dim for dim, size in da.sizes.items() if size == 3 and dim != "lat")
    axes = times_of(da)
    assert axes.forecast and axes.along == lead and axes.outer == (init,)
    np.testing.assert_array_equal(axes.valid.transpose(init, lead).values, VALID)
    assert axes.line.dims == (lead,) and axes.line.values.tolist() == [0, 6, 12, 18]
    assert axes.step == 6.0


@pytest.mark.parametrize("valid", ["given", "made", "named time"])
def test_one_initial_time(valid):
    da = cfgrib().isel(time=0)
    if valid == "made":
        da = da.drop_vars("valid_time")
    if valid == "named time":
        da = da.drop_vars("time").rename(valid_time="time")
        del da.time.attrs["standard_name"]
    axes = times_of(da)
    assert (axes.along, axes.outer) == ("step", ())
    assert axes.valid.dims == ("step",)
    np.testing.assert_array_equal(axes.valid.values, VALID[0])


def test_one_lead_is_a_series_in_valid_time():
    """Windows and the calendar follow the times that the fields are of, as do pairs."""
    for da in (cfgrib().isel(step=2), cfgrib(valid=False).isel(step=2), FORMS["climpred"]().isel(lead=2)):
        axes = times_of(da)
        assert not axes.forecast and axes.along in ("time", "init") and axes.outer == ()
        np.testing.assert_array_equal(axes.valid.values, VALID[:, 2])


def test_plain_times_are_what_they_were():
    da = field(("time",), (4,), time=INITS[0] + 4 * STEPS)
    for plain in (
        da,
        da.assign_coords(time=da.time.assign_attrs(TIME)),
        da.assign_coords(time=da.time.assign_attrs(REFERENCE)),
    ):
        axes = times_of(plain)
        assert (axes.along, axes.outer, axes.forecast) == ("time", (), False)
        np.testing.assert_array_equal(axes.valid.values, da.time.values)
        assert axes.step == 24.0
    other = da.assign_coords(time_centered=("time", da.time.values + STEPS[1], TIME))
    np.testing.assert_array_equal(times_of(other).valid.values, da.time.values)
    assert times_of(da.drop_vars("time")).valid is None and times_of(da.drop_vars("time")).step is None


def test_a_dimension_called_l_is_no_lead_by_its_name_alone():
    da = field(("time", "L"), (3, 4), time=INITS, L=[1, 2, 3, 4])
    axes = times_of(da)
    assert (axes.along, axes.forecast) == ("time", False)


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_months_by_the_calendar(calendar):
    """As NMME and DCPP have them, cftime too."""
    starts = xr.date_range("2001-01-01", periods=3, freq="MS", calendar=calendar, use_cftime=True)
    da = field(
        ("S", "L"), (3, 4), S=("S", starts, REFERENCE), L=("L", np.arange(4) + 0.5, {"units": "months"} | PERIOD)
    )
    axes = times_of(da)
    middle = {"noleap": "2001-03-16 12", "360_day": "2001-03-16 00"}[calendar]
    assert str(axes.valid.values[0, 2])[:13] == middle
    assert axes.step == 730.5
    whole = da.assign_coords(L=("L", np.arange(4) + 1, {"units": "months"}))
    assert [str(time)[:10] for time in times_of(whole).valid.values[1]] == [
        "2001-03-01",
        "2001-04-01",
        "2001-05-01",
        "2001-06-01",
    ]


def test_the_months_of_the_climate_data_store():
    """`forecastMonth` has no unit, and its first month is that of the initial time."""
    starts = np.array(["2001-01-01", "2001-02-01", "2001-03-01"], "M8[ns]")
    da = field(
        ("forecast_reference_time", "forecastMonth"),
        (3, 4),
        forecast_reference_time=("forecast_reference_time", starts, REFERENCE),
        forecastMonth=(
            "forecastMonth",
            [1, 2, 3, 4],
            {"units": "1", "long_name": "months since forecast_reference_time"},
        ),
    )
    axes = times_of(da)
    expected = starts.astype("M8[M]")[:, None] + np.arange(4)
    np.testing.assert_array_equal(axes.valid.values.astype("M8[D]"), expected.astype("M8[D]"))
    assert axes.step == 730.5
    one = da.isel(forecastMonth=2)
    np.testing.assert_array_equal(times_of(one).valid.values.astype("M8[D]"), expected[:, 2].astype("M8[D]"))


@pytest.mark.parametrize("missing", [0, 2])
def test_a_ragged_forecast_in_another_calendar(missing):
    """Some valid times are missing, as NaN among cftime dates: the others are known, and what is missing is said."""
    dates = xr.date_range("2001-01-01", periods=12, freq="D", calendar="noleap", use_cftime=True).values.copy()
    dates[missing] = np.nan
    da = field(("init", "lead"), (3, 4), lead=[1, 2, 3, 4], valid_time=(("init", "lead"), dates.reshape(3, 4), TIME))
    axes = times_of(da)
    assert axes.valid.isnull().sum() == 1 and axes.step == 24.0
    with pytest.raises(DataError, match="1 of the valid times are missing"):
        axes.columns(da, window=False, calendar=True)
    with pytest.raises(DataError, match="'lead' must increase.*missing times"):
        axes.columns(da, window=True, calendar=False)
    flat = flattened(da, None)
    truth = field(("time",), (4,), time=("time", dates[3:7]))
    ours, theirs = sample_labels(flat, "valid_time", truth, "time")
    assert np.flatnonzero(positions(theirs, ours, "time", what="it") >= 0).tolist() == [3, 4, 5, 6]


def test_leads_of_no_unit_are_judged_by_valid_times():
    da = field(("init", "lead"), (3, 4), init=INITS, lead=[1, 2, 3, 4])
    axes = times_of(da)
    assert axes.valid is None and axes.step is None and axes.line.values.tolist() == [1, 2, 3, 4]
    given = da.assign_coords(valid_time=(("lead", "init"), VALID.T))
    axes = times_of(given)
    assert axes.step == 6.0 and axes.line.dims == ("init", "lead")
    np.testing.assert_array_equal(axes.line.values, VALID)
    bare = da.drop_vars(["init", "lead"])
    axes = times_of(bare)
    assert (axes.along, axes.outer, axes.line, axes.valid) == ("lead", ("init",), None, None)


def test_initial_times_that_are_years():
    """Windows need no dates; the calendar does."""
    da = field(("init", "lead"), (3, 4), init=[1961, 1962, 1963], lead=("lead", [1, 2, 3, 4], {"units": "years"}))
    axes = times_of(da)
    assert axes.valid is None and axes.step == 8766.0
    assert axes.columns(da, window=True, calendar=False).values.tolist() == [[0.0]] * 4
    with pytest.raises(DataError, match="calendar=True needs dates"):
        axes.columns(da, window=False, calendar=True)


def test_a_lagged_ensemble_has_valid_times_by_member():
    da = field(("member", "step"), (3, 4), reftime=("member", INITS), step=STEPS)
    axes = times_of(da)
    np.testing.assert_array_equal(axes.valid.transpose("member", "step").values, VALID)
    assert axes.outer == ("member",)


def test_valid_times_are_not_computed_for_windows():
    def refuse(dsk, keys, **options):
        raise AssertionError("computed")

    da = cfgrib()
    lazy = da.assign_coords(valid_time=da.valid_time.chunk(time=1))
    with dask.config.set(scheduler=refuse):
        axes = times_of(lazy)
        axes.columns(lazy, window=True, calendar=False)
        with pytest.raises(AssertionError, match="computed"):
            axes.columns(lazy, window=False, calendar=True)


# what a network is told


def test_columns_of_windows_and_calendar():
    da = cfgrib().expand_dims(number=2).transpose("lat", "time", "number", "lon", "step")
    axes = times_of(da)
    stretches = axes.columns(da, window=True, calendar=False)
    assert stretches.dims == ("step", "column") and not stretches.values.any()
    told = axes.columns(da, window=True, calendar=True)
    assert told.dims == ("time", "step", "column") and told.shape == (3, 4, 5)
    alone = times_of(da.isel(time=1)).columns(da.isel(time=1), window=True, calendar=True)
    assert alone.dims == ("step", "column")
    np.testing.assert_array_equal(told.values[1], alone.values)
    noon = 2 * np.pi * 0.5
    np.testing.assert_allclose(told.values[:, 2, 3:], [[np.sin(noon), np.cos(noon)]] * 3, atol=1e-12)


def test_columns_of_a_single_field():
    """Its time is enough for the calendar, not for a window."""
    da = cfgrib().isel(time=1, step=2)
    axes = times_of(da)
    assert axes.along is None
    told = axes.columns(da, window=False, calendar=True)
    assert told.dims == ("column",) and told.shape == (5,)
    whole = times_of(cfgrib()).columns(cfgrib(), window=False, calendar=True)
    np.testing.assert_array_equal(told.values, whole.values[1, 2])
    with pytest.raises(DataError, match=r"needs a time dimension, or a lead dimension; the data have \('lat', 'lon'\)"):
        axes.columns(da, window=True, calendar=False)


def test_gaps_along_leads():
    da = cfgrib().assign_coords(step=np.array([0, 6, 12, 30], "m8[h]").astype("m8[ns]"))
    with pytest.warns(XSuperResWarning, match="'step' are irregular: 1 gap"):
        told = times_of(da).columns(da, window=True, calendar=False)
    assert told.values[:, 0].tolist() == [0, 0, 0, 1]
    with pytest.raises(DataError, match="'step' must increase"):
        back = cfgrib().isel(step=slice(None, None, -1))
        times_of(back).columns(back, window=True, calendar=False)


@pytest.mark.parametrize("name", ["valid_time", "time"])
def test_leads_of_one_valid_time_are_no_series(name):
    """Valid time by lead, as verification has it: the calendar is known, a window would mix forecasts."""
    da = field(("time", "lead"), (3, 4), time=("time", INITS, TIME), lead=STEPS)
    da = da.rename(time=name) if name != "time" else da
    axes = times_of(da)
    np.testing.assert_array_equal(axes.valid.values, INITS)
    assert axes.columns(da, window=False, calendar=True).shape == (3, 4, 5)
    with pytest.raises(DataError, match="not along the lead 'lead'.*forecast_reference_time"):
        axes.columns(da, window=True, calendar=False)


# flattened


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("form", ["cfgrib", "leads last", "climpred", "S and L"])
def test_a_flattened_forecast_is_series_after_series(form, lazy):
    da = FORMS[form]().expand_dims(number=[3, 5]).assign_coords(height=2.0)
    da = da.chunk() if lazy else da
    flat = flattened(da, find_axes(da).time)
    assert set(flat.dims) == {"valid_time", "number", "lat", "lon"} and flat.dims[0] == "valid_time"
    assert (flat.chunks is not None) == lazy and flat.name == da.name and flat.attrs == da.attrs
    np.testing.assert_array_equal(flat.valid_time.values, VALID.ravel())
    assert find_axes(flat).time == "valid_time" and {"number", "height"} <= set(flat.coords)
    axes = times_of(flat)
    assert (axes.along, axes.forecast, axes.step) == ("valid_time", False, 6.0)
    told = axes.columns(flat, window=True, calendar=True)
    assert told.values[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    lead, init = times_of(da).along, times_of(da).outer[0]
    for at, (i, k) in enumerate(np.ndindex(3, 4)):
        expected = da.isel({init: i, lead: k}).transpose("number", "lat", "lon").values
        np.testing.assert_array_equal(flat.isel(valid_time=at).transpose("number", "lat", "lon").values, expected)


def test_a_flattened_forecast_of_one_initial_time_or_no_dates():
    one = cfgrib().isel(time=1)
    np.testing.assert_array_equal(flattened(one, "step").valid_time.values, VALID[1])
    undated = field(("init", "lead"), (3, 4))
    flat = flattened(undated, None)
    assert "valid_time" not in flat.coords and times_of(flat).step is None
    assert (
        times_of(flat).columns(flat, window=True, calendar=False).values[:, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )


def test_what_is_no_forecast_stays():
    da = field(("time",), (3,), time=INITS)
    assert flattened(da, "time") is da


def test_a_gap_in_a_flattened_forecast():
    """Steps that have no truth are dropped; windows do not cross them."""
    flat = flattened(cfgrib(), "time").isel(valid_time=[0, 1, 3, 4, 5, 6, 7])
    with pytest.warns(XSuperResWarning, match=r"1 gap\(s\)"):
        told = times_of(flat).columns(flat, window=True, calendar=False)
    assert told.values[:, 0].tolist() == [0, 0, 1, 2, 2, 2, 2]


# what belongs together


def test_labels_of_two_forecasts_are_initial_time_and_lead():
    flat = flattened(cfgrib(), "time")
    ours, theirs = sample_labels(flat, "valid_time", flat.isel(valid_time=[7, 2]), "valid_time")
    assert positions(theirs, ours, "x", what="it").tolist() == [-1, -1, 1, -1, -1, -1, -1, 0, -1, -1, -1, -1]


def test_labels_of_a_forecast_and_a_series_are_valid_times():
    flat = flattened(cfgrib(), "time")
    truth = field(("time",), (5,), time=VALID[0, 0] + np.arange(5) * STEPS[1])
    ours, theirs = sample_labels(flat, "valid_time", truth, "time")
    assert positions(theirs, ours, "x", what="it").tolist() == [0, 1, 2, 3] + [-1] * 8
    with pytest.raises(DataError, match="valid times, which are unknown here: assign a coordinate valid_time"):
        sample_labels(flattened(field(("init", "lead"), (3, 4)), None), "valid_time", truth, "time")
    plain = truth.drop_vars("time")
    assert sample_labels(plain, "time", plain, "time") is None


def test_labels_that_repeat():
    with pytest.raises(DataError, match="It repeats values of 'time', the first 1"):
        positions(pd.Index([1, 1, 2]), pd.Index([2]), "time", what="It")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_series_at_valid_times(lazy):
    truth = field(("time",), (40,), time=VALID[0, 0] + np.arange(40) * STEPS[1])
    truth = truth.chunk(time=7) if lazy else truth
    got = at_valid_times(truth, "time", cfgrib(), "time")
    assert (got.chunks is not None) == lazy
    got = got.transpose("time", "step", "lat", "lon")
    for at in np.ndindex(3, 4):
        np.testing.assert_array_equal(got.values[at], truth.sel(time=VALID[at]).values)
    with pytest.raises(DataError, match="'t2m' lacks 8 of 12 valid times of the forecast, the first 2001-01-03T00"):
        at_valid_times(truth.isel(time=slice(0, 8)), "time", cfgrib(), "time")
    with pytest.raises(DataError, match="valid times of the forecast are unknown"):
        at_valid_times(truth, "time", field(("init", "lead"), (3, 4)), None)
