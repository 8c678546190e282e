"""Lead times: in hours, and added to dates.

Variables in and out; any calendar. Months, seasons and years are counted by the calendar when dates are made, and by
their mean length when steps are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xsuperres.fields.times import is_dated

__all__ = ["INIT_NAMES", "LEAD_NAMES", "after", "elapsed", "in_hours"]

LEAD_NAMES = (
    *("step", "lead", "leads", "lead_time", "leadtime", "prediction_timedelta", "forecast_period", "forecast_lead"),
    *("leadtime_hour", "leadtime_month", "lead_month", "forecastmonth", "forecast_hour"),
)
INIT_NAMES = (
    *("init", "init_time", "initialization_time", "initial_time", "reftime", "reference_time", "base_time"),
    *("forecast_reference_time", "start_date", "startdate", "sdate"),
)

_COUNTS = {  # what a name says of leads: their unit, and the number of the first
    **dict.fromkeys(
        ("forecastmonth", "leadtime_month"), ("months", 1)
    ),  # of the Climate Data Store: 1 is its own month
    "lead_month": ("months", 0),
    **dict.fromkeys(("leadtime_hour", "forecast_hour"), ("hours", 0)),
}
_HOURS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0 / 3600.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 1.0 / 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 1.0),
    **dict.fromkeys(("d", "day", "days"), 24.0),
    **dict.fromkeys(("pentad", "pentads"), 120.0),
    **dict.fromkeys(("week", "weeks"), 168.0),
}
_MONTHS = {
    **dict.fromkeys(("mon", "month", "months"), 1),
    **dict.fromkeys(("season", "seasons"), 3),
    **dict.fromkeys(("yr", "yrs", "year", "years"), 12),
}
_MONTH = 365.25 * 24.0 / 12.0  # hours


def _unit(lead: xr.Variable) -> str:
    words = str(lead.attrs.get("units", "")).lower().split()
    return words[0] if words else ""


def elapsed(name: str, lead: xr.Variable) -> xr.Variable:
    """Return leads as time since the initial one: in the unit that their name says if they have none, counted from 0.

    Examples
    --------
    >>> found = elapsed("forecastMonth", xr.Variable("forecastMonth", [1, 2], {"units": "1"}))
    >>> found.values.tolist(), found.attrs
    ([0, 1], {'units': 'months'})
    """
    unit, first = _COUNTS.get(name.lower(), ("", 0))
    counts = bool(unit) and lead.dtype.kind in "iuf" and _unit(lead) in ("", "1", unit, unit[:-1])
    if not counts or bool((lead < first).any()):  # a lead before the first is no count of this kind
        return lead
    return xr.Variable(lead.dims, lead.values - first, lead.attrs | {"units": unit})


def in_hours(lead: xr.Variable) -> xr.Variable | None:
    """Return leads in hours, float64; None if their unit is unknown.

    Examples
    --------
    >>> in_hours(xr.Variable("lead", [1, 2], {"units": "days"})).values.tolist()
    [24.0, 48.0]
    >>> in_hours(xr.Variable("lead", [1, 2])) is None
    True
    """
    if lead.dtype.kind == "m":
        hours = lead.values / np.timedelta64(1, "s") / 3600.0
    elif _unit(lead) in _HOURS:
        hours = lead.values * _HOURS[_unit(lead)]
    elif _unit(lead) in _MONTHS:
        hours = lead.values * (_MONTHS[_unit(lead)] * _MONTH)
    else:
        return None
    return xr.Variable(lead.dims, np.asarray(hours, np.float64), {"units": "hours"})


def after(init: xr.Variable, lead: xr.Variable) -> xr.Variable | None:
    """Return the dates `lead` after `init`, over the dims of both; None if the unit of the lead is unknown.

    Months are those of the calendar; the last day of a month stays in the month that is reached, and half a month is
    half of its length.

    Examples
    --------
    >>> start = xr.Variable("init", np.array(["2000-01-31", "2001-01-31"], "M8[ns]"))
    >>> after(start, xr.Variable("lead", [1], {"units": "months"})).values.astype("M8[D]").ravel().astype(str).tolist()
    ['2000-02-29', '2001-02-28']
    """
    dims = {**init.sizes, **lead.sizes}
    starts, leads = (np.asarray(v.set_dims(dims).transpose(*dims).values) for v in (init, lead))
    if not is_dated(init):
        return None
    if lead.dtype.kind == "m" or _unit(lead) in _HOURS:
        steps = leads if lead.dtype.kind == "m" else _steps(leads * _HOURS[_unit(lead)])
        made = _added(starts, steps) if starts.dtype == object else starts + steps
    elif _unit(lead) in _MONTHS:
        made = _months_after(starts, leads * float(_MONTHS[_unit(lead)]))
    else:
        return None
    return xr.Variable(tuple(dims), made)


def _steps(hours: np.ndarray) -> np.ndarray:
    seconds = np.where(np.isfinite(hours), np.round(hours * 3600.0), np.iinfo(np.int64).min)  # of which numpy makes NaT
    return seconds.astype(np.int64).astype("m8[s]")


def _added(starts: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return cftime dates some time later, NaN where either is missing."""
    made = np.full(starts.shape, np.nan, object)
    known = ~(pd.isnull(starts) | np.isnat(steps))
    made[known] = starts[known] + steps[known].astype("m8[us]").astype(object)
    return made


def _months_after(starts: np.ndarray, months: np.ndarray) -> np.ndarray:
    """Return dates some months later, fractions as shares of the month that they fall in; missing ones of either."""
    known = ~pd.isnull(starts) & np.isfinite(months)
    made = np.full(starts.shape, np.nan if starts.dtype == object else np.datetime64("NaT"), starts.dtype)
    whole = np.floor(months[known]).astype(np.int64)
    share = months[known] - whole
    shift = _shifted_dates if starts.dtype == object else _shifted
    low = shift(starts[known], whole)
    made[known] = low + (shift(starts[known], whole + 1) - low) * share if share.any() else low
    return made


def _shifted(starts: np.ndarray, months: np.ndarray) -> np.ndarray:
    """Return datetime64 some whole months later."""
    month = starts.astype("M8[M]")
    reached = month + months.astype("m8[M]")
    length = (reached + np.timedelta64(1, "M")).astype("M8[D]") - reached.astype("M8[D]")
    day = np.minimum(starts.astype("M8[D]") - month.astype("M8[D]"), length - np.timedelta64(1, "D"))
    return (reached.astype("M8[D]") + day).astype(starts.dtype) + (starts - starts.astype("M8[D]"))


def _shifted_dates(starts: np.ndarray, months: np.ndarray) -> np.ndarray:
    """Return cftime dates some whole months later."""
    made = np.empty(starts.shape, object)
    for at, date in np.ndenumerate(starts):
        made[at] = _shifted_date(date, int(months[at]))
    return made


def _shifted_date(date: Any, months: int) -> Any:
    year, month = divmod(date.year * 12 + date.month - 1 + months, 12)
    first = date.replace(year=year, month=month + 1, day=1)
    return first.replace(day=min(date.day, first.daysinmonth))
