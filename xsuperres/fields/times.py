"""Time axes: stretches without gaps, the frames of a time window, what the calendar says.

Labelled arrays or plain values in, numbers out; any calendar.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xsuperres.errors import ConfigError, DataError, warn

__all__ = [
    "CALENDAR_FEATURES",
    "alike",
    "calendar_features",
    "hours_since_first",
    "is_dated",
    "offsets",
    "segments",
    "usual_step",
    "window_frames",
]

CALENDAR_FEATURES = 4  # sine and cosine of day of year and of time of day
_GAP = 1.5  # usual steps
_ALIKE = 0.1  # of the larger step: steps that a network takes for one
_MONTH_LIKE = (27.9, 31.1)  # days
_YEAR_LIKE = (359.9, 366.1)


def offsets(time_window: int, alignment: str) -> tuple[int, int]:
    """Return how many frames before and after the output step its window holds.

    Examples
    --------
    >>> offsets(3, "last"), offsets(3, "centre")
    ((2, 0), (1, 1))
    """
    if alignment == "last":
        return time_window - 1, 0
    if time_window % 2 == 0:
        raise ConfigError(
            f"time_alignment='centre' needs an odd time_window, whose middle is the output step, got {time_window}."
        )
    return time_window // 2, time_window // 2


def segments(line: xr.Variable, series: np.ndarray | None = None, usual: float | None = None) -> np.ndarray:
    """Return the number of the gapless stretch that each step belongs to, int64 of the shape of `line`.

    A step of more than 1.5 usual ones is a gap, which no window crosses, but for steps that stay as long from there on,
    or were as long up to there: leads whose interval changes are one stretch.

    Parameters
    ----------
    line : Variable (..., steps)
        Times or leads, every row a series of its own.
    series : ndarray (steps,), optional
        Where series follow each other in one row: what tells them apart.
    usual : float, optional
        The usual step in hours, of what a model was trained on; None: that of these times.

    Warns
    -----
    XSuperResWarning
        If there are gaps, or steps differ by more than months or years do.

    Raises
    ------
    DataError
        If a series does not increase.
    """
    steps, inner = _steps(line, series)
    breaks = ~inner
    if inner.any():
        if not (steps[inner] > 0).all():
            raise DataError(
                f"Times along {line.dims[-1]!r} must increase for a time window; sort them (sortby), drop repeats and "
                "missing times."
            )
        median = float(np.median(steps[inner]))
        long = inner & (steps > _GAP * (usual if usual is not None and _in_hours(line) else median))
        gaps = long & ~_lasting(steps, inner, median) if long.any() else long
        _warn_of_steps(steps, inner, gaps, line)
        breaks |= gaps
    first = np.zeros((*line.shape[:-1], 1), np.int64)
    return np.concatenate([first, np.cumsum(breaks, axis=-1)], axis=-1)[..., : line.shape[-1]]


def _lasting(steps: np.ndarray, inner: np.ndarray, median: float) -> np.ndarray:
    """Return which steps are no longer than those after them in their series, or than those before: no lone ones."""
    found = np.zeros(steps.shape, bool)
    for row, ours, out in zip(*(part.reshape(-1, steps.shape[-1]) for part in (steps, inner, found)), strict=True):
        for span in _runs(ours):
            one = row[span]
            out[span] = _stay(one) | _stay(one[::-1])[::-1] if len(one) > 1 else one <= _GAP * median
    return found


def _stay(steps: np.ndarray) -> np.ndarray:
    """Return which of two or more steps are no longer, to a half, than any later one; the last: than those before."""
    shortest = np.minimum.accumulate(steps[::-1])[::-1]
    stay = steps[:-1] <= _GAP * shortest[1:]
    return np.append(stay, stay[-1] and steps[-1] <= _GAP * steps[-2])


def _runs(chosen: np.ndarray) -> list[slice]:
    """Return the stretches of True."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    return [slice(start, stop) for start, stop in edges.reshape(-1, 2)]


def usual_step(line: xr.Variable, series: np.ndarray | None = None) -> float | None:
    """Return the usual step of times, or of leads in hours, in hours; None if it cannot be told."""
    steps, inner = _steps(line, series)
    inner = inner & np.isfinite(steps)
    if not _in_hours(line) or not inner.any():
        return None
    usual = float(np.median(steps[inner]))
    return usual if usual > 0 else None


def alike(step: float, other: float) -> bool:
    """Return whether two usual steps, in hours, are one to a tenth; months are alike, and so are years.

    Examples
    --------
    >>> alike(24.0, 25.0), alike(6.0, 24.0), alike(28 * 24.0, 31 * 24.0)
    (True, False, True)
    """
    spans = [(low <= step / 24.0 <= high, low <= other / 24.0 <= high) for low, high in (_MONTH_LIKE, _YEAR_LIKE)]
    return (True, True) in spans or abs(step - other) <= _ALIKE * max(step, other)


def _steps(line: xr.Variable, series: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps along the last axis (..., steps - 1), and which of them are within a series."""
    values = np.asarray(line.values)
    count = values.shape[-1] - 1
    if count < 1 or not values.size:
        shape = (*values.shape[:-1], max(count, 0))
        return np.zeros(shape), np.zeros(shape, bool)
    rows = [np.diff(hours_since_first(row)) for row in values.reshape(-1, count + 1)]
    steps = np.stack(rows).reshape(*values.shape[:-1], count)
    same = np.ones(count, bool) if series is None else series[1:] == series[:-1]
    return steps, np.broadcast_to(same, steps.shape)


def _in_hours(line: xr.Variable) -> bool:
    return line.dtype.kind in "mMO" or line.attrs.get("units") == "hours"


def _warn_of_steps(steps: np.ndarray, inner: np.ndarray, gaps: np.ndarray, line: xr.Variable) -> None:
    """Warn of gaps, and of steps that differ by more than months or years do."""
    within, told = steps[inner & ~gaps], []
    if gaps.any():
        told.append(f"{int(gaps.sum())} gap(s) wider than {_GAP} usual steps, which no time window crosses")
        alone = _alone(gaps, inner)
        told += [f"{alone} step(s) beside them are seen without any other frame"] if alone else []
    days = within / 24.0
    calendar = any(((low <= days) & (days <= high)).all() for low, high in (_MONTH_LIKE, _YEAR_LIKE))
    if not calendar and np.ptp(within) > 0.01 * np.median(within):
        unit = " hours" if _in_hours(line) else ""
        told.append(f"steps of {within.min():g} to {within.max():g}{unit}, which the network cannot tell apart")
    if told:
        warn(f"Times along {line.dims[-1]!r} are irregular: {'; '.join(told)}.")


def _alone(gaps: np.ndarray, inner: np.ndarray) -> int:
    """Return how many frames lie beside a gap, and have no neighbour in their stretch."""
    edge = np.zeros((*gaps.shape[:-1], 1), bool)
    gap, cut = (np.concatenate([end, part, end], axis=-1) for end, part in ((edge, gaps), (~edge, gaps | ~inner)))
    return int(((gap[..., :-1] | gap[..., 1:]) & cut[..., :-1] & cut[..., 1:]).sum())


def hours_since_first(times: np.ndarray) -> np.ndarray:
    """Return times or time steps as hours since the first, float64, NaN if missing; plain numbers stay what they are.

    Raises
    ------
    DataError
        If they are neither.
    """
    if times.dtype.kind in "mM":
        return (times - times[0]) / np.timedelta64(1, "s") / 3600.0
    known = ~pd.isnull(times)
    if times.dtype == object and all(hasattr(time, "calendar") for time in times[known]):
        hours = np.full(times.shape, np.nan)
        hours[known] = [(time - times[known][0]).total_seconds() / 3600.0 for time in times[known]]
        return hours
    if times.dtype.kind not in "fiub":
        raise DataError(
            f"Times must be dates, time steps or numbers, got {str(times[0])!r}; assign dates (.astype('M8[ns]') of "
            "text like 2001-01-31), or numbers with a units attribute (hours, days, months)."
        )
    return times.astype(np.float64)


def window_frames(segment: np.ndarray, before: int, after: int) -> np.ndarray:
    """Return the frames of each step's window, int64 (steps, before + 1 + after).

    Frames beyond an end of the axis or of the step's segment repeat the nearest frame of the segment.

    Examples
    --------
    >>> window_frames(np.array([0, 0, 1, 1]), 1, 0).tolist()
    [[0, 0], [0, 1], [2, 2], [2, 3]]
    """
    step = np.arange(len(segment))
    starts = np.flatnonzero(np.diff(segment, prepend=segment[:1] - 1))
    ends = np.append(starts[1:], len(segment))
    which = np.searchsorted(starts, step, side="right") - 1
    wanted = step[:, None] + np.arange(-before, after + 1)
    return np.clip(wanted, starts[which][:, None], ends[which][:, None] - 1)


def calendar_features(valid: xr.Variable | None) -> np.ndarray:
    """Return sine and cosine of the day of the year and of the time of day, float64 (..., 4), in any calendar.

    Parameters
    ----------
    valid : Variable
        Valid times, of any dims; None: there are none.

    Raises
    ------
    DataError
        If there are no dates, or some are missing.
    """
    if valid is None or not is_dated(valid):
        raise DataError(
            "calendar=True needs dates along a time dimension, or of every initialisation and lead (valid_time); "
            "assign or decode them, or leave calendar out."
        )
    if valid.isnull().any():
        raise DataError(f"{int(valid.isnull().sum())} of the valid times are missing, which calendar=True needs.")
    times = xr.DataArray(xr.Variable("time", np.asarray(valid.values).ravel())).dt
    hour = (times.hour + times.minute / 60.0 + times.second / 3600.0).values
    day = (times.dayofyear.values - 1 + hour / 24.0) / _days_in_year(times)
    turns = (2 * np.pi * np.stack([day, hour / 24.0])).reshape(2, *valid.shape)
    return np.stack([np.sin(turns[0]), np.cos(turns[0]), np.sin(turns[1]), np.cos(turns[1])], axis=-1)


def is_dated(times: xr.Variable) -> bool:
    """Return whether values are dates, of numpy or cftime; some may be missing."""
    if times.dtype != object:
        return bool(times.dtype.kind == "M")
    values = np.asarray(times.values).ravel()
    return any(hasattr(value, "calendar") for value in values[~pd.isnull(values)][:1])


def _days_in_year(times: Any) -> np.ndarray:
    """Return the length of each time's year: 360, 365 or 366 days."""
    calendar, shape = times.calendar, times.year.shape
    for names, days in ((("360_day",), 360.0), (("noleap", "365_day"), 365.0), (("all_leap", "366_day"), 366.0)):
        if calendar in names:
            return np.full(shape, days)
    return np.where(times.is_leap_year.values, 366.0, 365.0)
