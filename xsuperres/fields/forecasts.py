"""The times of forecasts: which dimension is the lead, which the initialisation, and the valid time of every step.

Labelled arrays in, small ones out; any calendar. A lead goes before a time: along it windows run, and the calendar is
that of the valid time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, warn
from xsuperres.fields.leads import INIT_NAMES, LEAD_NAMES, after, elapsed, in_hours
from xsuperres.fields.times import calendar_features, is_dated, segments, usual_step

__all__ = ["INIT", "LEAD", "LINE", "SAMPLES", "SERIES", "TimeAxes"]

SAMPLES = "valid_time"  # dimension of a flattened forecast
SERIES, LINE = "xsuperres_series", "xsuperres_line"  # its series, and what windows are judged by
INIT, LEAD = "xsuperres_init", "xsuperres_lead"  # what its steps were

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
    valid, init : Variable or None
        Valid times, and initial ones.
    lead : Variable or None
        Leads: in hours, or as they are where their unit is unknown.
    series : ndarray or None
        Of a flattened forecast: the initialisation of each step.
    forecast : bool
        Whether there is a lead dimension.
    unclear : str or None
        A coordinate of which it is not known whether it holds initial times or the valid times of all leads.
    """

    along: str | None
    outer: tuple[str, ...]
    line: xr.Variable | None
    valid: xr.Variable | None
    init: xr.Variable | None = None
    lead: xr.Variable | None = None
    series: np.ndarray | None = None
    forecast: bool = False
    unclear: str | None = None

    @classmethod
    def of(cls, da: xr.DataArray, time: str | None) -> TimeAxes:
        """Return the times of `da`, whose time dimension, if it has one, is `time`.

        CF attributes are asked first (standard_name forecast_period, forecast_reference_time, time), then common names.
        Beside a lead, times that do not call themselves valid are initial ones.
        """
        if SERIES in da.coords:
            line, valid, init, lead = (
                da.coords[name].variable if name in da.coords else None for name in (LINE, SAMPLES, INIT, LEAD)
            )
            return cls(SAMPLES, (), line, valid, init, lead, da.coords[SERIES].values)
        lead = _lead_dim(da, time)
        along = lead or (time if time in da.dims else None)
        leads = _lead(da, lead)
        told = _init(da, lead, time, beside=leads is not None)
        valid = _valid(da, lead, along, told)
        init = None if told is None else told.variable
        named = {*(init.dims if init is not None else ()), *(valid.dims if valid is not None else ())}
        outer = [str(d) for d in da.dims if d in named or str(d).lower() in INIT_NAMES or d == time] if lead else []
        line, hours = _line(da, lead, along, valid), None if leads is None else in_hours(leads)
        return cls(
            along,
            tuple(d for d in outer if d != lead),
            line,
            valid,
            init,
            hours if hours is not None else leads,
            forecast=lead is not None,
            unclear=_unclear(da, lead, init, valid),
        )

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
        if window or calendar:
            self.ask()
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

    def ask(self) -> None:
        """Refuse to take times for valid ones that may be initial ones.

        Raises
        ------
        DataError
            With what tells the one from the other.
        """
        if self.unclear is not None:
            raise DataError(
                f"{self.unclear!r} calls itself time, and does not change along the lead {self.along!r}: are these "
                "initial times, or the valid times of every lead? Of initial times give it standard_name "
                f"'forecast_reference_time' or the name 'init', .rename({self.unclear}='init'); of valid ones the name "
                "'valid_time'."
            )

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
            warn(
                f"There is one step along the lead {self.along!r}, which every time window repeats; to see the initial "
                f"times as one series, take the dimension away: .squeeze({self.along!r})."
            )
        if self.forecast and self.valid is not None and self.valid.ndim and self.along not in self.valid.dims:
            raise DataError(
                f"Valid times run along {self.valid.dims}, not along the lead {self.along!r}; a time window needs "
                f"forecasts by initialisation and lead. Take one lead, .isel({self.along}=0), and its times."
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


def _init(da: xr.DataArray, lead: str | None, time: str | None, *, beside: bool) -> xr.DataArray | None:
    """Return the initial times, which do not change along the lead; `beside` one, times are initial ones."""
    free = {str(name): c for name, c in da.coords.items() if c.dtype.kind in "MO" and (not lead or lead not in c.dims)}
    told = [c for c in free.values() if _is_init(c)]
    if lead or beside:
        told += [free[n] for n in ("time", str(time)) if n in free and not _is_valid(free[n])]
    return next((c for c in told if is_dated(c.variable)), None)


def _is_init(coordinate: xr.DataArray) -> bool:
    """Return whether a coordinate says that it is of initial times."""
    told = coordinate.attrs.get("standard_name")
    named = str(coordinate.name).lower() in INIT_NAMES or coordinate.name == "S"
    return told == "forecast_reference_time" or (told is None and named)


def _is_valid(coordinate: xr.DataArray) -> bool:
    """Return whether a coordinate says that it is of valid times."""
    return coordinate.attrs.get("standard_name") == "time" or str(coordinate.name).lower() in _VALID


def _valid(da: xr.DataArray, lead: str | None, along: str | None, init: xr.DataArray | None) -> xr.Variable | None:
    """Return the valid times: given ones, else initial time and lead, else what the time dimension says."""
    initial = None if init is None else init.name
    own = da.coords[along] if along in da.coords and is_dated(da.coords[along].variable) else None
    if not lead and own is not None and not _is_init(own) and own.name != initial:
        return own.variable
    told = [c for c in da.coords.values() if str(c.name).lower() in _VALID]
    told += [c for c in da.coords.values() if c.attrs.get("standard_name") == "time"]
    told += [c for name, c in da.coords.items() if name == "time" and not _is_init(c)]
    told = [c for c in told if c.name != initial and c.dtype.kind in "MO" and is_dated(c.variable)]
    fitting = [c.variable for c in told if along is None or along in c.dims]
    leads = _lead(da, lead)
    made = None if fitting or init is None or leads is None else after(init.variable, leads)
    if fitting or made is not None:
        return fitting[0] if fitting else made
    if not lead:
        return None if own is None else own.variable
    return next((c.variable for c in told if c.ndim and init is None), None)


def _unclear(da: xr.DataArray, lead: str | None, init: xr.Variable | None, valid: xr.Variable | None) -> str | None:
    """Return the coordinate that may be of initial times, or of the valid times of all leads."""
    if lead is None or valid is None or init is not None or lead in valid.dims:
        return None
    named = [str(name) for name, c in da.coords.items() if c.dims == valid.dims and c.variable.equals(valid)]
    if any(name.lower() in _VALID for name in named) or any(_is_init(c) for c in da.coords.values()):
        return None  # so called, or initial times are by valid time and lead
    return named[0]


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
