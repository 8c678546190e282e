"""Times of forecasts: leads, initial and valid times of every shape that files have."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields.forecasts import TimeAxes
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


def test_times_beside_one_lead_are_what_they_are_beside_many():
    """Without attributes, as of WeatherBench: initial times, before and after a lead is selected."""
    da = FORMS["WeatherBench"]()
    one = da.isel(prediction_timedelta=2)
    np.testing.assert_array_equal(times_of(one).valid.values, times_of(da).valid.transpose().values[2])
    np.testing.assert_array_equal(times_of(one).init.values, INITS)
    single = one.isel(time=1)
    assert times_of(single).valid.dims == () and times_of(single).valid.values == VALID[1, 2]


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


def by_valid_time(name: str) -> xr.DataArray:
    """Return forecasts of one valid time each by their lead, as verification has them."""
    da = field(("time", "lead"), (3, 4), time=("time", INITS, TIME), lead=("lead", STEPS, PERIOD))
    return da.rename(time=name) if name != "time" else da


@pytest.mark.parametrize("told", ["by name", "by initial times"])
def test_leads_of_one_valid_time_are_no_series(told):
    """The calendar is known; a window would mix forecasts."""
    da = by_valid_time("valid_time" if told == "by name" else "time")
    if told == "by initial times":
        da = da.assign_coords(reftime=(("time", "lead"), INITS[:, None] - STEPS))
    axes = times_of(da)
    np.testing.assert_array_equal(axes.valid.values, INITS)
    assert axes.columns(da, window=False, calendar=True).shape == (3, 4, 5)
    with pytest.raises(DataError, match=r"not along the lead 'lead'.*Take one lead, .isel\(lead=0\)"):
        axes.columns(da, window=True, calendar=False)


@pytest.mark.parametrize(("window", "calendar"), [(True, False), (False, True)])
def test_times_that_may_be_initial_or_valid_ones_are_asked_about(window, calendar):
    """CDO writes standard_name 'time' for both."""
    da = by_valid_time("time")
    axes = times_of(da)
    with pytest.raises(DataError, match="'time' calls itself time.*initial times, or the valid times of every lead"):
        axes.columns(da, window=window, calendar=calendar)
    assert not axes.columns(da, window=False, calendar=False).values.any(), "whoever needs no times is not asked"
    start = da.rename(time="init")
    start.init.attrs = dict(REFERENCE)
    np.testing.assert_array_equal(times_of(start).valid.values, VALID)
    assert times_of(da.isel(lead=2)).unclear is None, "CF: beside one lead time is valid time"
