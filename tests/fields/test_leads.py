"""Lead times: in hours, and added to dates of any calendar."""

from __future__ import annotations

import warnings

import cftime
import numpy as np
import pytest
import xarray as xr

from xsuperres.fields.leads import after, elapsed, in_hours


def leads(*values: float, units: str | None = None) -> xr.Variable:
    return xr.Variable("lead", np.array(values), {} if units is None else {"units": units})


def inits(*days: str, calendar: str | None = None) -> xr.Variable:
    """Return initial times, of numpy or, with a calendar, of cftime."""
    if calendar is None:
        return xr.Variable("init", np.array(days, "M8[ns]"))
    times = [
        cftime.datetime(*map(int, day[:10].split("-")), hour=int(day[11:13] or 0), calendar=calendar) for day in days
    ]
    return xr.Variable("init", np.array(times))


def told(times: xr.Variable) -> list[str]:
    return [str(time)[:16].replace("T", " ") for time in times.values.ravel()]


@pytest.mark.parametrize(
    ("units", "hours"),
    [
        ("s", 1 / 3600),
        ("minutes", 1 / 60),
        ("h", 1),
        ("hours", 1),
        ("Hours since init", 1),
        ("days", 24),
        ("pentads", 120),
        ("weeks", 168),
        ("months", 730.5),
        ("seasons", 2191.5),
        ("years", 8766),
    ],
)
def test_units_in_hours(units, hours):
    found = in_hours(leads(0, 2, units=units))
    assert found.dims == ("lead",) and found.attrs == {"units": "hours"}
    np.testing.assert_allclose(found.values, [0, 2 * hours])


def test_time_steps_need_no_units():
    assert in_hours(xr.Variable("step", np.array([0, 90], "m8[m]").astype("m8[ns]"))).values.tolist() == [0, 1.5]


@pytest.mark.parametrize("units", [None, "", "furlongs", "m"])
def test_units_that_are_unknown(units):
    assert in_hours(leads(1, 2, units=units)) is None
    assert after(inits("2001-01-01"), leads(1, 2, units=units)) is None


@pytest.mark.parametrize("calendar", [None, "standard", "noleap", "360_day"])
@pytest.mark.parametrize("given", ["hours", "days", "m8"])
def test_hours_after(calendar, given):
    lead = {
        "hours": leads(6, 24, units="hours"),
        "days": leads(0.25, 1, units="days"),
        "m8": xr.Variable("lead", np.array([6, 24], "m8[h]")),
    }[given]
    start = inits("2001-02-01 00", "2001-02-02 12", calendar=calendar)
    found = after(start, lead)
    assert found.dims == ("init", "lead") and found.dtype == start.dtype
    assert told(found) == ["2001-02-01 06:00", "2001-02-02 00:00", "2001-02-02 18:00", "2001-02-03 12:00"]


@pytest.mark.parametrize("calendar", [None, "standard", "noleap", "all_leap", "360_day"])
def test_months_after(calendar):
    """By the calendar: the day and the hour stay, but for a month that has no such day."""
    last = {"360_day": "30"}.get(calendar, "31")
    start = inits("2000-01-15 06", f"1999-12-{last} 00", "1999-11-01 00", calendar=calendar)
    found = told(after(start, leads(0, 1, 2, 14, -1, units="months")))
    assert found[:5] == [
        "2000-01-15 06:00",
        "2000-02-15 06:00",
        "2000-03-15 06:00",
        "2001-03-15 06:00",
        "1999-12-15 06:00",
    ]
    february = {"noleap": "28", "360_day": "30"}.get(calendar, "29")
    assert found[5:9] == [
        f"1999-12-{last} 00:00",
        f"2000-01-{last} 00:00",
        f"2000-02-{february} 00:00",
        f"2001-02-{ {'all_leap': '29', '360_day': '30'}.get(calendar, '28') } 00:00",
    ]
    assert found[10:12] == ["1999-11-01 00:00", "1999-12-01 00:00"]


@pytest.mark.parametrize("calendar", [None, "noleap"])
def test_years_and_seasons_after(calendar):
    start = inits("1961-01-01 00", calendar=calendar)
    assert told(after(start, leads(1, 10, units="years"))) == ["1962-01-01 00:00", "1971-01-01 00:00"]
    assert told(after(start, leads(1, 4, units="seasons"))) == ["1961-04-01 00:00", "1962-01-01 00:00"]


@pytest.mark.parametrize(("calendar", "expected"), [(None, "2001-02-15 00:00"), ("360_day", "2001-02-16 00:00")])
def test_half_a_month_is_half_of_its_length(calendar, expected):
    """As in NMME, whose leads are 0.5, 1.5, ... months."""
    assert told(after(inits("2001-01-01 00", calendar=calendar), leads(1.5, units="months"))) == [expected]


def test_one_initial_time_and_one_lead():
    """Scalars, and a lead that varies with the initial time, as of a lagged ensemble."""
    start = xr.Variable((), np.datetime64("2001-01-01", "ns"))
    assert after(start, leads(1, 2, units="days")).dims == ("lead",)
    assert told(after(start, xr.Variable((), 3, {"units": "hours"}))) == ["2001-01-01 03:00"]
    lagged = inits("2001-01-01 00", "2001-01-01 06")
    assert told(after(lagged, xr.Variable("init", [12, 6], {"units": "hours"}))) == ["2001-01-01 12:00"] * 2


@pytest.mark.parametrize("calendar", [None, "noleap"])
@pytest.mark.parametrize(
    ("units", "expected"), [("days", "2001-01-02"), ("months", "2001-02-01"), ("weeks", "2001-01-08")]
)
def test_what_is_missing_stays_missing(calendar, units, expected):
    """Of initial times, and of leads: there is a date where both are known."""
    start = inits("2001-01-01 00", "2001-03-01 00", calendar=calendar)
    start.values[1] = np.nan if calendar else np.datetime64("NaT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = after(start, leads(1, np.nan, units=units))
    assert found.isnull().values.tolist() == [[False, True], [True, True]]
    assert told(found)[0] == f"{expected} 00:00" and found.dtype == start.dtype


@pytest.mark.parametrize(
    ("name", "units", "values", "expected"),
    [
        ("forecastMonth", "1", [1, 3], ["2001-01-01", "2001-03-01"]),
        ("leadtime_month", None, [1, 3], ["2001-01-01", "2001-03-01"]),
        ("lead_month", None, [0, 2], ["2001-01-01", "2001-03-01"]),
        ("leadtime_hour", None, [24, 48], ["2001-01-02", "2001-01-03"]),
    ],
)
def test_names_that_say_what_a_lead_counts(name, units, values, expected):
    """The first month of the Climate Data Store is that of the initial time."""
    found = after(inits("2001-01-01"), elapsed(name, leads(*values, units=units)))
    assert [time[:10] for time in told(found)] == expected


@pytest.mark.parametrize(
    ("name", "units", "first"), [("lead", None, 1), ("forecastMonth", None, 0), ("lead_month", "d", 1)]
)
def test_names_that_do_not_say_it(name, units, first):
    """A month 0 is not of the kind that counts from 1, and a unit is a unit."""
    lead = leads(first, 2, units=units)
    assert elapsed(name, lead) is lead


def test_initial_times_that_are_no_dates():
    assert after(xr.Variable("init", [1961, 1962]), leads(1, units="years")) is None
