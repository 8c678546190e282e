"""The times of forecasts: which dimension is the lead, which the initialisation, and the valid time of every step.

Labelled arrays in, small ones out; any calendar. A lead goes before a time: along it windows run, and the calendar is
that of the valid time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields.leads import INIT_NAMES, LEAD_NAMES, after, elapsed, in_hours
from xsuperres.fields.times import calendar_features, hours_since_first, is_dated, segments, usual_step

__all__ = ["SAMPLES", "TimeAxes", "at_valid_times", "flattened", "positions", "sample_labels"]

SAMPLES = "valid_time"  # dimension of a flattened forecast
_SERIES, _LEAD = "xsuperres_series", "xsuperres_lead"  # what its steps were

_VALID = ("valid_time", "validtime", "verification_time", "verifying_time")


@dataclass(frozen=True, eq=False)
class TimeAxes:
    """What is known of the times of an array.

    Parameters
    ----------
    along : str or None
        The dimension along which windows run: the lead of a forecast, else the time.
    outer : tuple of str
        Dimensions that count initialisations of a forecast.
    line : Variable or None
        Leads in hours, or times: what steps along the last dimension, `along`, are judged by.
    valid : Variable or None
        Valid times.
    series : ndarray or None
        Of a flattened forecast: the initialisation of each step.
    forecast : bool
        Whether there is a lead dimension.
    """

    along: str | None
    outer: tuple[str, ...]
    line: xr.Variable | None
    valid: xr.Variable | None
    series: np.ndarray | None
    forecast: bool

    @classmethod
    def of(cls, da: xr.DataArray, time: str | None) -> TimeAxes:
        """Return the times of `da`, whose time dimension, if it has one, is `time`.

        CF attributes are asked first (standard_name forecast_period, forecast_reference_time, time), then common names.
        Beside a lead, a dimension `time` that does not call itself valid time counts initialisations.
        """
        if _SERIES in da.coords:
            line = da.coords[_LEAD].variable
            valid = da.coords[SAMPLES].variable if SAMPLES in da.coords else None
            return cls(SAMPLES, (), line, valid, da.coords[_SERIES].values, forecast=False)
        lead = _lead_dim(da, time)
        along = lead or (time if time in da.dims else None)
        init = _init(da, lead, time)
        valid = _valid(da, lead, along, init)
        named = {*(init.dims if init is not None else ()), *(valid.dims if valid is not None else ())}
        outer = [str(d) for d in da.dims if d in named or str(d).lower() in INIT_NAMES or d == time] if lead else []
        line = _line(da, lead, along, valid)
        return cls(along, tuple(d for d in outer if d != lead), line, valid, None, forecast=lead is not None)

    @property
    def step(self) -> float | None:
        """The usual step in hours, if it is known."""
        return None if self.line is None else usual_step(self.line, self.series)

    def columns(self, da: xr.DataArray, *, window: bool, calendar: bool, usual: float | None = None) -> xr.Variable:
        """Return what a network is told of each step: its gapless stretch, and the calendar's features.

        Parameters
        ----------
        da : DataArray
            The array whose times these are.
        window, calendar : bool
            Whether the stretches, and the features, are needed; stretches are 0 else.
        usual : float, optional
            The step of the training, in hours, by which gaps are told; None: the usual one of these times.

        Returns
        -------
        Variable (..., along, 1 + features)
            float64; the dims before are those on which it depends.
        """
        if self.along is None and (window or self.valid is None):
            raise DataError(
                f"The model needs a time dimension, or a lead dimension; the data have {tuple(map(str, da.dims))}."
            )
        if window:
            self._check_windows(da)
        parts = [self._stretches(da, window=window, usual=usual)]
        if calendar:
            features = calendar_features(self.valid)
            parts.append(xr.Variable((*(() if self.valid is None else self.valid.dims), "column"), features))
        dims = [d for d in da.dims if d != self.along and any(d in part.dims for part in parts)]
        dims += [] if self.along is None else [self.along]
        sizes = {d: da.sizes[d] for d in dims}
        wide = [part.set_dims(sizes | {"column": part.sizes["column"]}).transpose(*dims, "column") for part in parts]
        return xr.Variable.concat(wide, "column")

    def _stretches(self, da: xr.DataArray, *, window: bool, usual: float | None) -> xr.Variable:
        """Return the gapless stretches as a column; zeros where there is nothing to judge by, or no need."""
        if window and self.line is not None:
            found = segments(self.line, self.series, usual).astype(np.float64)
            return xr.Variable((*self.line.dims, "column"), found[..., None])
        own = () if self.along is None else (self.along,)
        return xr.Variable((*own, "column"), np.zeros((*(da.sizes[d] for d in own), 1)))

    def _check_windows(self, da: xr.DataArray) -> None:
        """Refuse windows along leads of one valid time, and warn of those that hold one frame only."""
        if self.forecast and da.sizes[self.along] == 1 and any(da.sizes[dim] > 1 for dim in self.outer):
            warnings.warn(
                f"There is one step along the lead {self.along!r}, which every time window repeats; to see the initial "
                f"times as one series, take the dimension away: .squeeze({self.along!r}).",
                XSuperResWarning,
                stacklevel=7,
            )
        if self.forecast and self.valid is not None and self.valid.ndim and self.along not in self.valid.dims:
            raise DataError(
                f"Valid times run along {self.valid.dims}, not along the lead {self.along!r}; a time window needs "
                "forecasts by initialisation and lead. If they are initial times, give that coordinate standard_name "
                "'forecast_reference_time' or rename it to 'init'; else take one lead, .isel(...), and its times."
            )


def _lead_dim(da: xr.DataArray, time: str | None) -> str | None:
    """Return the dimension of lead times, if there is one."""
    for dim in map(str, da.dims):
        lines = [c for c in da.coords.values() if c.dims == (dim,) and (dim != time or c.name == dim)]
        if any(c.attrs.get("standard_name") == "forecast_period" for c in lines) or dim.lower() in LEAD_NAMES:
            return dim
        if dim == "L" and dim in da.coords and (da.coords[dim].dtype.kind == "m" or "units" in da.coords[dim].attrs):
            return dim
    return None


def _lead(da: xr.DataArray, dim: str | None) -> xr.Variable | None:
    """Return the leads along `dim`, or the one lead of all."""
    told = [
        elapsed(str(name), c.variable)
        for name, c in da.coords.items()
        if c.attrs.get("standard_name") == "forecast_period" or str(name).lower() in (*LEAD_NAMES, "l")
    ]
    return next((v for v in told if v.dims == ((dim,) if dim else ()) and v.dtype.kind in "mfiu"), None)


def _init(da: xr.DataArray, lead: str | None, time: str | None) -> xr.Variable | None:
    """Return the initial times, which do not change along the lead."""
    free = {str(name): c for name, c in da.coords.items() if c.dtype.kind in "MO" and (not lead or lead not in c.dims)}
    told = [c for c in free.values() if _is_init(c)] + [free[name] for name in free if name == "S"]
    if lead:
        told += [free[n] for n in ("time", str(time)) if n in free and free[n].attrs.get("standard_name") != "time"]
    return next((c.variable for c in told if is_dated(c.variable)), None)


def _is_init(coordinate: xr.DataArray) -> bool:
    """Return whether a coordinate says that it is of initial times."""
    told = coordinate.attrs.get("standard_name")
    return told == "forecast_reference_time" or (told is None and str(coordinate.name).lower() in INIT_NAMES)


def _valid(da: xr.DataArray, lead: str | None, along: str | None, init: xr.Variable | None) -> xr.Variable | None:
    """Return the valid times: given ones, else initial time and lead, else what the time dimension says."""
    own = da.coords[along] if along in da.coords and is_dated(da.coords[along].variable) else None
    if not lead and own is not None and not _is_init(own):
        return own.variable
    told = [c for name, c in da.coords.items() if str(name).lower() in _VALID]
    told += [c for c in da.coords.values() if c.attrs.get("standard_name") == "time"]
    told += [c for name, c in da.coords.items() if name == "time" and not _is_init(c)]
    told = [c for c in told if c.dtype.kind in "MO" and is_dated(c.variable)]
    fitting = [c.variable for c in told if along is None or along in c.dims]
    leads = _lead(da, lead)
    made = None if fitting or init is None or leads is None else after(init, leads)
    if fitting or made is not None:
        return fitting[0] if fitting else made
    if not lead:
        return None if own is None else own.variable
    return next((c.variable for c in told if c.ndim and init is None), None)


def _line(da: xr.DataArray, lead: str | None, along: str | None, valid: xr.Variable | None) -> xr.Variable | None:
    """Return what steps along `along` are judged by, that dimension last."""
    if along is None:
        return None
    own = da.coords[along].variable if along in da.coords else None
    leads = _lead(da, lead) if lead else None
    hours = None if leads is None or not leads.ndim else in_hours(leads)
    if hours is not None:
        return hours
    if (lead or own is None) and valid is not None and along in valid.dims:
        return valid.transpose(*(d for d in valid.dims if d != along), along)
    return own


def flattened(da: xr.DataArray, time: str | None) -> xr.DataArray:
    """Return a forecast with its steps along one dimension, initialisation after initialisation; others as they are.

    Parameters
    ----------
    da : DataArray
        Any dims; lazy if dask-backed.
    time : str or None
        Its time dimension.

    Returns
    -------
    DataArray (valid_time, ...)
        With the valid times as coordinate, where they are known.
    """
    axes = TimeAxes.of(da, time)
    if not axes.forecast or axes.along is None:
        return da
    joined = (*axes.outer, axes.along)
    rest = [d for d in da.dims if d not in joined]
    shape = tuple(da.sizes[d] for d in joined)
    bare = da.variable.transpose(*joined, *rest)
    data = bare.data.reshape((-1, *bare.shape[len(joined) :]))
    kept = {n: c.variable for n, c in da.coords.items() if not set(c.dims) & set(joined) and n != SAMPLES}
    out = xr.DataArray(data, dims=(SAMPLES, *rest), coords=kept, name=da.name, attrs=da.attrs)
    if axes.valid is not None:
        times = axes.valid.compute().set_dims(dict(zip(joined, shape, strict=True))).transpose(*joined)
        out = out.assign_coords({SAMPLES: (SAMPLES, times.values.ravel(), {"standard_name": "time"})})
    series, lead = _labels(da, axes, dict(zip(joined, shape, strict=True)))
    return out.assign_coords({_SERIES: (SAMPLES, series), _LEAD: (SAMPLES, lead.values.ravel(), lead.attrs)})


def _labels(da: xr.DataArray, axes: TimeAxes, sizes: dict[str, int]) -> tuple[np.ndarray, xr.Variable]:
    """Return the initialisation and the lead (in hours, if known) of each step of a flattened forecast."""
    count = sizes[str(axes.along)]
    inits = np.arange(int(np.prod(list(sizes.values()))) // max(1, count))
    labels = da.indexes[axes.outer[0]].values if len(axes.outer) == 1 and axes.outer[0] in da.indexes else inits
    line = axes.line
    if line is None:
        line = xr.Variable((axes.along,), np.arange(count, dtype=np.float64))
    elif line.dtype.kind in "MO":  # valid times
        hours = [hours_since_first(row) for row in line.values.reshape(-1, count)]
        line = xr.Variable(line.dims, np.stack(hours).reshape(line.shape), {"units": "hours"})
    return np.repeat(labels, count), line.set_dims(sizes).transpose(*sizes)


def sample_labels(da: xr.DataArray, dim: str, other: xr.DataArray, its: str) -> tuple[pd.Index, pd.Index] | None:
    """Return what tells which steps of two arrays, along `dim` and `its`, belong together; None if nothing does.

    Initialisation and lead of two flattened forecasts, else the valid times.

    Raises
    ------
    DataError
        If one is a forecast whose valid times are unknown.
    """
    pair = ((da, dim), (other, its))
    forecasts = [_SERIES in field.coords for field, _ in pair]
    if all(forecasts):
        labels = [pd.MultiIndex.from_arrays([f.coords[name].values for name in (_SERIES, _LEAD)]) for f, _ in pair]
        return labels[0], labels[1]
    times = [_times_along(field, name) for field, name in pair]
    if any(forecasts) and (times[0] is None or times[1] is None):
        raise DataError(
            "A forecast and data that are none are joined on valid times, which are unknown here: assign a coordinate "
            "valid_time, or give initial times as dates and leads a units attribute (hours, days, months)."
        )
    return None if times[0] is None or times[1] is None else (times[0], times[1])


def _times_along(da: xr.DataArray, dim: str) -> pd.Index | None:
    """Return the valid times along `dim`, or its labels where there are no dates."""
    valid = TimeAxes.of(da, dim).valid
    if valid is not None and valid.dims == (dim,):
        return pd.Index(valid.values)
    return da.indexes.get(dim)


def at_valid_times(da: xr.DataArray, dim: str, like: xr.DataArray, time: str | None) -> xr.DataArray:
    """Return `da`, whose time dimension is `dim`, at the valid times of a forecast, whose dims replace `dim`; lazy.

    Parameters
    ----------
    da, like : DataArray
        A series, and the forecast.
    dim, time : str
        Their time dimensions.

    Raises
    ------
    DataError
        If it lacks some of the times, or they are unknown.
    """
    valid, labels = TimeAxes.of(like, time).valid, _times_along(da, dim)
    if valid is None or labels is None:
        raise DataError(f"{da.name!r} is a series in time, but valid times of the forecast are unknown; assign them.")
    wanted = np.asarray(valid.values)
    where = positions(labels, wanted.ravel(), dim, what=repr(da.name)).reshape(wanted.shape)
    if (where < 0).any():
        raise DataError(
            f"{da.name!r} lacks {int((where < 0).sum())} of {where.size} valid times of the forecast, the first "
            f"{wanted[where < 0][0]}; it must cover them."
        )
    bare = da.drop_vars([name for name, c in da.coords.items() if dim in c.dims])
    return bare.isel({dim: xr.Variable(valid.dims, where)})


def positions(index: pd.Index, wanted: Any, dim: str, *, what: str) -> np.ndarray:
    """Return where labels are in an index, -1 where they are not.

    Raises
    ------
    DataError
        If the index repeats labels.
    """
    if not index.is_unique:
        first = index[index.duplicated()][0]
        raise DataError(f"{what} repeats values of {dim!r}, the first {first}; drop them: .drop_duplicates({dim!r}).")
    return index.get_indexer(wanted if isinstance(wanted, pd.Index) else pd.Index(wanted))
