"""Fields brought onto one grid by position, after everything that says where they belong was compared.

Fields in, canonical arrays out; lazy. Nothing is joined by label: two fields either lie on the same cells, in whichever
orientation, order of dims or longitude convention, or are refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, GridError
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import SAMPLES
from xsuperres.fields.grid import Grid
from xsuperres.fields.steps import at_valid_times, check_times, is_series, off_label
from xsuperres.fields.times import is_dated

__all__ = ["at_times_of", "check_same_times", "is_time", "loaded_coords", "on_grid", "times_of"]


def loaded_coords(field: Field) -> Field:
    """Return a field with its coordinates in memory, computed together; the data stay lazy."""
    da = field.array
    if not any(variable.chunks is not None for variable in da.coords.variables.values()):
        return field
    return Field(da.assign_coords(da.coords.to_dataset().compute().coords), axes=field.axes)


def on_grid(field: Field, grid: Grid, *, what: str) -> xr.Variable:
    """Return a field on `grid` by position: (..., y, x) in canonical order; lazy.

    Parameters
    ----------
    field : Field
        Must cover the cells of `grid` and no others, in any orientation; centres are compared to 1e-3 of the
        spacing, longitudes modulo a turn.
    what : str
        What it is, for the error.

    Raises
    ------
    GridError
        If it lies elsewhere.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> field = xsr.testing.toy_field(time=1, y=4, x=6)
    >>> turned = field.transpose("lon", "lat", "time").isel(lat=slice(None, None, -1))
    >>> bool((on_grid(Field(turned), Field(field).grid, what="truth") == field.values).all())
    True
    """
    theirs = field.grid
    location = theirs.locate(grid) if theirs.shape == grid.shape else None
    if location is None:
        why = grid.mismatch(theirs)
        raise GridError(
            f"{what} lies on other cells: expected {grid.describe()}, got {theirs.describe()}"
            f"{'' if why is None else ': ' + why}. Cut both to the same domain first (.sel or .isel); nothing is "
            "joined or interpolated silently."
        )
    values = field.canonical()
    if location.columns[0]:  # a circle that begins elsewhere
        values = values.isel({theirs.x.dim: location.columns})
    return xr.Variable((*values.dims[:-2], *grid.dims), values.data)


def at_times_of(field: Field, other: Field) -> Field:
    """Return a series at the valid times of scored forecasts, by which no other label counts; else `other` as it is.

    Parameters
    ----------
    field, other : Field
        The scored field, and what may be a series in time; it may go on longer, and each of its times is taken as often
        as there are forecasts of it. Lazy if dask-backed.

    Raises
    ------
    DataError
        If it lacks some of the valid times, or they are unknown.
    """
    if not is_series(other) or not off_label(field):
        return other
    placed, valid = at_valid_times(other, field), field.times.valid
    assert valid is not None  # else refused
    labels = {SAMPLES: (valid.dims, valid.values, {"standard_name": "time"})}
    return Field(placed.array.assign_coords(labels), axes=placed.axes, cells_of=other)


def check_same_times(field: Field, other: Field, *, what: str) -> None:
    """Refuse `other` unless it has the dims of `field` outside the plane, or fewer, with equal coordinates and times.

    Parameters
    ----------
    field, other : Field
        Leading dims are named alike; `field` may have more of them (ensemble members), `other` may not.
    what : str
        What `other` is, for the error.

    Raises
    ------
    DataError
        If a dimension, a size or a coordinate differs.
    """
    extra = [dim for dim in other.lead if dim not in field.array.dims]
    if extra:
        raise DataError(
            f"{what} has dims {extra} that the scored field has not ({tuple(map(str, field.array.dims))}); select one "
            "position along them, or score a field that has them."
        )
    for dim in other.lead:
        expected, got = (each.array.sizes[dim] for each in (field, other))
        if expected != got:
            raise DataError(
                f"{what} has {got} steps along {dim!r}, the scored field has {expected}; select the same ones from "
                "both."
            )
    for name in _compared(field, other):
        _check_equal(name, field.array.coords[name].values, other.array.coords[name].values, what)
    check_times(other, field, what=what, every=True)


def _compared(field: Field, other: Field) -> list[Hashable]:
    """Return the coordinates that must agree: those along shared dims, and a scalar time that is no date."""
    times = [name for name, c in other.array.coords.items() if not c.dims and is_time(name, c)]
    found = [name for name in (*other.lead, *times) if name in field.array.coords and name in other.array.coords]
    dated = {n: all(is_dated(each.array.coords[n].variable) for each in (field, other)) for n in found}
    return [name for name in found if name in other.lead or not dated[name]]


def is_time(name: Hashable, coordinate: xr.DataArray) -> bool:
    """Return whether a coordinate is the time, by name or standard name."""
    return str(name) in ("time", "valid_time") or coordinate.attrs.get("standard_name") == "time"


def _check_equal(name: Hashable, expected: np.ndarray, got: np.ndarray, what: str) -> None:
    same = expected.shape == got.shape
    if same and expected.dtype.kind in "fiu" and got.dtype.kind in "fiu":
        same = bool(np.allclose(expected, got, rtol=1e-6, atol=0.0))
    elif same:
        same = bool(np.all(expected == got))
    if not same:
        raise DataError(
            f"{what} has other values of {name!r}: expected {_ends(expected)}, got {_ends(got)}; select the same "
            "ones from both, in the same order (and decode times alike)."
        )


def _ends(values: np.ndarray) -> str:
    first, last = (_text(value) for value in values.ravel()[[0, -1]])
    return first if values.size == 1 else f"{values.size} from {first} to {last}"


def _text(value: Any) -> str:
    return str(value)[:19]


def times_of(field: Field) -> np.ndarray:
    """Return the times of a field: valid ones of a forecast, else along its time dimension, or its only one.

    Empty if unknown.
    """
    coords, time, valid = field.array.coords, field.axes.time, field.times.valid
    if valid is not None:
        return np.asarray(valid.values).ravel()
    if time in coords:
        return coords[time].values.ravel()
    selected = [c for name, c in coords.items() if not c.dims and is_time(name, c)]
    return selected[0].values.ravel() if selected else np.array([])
