"""Steps in time of two fields: forecasts as one dimension of samples, and what belongs together.

Fields in and out; lazy. Whatever labels files have, two steps are one if their valid and initial times are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import INIT, LEAD, LINE, SAMPLES, SERIES, TimeAxes
from xsuperres.fields.times import hours_since_first, is_dated

__all__ = [
    "at_valid_times",
    "check_times",
    "flattened",
    "is_series",
    "monthly",
    "off_label",
    "positions",
    "sample_labels",
]

logger = logging.getLogger(__name__)
_OUTER = "xsuperres_outer_"  # what a flattened forecast's steps were along dims of its own
_VALID_TIME = {"standard_name": "time"}


def flattened(field: Field) -> Field:
    """Return a forecast with its steps along one dimension, initialisation after initialisation; others as they are.

    Forecasts at one lead, a series already, are labelled by their valid times.

    Returns
    -------
    Field (valid_time, ...)
        With the valid times as coordinate, where they are known; without the steps that lack one. Lazy if dask-backed.

    Raises
    ------
    DataError
        If it is not known whether times are initial or valid ones.
    """
    da, axes = field.array, field.times
    axes.ask()
    if not axes.forecast:
        return _relabelled(field)
    joined = (*axes.outer, str(axes.along))
    rest = [d for d in da.dims if d not in joined]
    sizes = {d: da.sizes[d] for d in joined}
    bare = da.variable.transpose(*joined, *rest)
    data = bare.data.reshape((-1, *bare.shape[len(joined) :]))
    kept = {n: c.variable for n, c in da.coords.items() if not set(c.dims) & set(joined) and n != SAMPLES}
    out = xr.DataArray(data, dims=(SAMPLES, *rest), coords=kept, name=da.name, attrs=da.attrs)
    labels = {name: v.set_dims(sizes).transpose(*joined) for name, v in _labels(da, axes, sizes).items()}
    out = out.assign_coords({name: (SAMPLES, v.values.ravel(), v.attrs) for name, v in labels.items()})
    return Field(_dated(out) if SAMPLES in labels else out, gaps=field.gaps)


def _relabelled(field: Field) -> Field:
    """Return a series with its valid times as the labels, where it has others."""
    da, axes = field.array, field.times
    if axes.valid is None or axes.valid.dims != (axes.along,) or not off_label(field):
        return field
    others = [name for name, c in da.coords.items() if c.dims == (axes.along,)]
    labelled = da.drop_vars(others).assign_coords({axes.along: (axes.along, axes.valid.values, _VALID_TIME)})
    return Field(labelled, gaps=field.gaps)


def _dated(samples: xr.DataArray) -> xr.DataArray:
    """Return the steps that have a valid time."""
    missing = samples.coords[SAMPLES].isnull().values
    if not missing.any():
        return samples
    logger.info("%d of %d steps have no valid time and are left out.", missing.sum(), missing.size)
    return samples.isel({SAMPLES: ~missing})


def _labels(da: xr.DataArray, axes: TimeAxes, sizes: dict[str, int]) -> dict[str, xr.Variable]:
    """Return what is known of the steps of a flattened forecast, by the name of its coordinate."""
    outer = {dim: sizes[dim] for dim in axes.outer}
    number = np.arange(int(np.prod(list(outer.values()), dtype=int))).reshape(tuple(outer.values()))
    lead = axes.lead if axes.lead is not None and axes.lead.dims == (axes.along,) else None
    found = {SERIES: xr.Variable(tuple(outer), number), LINE: _line(axes, sizes)}
    found |= {_OUTER + dim: _named(da, dim) for dim in axes.outer}
    found |= {LEAD: _named(da, str(axes.along)) if lead is None else _units_only(lead)}
    if axes.init is not None:
        found[INIT] = xr.Variable(axes.init.dims, axes.init.values)
    if axes.valid is not None:
        found[SAMPLES] = xr.Variable(axes.valid.dims, axes.valid.values, _VALID_TIME)
    return found


def _line(axes: TimeAxes, sizes: dict[str, int]) -> xr.Variable:
    """Return what windows are judged by: leads or, of valid times, hours since the first of the series."""
    count = sizes[str(axes.along)]
    if axes.line is None:
        return xr.Variable((axes.along,), np.arange(count, dtype=np.float64))
    if axes.line.dtype.kind not in "MO":
        return axes.line
    hours = [hours_since_first(row) for row in axes.line.values.reshape(-1, count)]
    return xr.Variable(axes.line.dims, np.stack(hours).reshape(axes.line.shape), {"units": "hours"})


def _named(da: xr.DataArray, dim: str) -> xr.Variable:
    """Return the labels along a dimension; where there are none positions, which say how many there are."""
    if dim in da.indexes:
        return _units_only(da.coords[dim].variable)
    return xr.Variable((dim,), np.arange(da.sizes[dim]), {"unlabelled": da.sizes[dim]})


def _units_only(labels: xr.Variable) -> xr.Variable:
    return xr.Variable(labels.dims, labels.values, {"units": str(labels.attrs.get("units", ""))})


def sample_labels(field: Field, other: Field) -> tuple[pd.Index, pd.Index] | None:
    """Return what tells which steps of two fields, along their time dims, belong together; None if nothing does.

    Of two flattened forecasts initial and valid times, or what both know instead; else the valid times.

    Raises
    ------
    DataError
        If a forecast's steps cannot be told apart: valid times, labels or their units are unknown.
    """
    forecasts = [SERIES in part.array.coords for part in (field, other)]
    if all(forecasts):
        return _forecast_labels(field.array, other.array)
    times = [_times_along(part) for part in (field, other)]
    if any(forecasts) and (times[0] is None or times[1] is None):
        raise DataError(
            "A forecast and data that are none are joined on valid times, which are unknown here: assign a coordinate "
            "valid_time, or give initial times as dates and leads a units attribute (hours, days, months)."
        )
    return None if times[0] is None or times[1] is None else (times[0], times[1])


def _forecast_labels(da: xr.DataArray, other: xr.DataArray) -> tuple[pd.Index, pd.Index]:
    """Return what tells the steps of two flattened forecasts: dates, the labels of other dims where there are none."""
    dates = [(name, name) for name in (INIT, SAMPLES) if _has_dates(da, name) and _has_dates(other, name)]
    names = [*(dates or _outer_names(da, other)), *([(LEAD, LEAD)] if len(dates) < 2 else [])]
    labels = _indexes(da, other, names)
    if dates and not labels[1].is_unique:  # as of members that start at one time
        labels = _indexes(da, other, [*names, *_outer_names(da, other)])
    return labels


def _has_dates(da: xr.DataArray, name: str) -> bool:
    return name in da.coords and is_dated(da.coords[name].variable) and not bool(da.coords[name].isnull().any())


def _outer_names(da: xr.DataArray, other: xr.DataArray) -> list[tuple[str, str]]:
    """Return which coordinates tell the initialisations of two flattened forecasts."""
    ours, theirs = ([str(name) for name in field.coords if str(name).startswith(_OUTER)] for field in (da, other))
    if set(ours) == set(theirs) or len(ours) == len(theirs) == 1:
        return list(zip(ours, ours if set(ours) == set(theirs) else theirs, strict=True))
    dims = [[name.removeprefix(_OUTER) for name in names] for names in (ours, theirs)]
    raise DataError(
        f"Two forecasts count their initialisations along {dims[0]} and {dims[1]}, which cannot be joined; give both "
        "initial times as dates (a coordinate 'init')."
    )


def _indexes(da: xr.DataArray, other: xr.DataArray, names: Sequence[tuple[str, str]]) -> tuple[pd.Index, pd.Index]:
    """Return the labels of two flattened forecasts, made of coordinates that mean the same in both."""
    for ours, theirs in names:
        _check_alike(da.coords[ours], other.coords[theirs])
    made = [
        pd.MultiIndex.from_arrays([f.coords[pair[at]].values for pair in names]) for at, f in enumerate((da, other))
    ]
    return made[0], made[1]


def _check_alike(one: xr.DataArray, other: xr.DataArray) -> None:
    """Refuse labels of which one side has none, or that are in other units."""
    known = ("units", "unlabelled")
    ours, theirs = ({key: c.attrs[key] for key in known if key in c.attrs} for c in (one, other))
    if str(one.name) in (INIT, SAMPLES) or ours == theirs:
        return
    what = "leads" if one.name == LEAD else f"initialisations ({str(one.name).removeprefix(_OUTER)!r})"
    if "unlabelled" in ours and "unlabelled" in theirs:
        told = f"{ours['unlabelled']} {what} in one and {theirs['unlabelled']} in the other, and no coordinates"
    elif "unlabelled" in ours or "unlabelled" in theirs:
        told = f"coordinates of the {what} in one of them only"
    else:
        told = f"{what} in units of {ours['units']!r} and {theirs['units']!r}"
    raise DataError(
        f"Two forecasts cannot be joined: there are {told}. Give both initial times as dates and leads in time steps, "
        "or with a units attribute (hours, days, months)."
    )


def _times_along(field: Field) -> pd.Index | None:
    """Return the valid times along the time dim, or its labels where there are no dates."""
    dim, valid = field.axes.time, field.times.valid
    if valid is not None and valid.dims == (dim,):
        return pd.Index(valid.values)
    return field.array.indexes.get(dim)


def off_label(field: Field) -> bool:
    """Return whether the valid times of a field are not what its time dim says: whether these are forecasts."""
    da, axes = field.array, field.times
    if axes.forecast or axes.series is not None:
        return True
    if axes.valid is None or axes.along is None:
        return axes.valid is not None and axes.init is not None
    return axes.along not in da.coords or not da.coords[axes.along].variable.equals(axes.valid)


def is_series(field: Field) -> bool:
    """Return whether the times of a field are valid times along one dimension, and no initial ones."""
    axes = field.times
    if axes.forecast or axes.series is not None or axes.valid is None or axes.valid.dims != (axes.along,):
        return False
    own = field.array.coords.get(axes.along)
    initial = own is not None and own.attrs.get("standard_name") == "forecast_reference_time"
    return not (initial and own is not None and own.variable.equals(axes.valid))


def at_valid_times(series: Field, like: Field) -> Field:
    """Return a series at the valid times of a forecast, `like`, whose time dims replace its own; lazy.

    Raises
    ------
    DataError
        If it lacks some of the times, or they are unknown.
    """
    da, dim, axes, labels = series.array, str(series.axes.time), like.times, _times_along(series)
    axes.ask()
    if axes.valid is None or labels is None:
        raise DataError(f"{da.name!r} is a series in time, but valid times of the forecast are unknown; assign them.")
    wanted = np.asarray(axes.valid.values)
    where = positions(labels, wanted.ravel(), dim, what=repr(da.name)).reshape(wanted.shape)
    if (where < 0).any():
        raise DataError(
            f"{da.name!r} lacks {int((where < 0).sum())} of {where.size} valid times of the forecast, the first "
            f"{wanted[where < 0][0]}; it must cover them{monthly(labels, wanted.ravel())}."
        )
    bare = da.drop_vars([name for name, c in da.coords.items() if dim in c.dims])
    placed = bare.isel({dim: xr.Variable(axes.valid.dims, where)})
    return Field(placed, axes=replace(series.axes, time=like.axes.time), gaps=series.gaps)


def check_times(field: Field, like: Field, *, what: str, every: bool = False) -> None:
    """Refuse a field, joined with `like` by the labels of their dims, if its initial or valid times are others.

    Parameters
    ----------
    field, like : Field
        With dims named alike.
    what : str
        What the field is, for the error.
    every : bool
        Whether the times of all steps must be the same; else what changes neither along the time of `like` nor along a
        lead is meant for all of them.

    Raises
    ------
    DataError
        With the first time that differs.
    """
    own, ours = field.times, like.times
    every = every or (own.along is None and ours.along is None)
    pairs = {
        "initial": (own.init, ours.init, every or own.along in like.array.dims),
        "valid": (own.valid, ours.valid, every or ours.along in field.array.dims),
    }
    for which, (given, expected, shared) in pairs.items():
        if given is None or expected is None or not shared:
            continue
        sizes = {**given.sizes, **expected.sizes}
        one, other = (np.asarray(part.set_dims(sizes).transpose(*sizes).values) for part in (given, expected))
        differ = (one != other) & ~(pd.isnull(one) | pd.isnull(other))
        if differ.any():
            raise DataError(
                f"{what} has other {which} times: expected {other[differ][0]}, got {one[differ][0]}; select the same "
                "ones from both (and decode times alike), or drop them from a field that is meant for all: .drop_vars."
            )


def monthly(index: Any, wanted: Any) -> str:
    """Return what to do, at the end of an error, where both have one time in a month, but on other days."""
    ours, theirs = _months(index), _months(wanted)
    if not ours or not theirs or not ours & theirs:
        return ""
    return (
        "; both have one time in a month, on other days: stamp both alike, with the first of the month for instance "
        "(assign_coords), or give leads in whole months"
    )


def _months(times: Any) -> set[tuple[str, int]]:
    """Return the months of dates, with their calendar; none if these are no dates, or some of one month."""
    known = pd.Index(times).dropna().unique()
    months = {(getattr(t, "calendar", ""), t.year * 12 + t.month) for t in known if hasattr(t, "month")}
    return months if len(months) == len(known) else set()


def text(label: Any) -> str:
    """Return a label as a person reads it; of several parts one after the other."""
    return " + ".join(map(str, label)) if isinstance(label, tuple) else str(label)


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
