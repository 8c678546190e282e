"""Time axes: stretches without gaps, usual steps, frames of windows, what the calendar says."""

from __future__ import annotations

import warnings

import cftime
import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields.times import (
    alike,
    calendar_features,
    hours_since_first,
    is_dated,
    offsets,
    segments,
    usual_step,
    window_frames,
)

DAY = np.timedelta64(24, "h")
CALENDARS = ["standard", "noleap", "360_day", "julian", "all_leap"]


def days(*numbers: float) -> xr.Variable:
    """Return dates so many days after the first of 2001."""
    hours = (24 * np.array(numbers)).astype("m8[h]")
    return xr.Variable("time", np.datetime64("2001-01-01", "ns") + hours)


# windows


@pytest.mark.parametrize(("window", "alignment", "expected"), [(4, "last", (3, 0)), (5, "centre", (2, 2))])
def test_offsets(window, alignment, expected):
    assert offsets(window, alignment) == expected


def test_frames_of_windows_against_a_loop():
    segment = np.array([4, 4, 4, 5, 6, 6])
    for before, after in ((0, 0), (2, 0), (1, 1), (0, 3)):
        got = window_frames(segment, before, after)
        for step in range(len(segment)):
            own = np.flatnonzero(segment == segment[step])
            wanted = [min(max(step + k, own[0]), own[-1]) for k in range(-before, after + 1)]
            assert got[step].tolist() == wanted


# stretches


@pytest.mark.parametrize("calendar", CALENDARS)
def test_stretches_of_any_calendar(calendar):
    times = xr.date_range("2001-02-27", periods=9, freq="D", calendar=calendar, use_cftime=True)
    assert segments(xr.Variable("time", times[:4])).tolist() == [0, 0, 0, 0]
    with pytest.warns(XSuperResWarning, match=r"'time' are irregular: 1 gap\(s\)"):
        found = segments(xr.Variable("time", times[[0, 1, 2, 5, 6]]))
    assert found.tolist() == [0, 0, 0, 1, 1] and found.dtype == np.int64


@pytest.mark.parametrize("count", [0, 1])
def test_stretches_of_hardly_any_time(count):
    assert segments(days(*range(count))).tolist() == [0] * count
    assert usual_step(days(*range(count))) is None


def test_every_row_is_a_series_of_its_own():
    """One warning for all of them."""
    starts = np.datetime64("2001-01-01", "ns") + np.array([0, 5])[:, None] * DAY
    rows = starts + np.array([[0, 1, 2, 3], [0, 1, 4, 5]]) * DAY
    with pytest.warns(XSuperResWarning) as caught:
        found = segments(xr.Variable(("init", "lead"), rows))
    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert len(caught) == 1 and "1 gap(s)" in str(caught[0].message) and "'lead'" in str(caught[0].message)


def test_series_that_follow_each_other():
    """The step from one to the next is neither a gap nor a step back."""
    line = xr.Variable("sample", np.array([0.0, 6, 12, 0, 6, 18, 24]), {"units": "hours"})
    with pytest.warns(XSuperResWarning, match=r"1 gap\(s\)"):
        assert segments(line, np.array([0, 0, 0, 1, 1, 1, 1])).tolist() == [0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="must increase"):
        segments(line)
    assert usual_step(line, np.array([0, 0, 0, 1, 1, 1, 1])) == 6.0


@pytest.mark.parametrize(
    "times",
    [days(2, 1, 0), days(0, 1, 1), days(0, 2, 1), xr.Variable("time", np.array(["2001-01-01", "NaT"], "M8[ns]"))],
    ids=["falling", "repeated", "unsorted", "missing"],
)
def test_times_that_do_not_increase(times):
    with pytest.raises(DataError, match=r"'time' must increase for a time window; sort them \(sortby\)"):
        segments(times)


def test_times_that_are_text():
    """`decode_cf` would leave them as they are."""
    with pytest.raises(DataError, match=r"got '2001-01-01'; assign dates \(.astype\('M8\[ns\]'\)"):
        segments(xr.Variable("time", np.array(["2001-01-01", "2001-01-02"])))
    with pytest.raises(DataError, match=r"got 'day1'; .* or numbers with a units attribute"):
        segments(xr.Variable("lead", np.array(["day1", "day2"])))


def at(*hours: float) -> xr.Variable:
    """Return leads in hours."""
    return xr.Variable("lead", np.array(hours, np.float64), {"units": "hours"})


@pytest.mark.parametrize("usual", [None, 3.0, 6.0])
@pytest.mark.parametrize(
    "hours",
    [
        [*range(0, 24, 3), *range(24, 49, 6)],
        [*range(0, 12, 3), *range(12, 97, 6)],
        [*range(0, 90), *range(90, 144, 3), *range(144, 241, 6)],
        [0, 3, 6, 12, 24, 36],
        [*range(0, 48, 12), *range(48, 73, 6)],
    ],
    ids=["GEFS", "mostly late", "IFS", "one between", "shorter"],
)
def test_an_interval_that_changes_for_good_is_no_gap(hours, usual):
    """Whatever the proportion of the two: the late leads alone are a series too."""
    with pytest.warns(XSuperResWarning, match="steps of .* hours, which the network cannot tell apart") as caught:
        assert not segments(at(*hours), None, usual).any()
    assert len(caught) == 1 and "gap" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("hours", "usual", "expected"),
    [
        ([0, 6, 12, 24, 30, 36], 6, [0, 0, 0, 1, 1, 1]),
        ([0, 6, 12, 24, 30, 36], 24, [0, 0, 0, 0, 0, 0]),
        ([0, 24, 48, 96, 120], 6, [0, 0, 0, 1, 1]),  # a hole in daily steps
        ([0, 12, 18, 30, 42, 48, 60, 72, 78], 6, [0, 1, 1, 2, 3, 3, 4, 5, 5]),  # most steps are holes
        ([0, 12, 18, 30, 42, 48, 60, 72, 78], None, [0] * 9),
        ([0, 6, 12, 24], 6, [0, 0, 0, 1]),  # at the end: a hole, or a change that one step does not show
        ([0, 24], 6, [0, 0]),
    ],
)
def test_gaps_are_told_by_the_step_of_the_training(hours, usual, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)
        assert segments(at(*hours), None, usual).tolist() == expected
        plain = xr.Variable("lead", np.array(hours))
        assert segments(plain, None, usual).tolist() == segments(plain).tolist(), "of no unit: by their own"


def test_steps_that_are_seen_alone_are_counted():
    with pytest.warns(
        XSuperResWarning, match=r"3 gap\(s\).*; 2 step\(s\) beside them are seen without any other frame"
    ):
        assert segments(at(0, 6, 12, 24, 36, 42, 60), None, 6.0).tolist() == [0, 0, 0, 1, 2, 2, 3]
    with pytest.warns(XSuperResWarning, match=r"1 gap\(s\) wider than 1.5 usual steps, which no time window crosses\."):
        segments(at(0, 6, 12, 24, 30, 36))
    line = xr.Variable("sample", np.array([0.0, 0, 6, 24, 0]), {"units": "hours"})
    with pytest.warns(XSuperResWarning, match="1 step"):  # a series of one frame is no gap's doing
        segments(line, np.array([0, 1, 1, 1, 2]), 6.0)


def test_irregular_steps():
    with pytest.warns(XSuperResWarning, match="steps of 24 to 30 hours, which the network cannot tell apart"):
        segments(days(0, 1, 2.25))
    with pytest.warns(XSuperResWarning, match="steps of 1 to 1.25, which"):  # of no unit that is known
        segments(xr.Variable("time", np.array([0, 1, 2.25])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for freq in ("MS", "YS"):
            segments(xr.Variable("time", xr.date_range("1999-01-01", periods=7, freq=freq).values))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (days(0, 0.25, 0.5, 1), 6.0),
        (
            xr.Variable("time", xr.date_range("2001-01-01", periods=4, freq="D", calendar="noleap", use_cftime=True)),
            24.0,
        ),
        (xr.Variable("step", np.arange(3) * np.timedelta64(90, "m")), 1.5),
        (xr.Variable("step", np.arange(3) * 3.0, {"units": "hours"}), 3.0),
        (xr.Variable("time", np.arange(3)), None),
        (days(2, 1, 0), None),
    ],
)
def test_usual_steps(line, expected):
    assert usual_step(line) == expected


@pytest.mark.parametrize(
    ("step", "other", "expected"),
    [
        (24, 24, True),
        (24, 26, True),
        (24, 27, False),
        (6, 24, False),
        (672, 744, True),
        (8760, 8784, True),
        (730, 8766, False),
    ],
)
def test_steps_that_are_alike(step, other, expected):
    assert alike(step, other) == alike(other, step) == expected


def test_hours_since_the_first():
    assert hours_since_first(days(3, 4, 3.5).values).tolist() == [0.0, 24.0, 12.0]
    assert hours_since_first(np.array([5, 7])).tolist() == [5.0, 7.0]


# the calendar


@pytest.mark.parametrize("calendar", CALENDARS[:4])
def test_the_calendar_is_told_by_its_own_year(calendar):
    """The last day of any year is next to the first one; noon is opposite midnight."""
    last = {"360_day": "2001-12-30"}.get(calendar, "2001-12-31")
    times = [xr.date_range(day, periods=1, calendar=calendar, use_cftime=True)[0] for day in ("2001-01-01", last)]
    noon = times[0].replace(hour=12)
    told = calendar_features(xr.Variable("time", np.array([times[0], noon, times[1]])))
    assert told.shape == (3, 4)
    np.testing.assert_allclose(told[0], [0, 1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(told[1, 2:], [0, -1], atol=1e-12)
    assert np.abs(told[2, :2] - told[0, :2]).max() < 0.02
    np.testing.assert_allclose((told.reshape(3, 2, 2) ** 2).sum(axis=-1), 1)


@pytest.mark.parametrize("calendar", ["standard", "all_leap", None])
def test_the_calendar_of_many_dims(calendar):
    """Each of (init, lead) as it is alone; leap years too."""
    times = xr.date_range(
        "2000-02-27", periods=6, freq="7h", calendar=calendar or "standard", use_cftime=bool(calendar)
    )
    table = xr.Variable(("init", "lead"), np.asarray(times).reshape(2, 3))
    told = calendar_features(table)
    assert told.shape == (2, 3, 4)
    for at, features in enumerate(told.reshape(6, 4)):
        alone = calendar_features(xr.Variable("one", table.values.ravel()[[at]]))
        np.testing.assert_array_equal(features, alone[0])
    assert calendar_features(table[0, 1]).shape == (4,)
    np.testing.assert_array_equal(calendar_features(table[0, 1]), told[0, 1])
    phase = 2 * np.pi * (31 + 26 + 7 / 24) / 366
    np.testing.assert_allclose(told[0, 1, :2], [np.sin(phase), np.cos(phase)], rtol=1e-12)


@pytest.mark.parametrize("values", [np.arange(3), np.array(["a", "b", "c"], object), np.array([], object)])
def test_what_is_no_date(values):
    assert not is_dated(xr.Variable("time", values))
    with pytest.raises(DataError, match="calendar=True needs dates"):
        calendar_features(xr.Variable("time", values))


@pytest.mark.parametrize("calendar", [None, "noleap"])
@pytest.mark.parametrize("missing", [0, 2])
def test_dates_some_of_which_are_missing(calendar, missing):
    """As of ragged forecasts; cftime dates are treated as numpy's are."""
    times = xr.date_range("2001-01-01", periods=4, freq="D", calendar=calendar or "standard", use_cftime=bool(calendar))
    holed = times.values.astype(object if calendar else "M8[ns]")
    holed[missing] = np.nan if calendar else np.datetime64("NaT")
    line = xr.Variable("time", holed)
    assert is_dated(line)
    with pytest.raises(DataError, match="1 of the valid times are missing"):
        calendar_features(line)
    with pytest.raises(DataError, match="'time' must increase.*missing times"):
        segments(line)
    rows = xr.Variable(("init", "lead"), np.stack([times.values, holed]))
    assert usual_step(rows) == 24.0
    if calendar:
        assert np.isnan(hours_since_first(np.full(3, np.nan, object))).all()


def test_dates_that_are_missing_or_not_there():
    assert is_dated(days(0)) and is_dated(xr.Variable("time", [cftime.DatetimeNoLeap(2001, 1, 1)]))
    with pytest.raises(DataError, match="calendar=True needs dates"):
        calendar_features(None)
    with pytest.raises(DataError, match="1 of the valid times are missing"):
        calendar_features(xr.Variable("time", np.array(["2001-01-01", "NaT"], "M8[ns]")))
