"""Time axes: stretches without gaps, the frames of a time window, what the calendar says.

Labelled arrays or plain values in, numbers out; any calendar.
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, DataError, XSuperResWarning

__all__ = ["CALENDAR_FEATURES", "calendar_features", "offsets", "segments", "window_frames"]

CALENDAR_FEATURES = 4  # sine and cosine of day of year and of time of day
_GAP = 1.5  # usual steps
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


def segments(da: xr.DataArray, dim: str) -> np.ndarray:
    """Return the number of the gapless stretch that each step along `dim` belongs to, int64 (steps,).

    A step of more than 1.5 usual ones is a gap; no window crosses it. Without a coordinate there are no gaps.

    Warns
    -----
    XSuperResWarning
        If there are gaps, or steps differ by more than months or years do.

    Raises
    ------
    DataError
        If times do not increase.
    """
    count = da.sizes[dim]
    if dim not in da.coords or count < 2:
        return np.zeros(count, np.int64)
    hours = _hours(da.coords[dim].values)
    steps = np.diff(hours)
    if not (steps > 0).all():
        raise DataError(f"Times along {dim!r} must increase for a time window; sort them (sortby) and drop repeats.")
    usual = float(np.median(steps))
    gaps = steps > _GAP * usual
    _warn_of_steps(steps[~gaps], int(gaps.sum()), usual, dim)
    return np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)


def _warn_of_steps(steps: np.ndarray, gaps: int, usual: float, dim: str) -> None:
    days = steps / 24.0
    calendar = any(low <= days.min() and days.max() <= high for low, high in (_MONTH_LIKE, _YEAR_LIKE))
    told = []
    if gaps:
        told.append(f"{gaps} gap(s) wider than {_GAP} usual steps, which no time window crosses")
    if not calendar and steps.max() - steps.min() > 0.01 * usual:
        told.append(f"steps of {steps.min():g} to {steps.max():g} hours, which the network cannot tell apart")
    if told:
        warnings.warn(f"Times along {dim!r} are irregular: {'; '.join(told)}.", XSuperResWarning, stacklevel=3)


def _hours(times: np.ndarray) -> np.ndarray:
    """Return times as hours since the first; plain numbers stay what they are."""
    if times.dtype.kind in "mM":
        return (times - times[0]) / np.timedelta64(1, "s") / 3600.0
    if times.dtype == object:
        return np.array([(time - times[0]).total_seconds() / 3600.0 for time in times])
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


def calendar_features(da: xr.DataArray, dim: str | None) -> np.ndarray:
    """Return sine and cosine of the day of the year and of the time of day, float64 (steps, 4), in any calendar.

    Raises
    ------
    DataError
        If there are no dates along `dim`.
    """
    if dim is None or dim not in da.coords or not _is_dated(da.coords[dim].values):
        raise DataError("calendar=True needs dates along a time dimension; assign them, or leave calendar out.")
    times = da.coords[dim].dt
    hour = times.hour + times.minute / 60.0 + times.second / 3600.0
    day = (times.dayofyear - 1 + hour / 24.0).values / _days_in_year(da.coords[dim])
    turns = 2 * np.pi * np.stack([day, hour.values / 24.0])
    return np.stack([np.sin(turns[0]), np.cos(turns[0]), np.sin(turns[1]), np.cos(turns[1])], axis=1)


def _is_dated(values: np.ndarray) -> bool:
    return values.dtype.kind == "M" or (values.dtype == object and values.size > 0 and hasattr(values[0], "calendar"))


def _days_in_year(times: xr.DataArray) -> np.ndarray:
    """Return the length of each time's year: 360, 365 or 366 days."""
    calendar = times.dt.calendar
    if calendar == "360_day":
        return np.full(times.size, 360.0)
    if calendar in ("noleap", "365_day"):
        return np.full(times.size, 365.0)
    if calendar in ("all_leap", "366_day"):
        return np.full(times.size, 366.0)
    return np.where(times.dt.is_leap_year.values, 366.0, 365.0)
