"""Forecasts as one dimension of samples, and which steps of two arrays belong together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields import steps
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import TimeAxes
from xsuperres.fields.grid import AxisNames, find_axes
from xsuperres.fields.steps import monthly, positions


def timed(da, time):
    """Return an array whose time dim is known."""
    return Field(da, axes=AxisNames("y", "x", time))


def flattened(da, time):
    return steps.flattened(timed(da, time)).array


def sample_labels(da, dim, other, its):
    return steps.sample_labels(timed(da, dim), timed(other, its))


def at_valid_times(da, dim, like, time):
    return steps.at_valid_times(timed(da, dim), timed(like, time)).array


def check_times(da, time, like, its, *, what):
    steps.check_times(timed(da, time), timed(like, its), what=what)


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


HOURS = ("lead", [0, 6, 12, 18], {"units": "hours"})
FORMS = {
    "cfgrib": lambda: cfgrib(),
    "leads last": lambda: cfgrib().transpose("lat", "lon", "time", "step"),
    "climpred": lambda: field(("init", "lead"), (3, 4), init=INITS, lead=HOURS),
    "S and L": lambda: field(
        ("S", "L"), (3, 4), S=("S", INITS, REFERENCE), L=("L", [0, 6, 12, 18], {"units": "hours"} | PERIOD)
    ),
}


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


# forecasts of one lead


@pytest.mark.parametrize("valid", [True, False])
def test_a_series_at_one_lead_is_labelled_by_its_valid_times(valid):
    one = cfgrib(valid=valid).isel(step=2)
    flat = flattened(one, "time")
    assert flat.dims == one.dims
    np.testing.assert_array_equal(flat.time.values, VALID[:, 2])
    np.testing.assert_array_equal(times_of(flat).valid.values, VALID[:, 2])
    again = flattened(flat, "time")
    assert again is flat


def test_steps_without_a_valid_time_are_left_out(caplog):
    """As of ragged forecasts, in any calendar."""
    dates = xr.date_range("2001-01-01", periods=12, freq="D", calendar="noleap", use_cftime=True).values.copy()
    dates[[2, 5]] = np.nan
    da = field(("init", "lead"), (3, 4), lead=[1, 2, 3, 4], valid_time=(("init", "lead"), dates.reshape(3, 4), TIME))
    with caplog.at_level("INFO", logger="xsuperres"):
        flat = flattened(da, None)
    assert "2 of 12 steps have no valid time" in caplog.text
    np.testing.assert_array_equal(flat.valid_time.values, np.delete(dates, [2, 5]))
    np.testing.assert_array_equal(flat.values, np.delete(da.values.reshape(12, 3, 4), [2, 5], axis=0))


def test_times_that_may_be_initial_ones_are_no_labels():
    da = cfgrib(valid=False).assign_coords(time=("time", INITS, TIME))
    with pytest.raises(DataError, match="'time' calls itself time"):
        flattened(da, "time")
    with pytest.raises(DataError, match="'time' calls itself time"):
        at_valid_times(field(("time",), (3,), time=INITS), "time", da, "time")


# two forecasts


def joined(one: xr.DataArray, other: xr.DataArray) -> list[int]:
    """Return which steps of `other`, numbered as it is flattened, belong to those of `one`."""
    flat = [flattened(da, find_axes(da).time) for da in (one, other)]
    ours, theirs = sample_labels(flat[0], "valid_time", flat[1], "valid_time")
    return positions(theirs, ours, "valid_time", what="it").tolist()


def table(order: slice = slice(None), **dropped) -> xr.DataArray:
    """Return forecasts by year and month of their beginning, as hindcasts have them."""
    starts = np.array([["1993-02-01", "1993-05-01"], ["1994-02-01", "1994-05-01"]], "M8[ns]")
    da = field(
        ("year", "month", "lead"),
        (2, 2, 4),
        year=[1993, 1994],
        month=[2, 5],
        init=(("year", "month"), starts, REFERENCE),
        lead=HOURS,
    )
    return da.isel(year=order)


BACK = slice(None, None, -1)
TURNED = [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("dims", [("year", "month"), ("month", "year")])
@pytest.mark.parametrize("labels", ["all", "dates alone"])
def test_forecasts_with_several_dims_of_initial_times(labels, dims):
    """By date, whatever the order and the labels of both dims: never by position."""
    lacking = {"all": [], "dates alone": ["year", "month"]}[labels]
    one, other = table().drop_vars(lacking), table(BACK).drop_vars(lacking).transpose(*dims, "lead", ...)
    if dims == ("year", "month"):
        assert joined(one, other) == TURNED
    where = flattened(other, find_axes(other).time).isel(valid_time=joined(one, other))
    np.testing.assert_array_equal(where.values, flattened(one, find_axes(one).time).values)


def test_dates_go_before_labels():
    """A run is numbered by each centre in its own way; when it began is the same."""
    one = table().assign_coords(year=[0, 1])
    assert joined(one, table(BACK).assign_coords(year=[0, 1])) == TURNED


@pytest.mark.parametrize("valid", [True, False])
def test_forecasts_of_one_initial_time_each(valid):
    """The initial time is a scalar in one, and a dim of one or more in the other."""
    one = cfgrib(valid=valid).isel(time=1)
    assert joined(one, cfgrib().isel(time=[1])) == [0, 1, 2, 3]
    assert joined(one, cfgrib(valid=valid)) == [4, 5, 6, 7]
    assert joined(one, one.isel(step=BACK)) == [3, 2, 1, 0]
    later = one.assign_coords(time=one.time + np.timedelta64(900, "D")).drop_vars("valid_time", errors="ignore")
    later.time.attrs.update(REFERENCE)
    assert joined(one, later) == [-1] * 4


def test_forecasts_that_know_other_things():
    """Two of initial time, valid time and lead are enough; of what only one knows nothing is made."""
    whole, bare = cfgrib(), cfgrib(valid=False)
    no_init = whole.drop_vars("time")
    assert (
        joined(whole, bare.isel(time=BACK))
        == joined(whole, no_init.isel(time=BACK))
        == [8, 9, 10, 11, *range(4, 8), *range(4)]
    )
    assert joined(no_init, whole) == list(range(12))
    numbered = whole.assign_coords(step=[1, 2, 3, 4])
    assert joined(whole, numbered.isel(step=[2, 1])) == [-1, 1, 0, -1, -1, 3, 2, -1, -1, 5, 4, -1]
    with pytest.raises(DataError, match="coordinates of the leads in one of them only.*time steps, or with a units"):
        joined(bare, bare.drop_vars("step").rename(step="lead"))
    with pytest.raises(DataError, match="leads in units of 'hours' and ''"):
        joined(bare, bare.assign_coords(step=[1, 2, 3, 4]))


def test_late_leads_without_a_unit_are_not_taken_for_early_ones():
    """Hours since the first lead are no leads: there is another first one."""
    given = cfgrib().assign_coords(step=[1, 2, 3, 4])
    assert joined(given.isel(step=[2, 3]), given) == [2, 3, 6, 7, 10, 11]


def test_forecasts_without_dates():
    years = field(("init", "lead"), (3, 4), init=[1961, 1962, 1963], lead=("lead", [1, 2, 3, 4], {"units": "years"}))
    assert joined(years, years.isel(init=[2, 0]).rename(init="start_date")) == [4, 5, 6, 7, -1, -1, -1, -1, 0, 1, 2, 3]
    bare = years.drop_vars(["init", "lead"])
    assert joined(bare, bare) == list(range(12)), "without any labels by position"
    with pytest.raises(DataError, match=r"initialisations \('init'\) in one of them only"):
        joined(years, years.drop_vars("init"))
    with pytest.raises(DataError, match=r"3 initialisations \('init'\) in one and 2 in the other, and no coordinates"):
        joined(bare, bare.isel(init=[0, 1]))
    with pytest.raises(DataError, match=r"along \['init'\] and \[\], which cannot be joined; give both initial times"):
        joined(years, years.isel(init=0, drop=True))


def test_members_that_start_at_one_time():
    """A lagged ensemble: where dates repeat, its members are told by their labels too."""
    starts = INITS[[0, 0, 1]]
    da = field(("member", "step"), (3, 4), member=[4, 5, 6], reftime=("member", starts), step=("step", STEPS, PERIOD))
    assert joined(da, da.isel(member=[1, 2, 0])) == [8, 9, 10, 11, *range(8)]


# what is known of times at the same positions


def test_fields_of_other_times_are_refused():
    one = cfgrib().isel(time=1)
    check_times(one, "step", cfgrib().isel(time=1), "step", what="it")
    with pytest.raises(DataError, match="it has other initial times: expected 2001-01-03T.*, got 2001-01-08"):
        check_times(cfgrib().isel(time=2), None, one, None, what="it")
    moved = cfgrib().assign_coords(valid_time=(("time", "step"), VALID + STEPS[1], TIME))
    with pytest.raises(DataError, match="other valid times: expected 2001-01-01T00.*, got 2001-01-01T06"):
        check_times(moved, "time", cfgrib(), "time", what="it")
    single = one.isel(step=0)
    with pytest.raises(DataError, match="other valid times"):
        check_times(one.isel(step=1), None, single, None, what="it")
    check_times(single, None, one, None, what="it")  # one field that is meant for all leads
    check_times(cfgrib().isel(step=0), "time", cfgrib(), "time", what="it")  # one of each initial time


# months


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
def test_monthly_data_on_other_days_are_told_so(calendar):
    def of(day: int, count: int = 4) -> pd.Index:
        times = xr.date_range(f"2001-01-{day:02}", periods=count, freq="31D", calendar=calendar, use_cftime=True)
        return pd.Index(np.array([time.replace(day=day) for time in times]))

    assert "stamp both alike" in monthly(of(1), of(15))
    assert not monthly(of(1), of(15).map(lambda time: time.replace(year=2005)))
    assert not monthly(of(1).append(of(2)), of(15)), "several days of a month"
    assert not monthly(pd.Index([1, 2]), of(1))
