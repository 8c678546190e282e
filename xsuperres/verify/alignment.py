"""Fields brought onto one grid by position, after everything that says where they belong was compared.

Labelled arrays in and out; lazy. Nothing is joined by label: two fields either lie on the same cells, in whichever
orientation, order of dims or longitude convention, or are refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, GridError
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import SAMPLES, TimeAxes
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.steps import at_valid_times, check_times, is_series, off_label
from xsuperres.fields.times import is_dated

__all__ = [
    "are_blocks",
    "at_times_of",
    "bare",
    "check_same_times",
    "is_time",
    "loaded_coords",
    "on_grid",
    "scale_between",
    "times_of",
    "with_dims_of",
]


def bare(da: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Return `da`, which lies on `grid`, as (..., y, x) in canonical order without coordinates; lazy."""
    return xr.DataArray(grid.canonical(da))


def on_grid(da: xr.DataArray, grid: Grid, *, what: str) -> xr.DataArray:
    """Return `da` on `grid` by position: (..., y, x) in canonical order, without coordinates; lazy.

    Parameters
    ----------
    da : DataArray
        Must cover the cells of `grid` and no others, in any orientation; centres are compared to 1e-3 of the
        spacing, longitudes modulo a turn.
    what : str
        What `da` is, for the error.

    Raises
    ------
    GridError
        If it lies elsewhere.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> field = xsr.testing.toy_field(time=1, y=4, x=6)
    >>> turned = field.transpose("lon", "lat", "time").isel(lat=slice(None, None, -1))
    >>> bool((on_grid(turned, grid_of(field), what="truth") == field.values).all())
    True
    """
    own = grid_of(da)
    location = own.locate(grid) if own.shape == grid.shape else None
    if location is None:
        why = grid.mismatch(own)
        raise GridError(
            f"{what} lies on other cells: expected {grid.describe()}, got {own.describe()}"
            f"{'' if why is None else ': ' + why}. Cut both to the same domain first (.sel or .isel); nothing is "
            "joined or interpolated silently."
        )
    placed = bare(da, own).isel({own.y.dim: location.rows, own.x.dim: location.columns})
    names = {a: b for a, b in zip(own.dims, grid.dims, strict=True) if a != b}
    return placed.rename(names) if names else placed


def at_times_of(field: xr.DataArray, other: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Return a series at the valid times of scored forecasts, by which no other label counts; else `other` as it is.

    Parameters
    ----------
    field, other : DataArray
        The scored field, on `grid`, and what may be a series in time; it may go on longer, and each of its times is
        taken as often as there are forecasts of it. Lazy if dask-backed.

    Raises
    ------
    DataError
        If it lacks some of the valid times, or they are unknown.
    """
    series, like = Field(other), Field(field, grid=grid)
    axes = like.times
    if not is_series(series) or not off_label(like):
        return other
    placed = at_valid_times(series, like).array
    assert axes.valid is not None  # else refused
    return placed.assign_coords({SAMPLES: (axes.valid.dims, axes.valid.values, {"standard_name": "time"})})


def check_same_times(field: xr.DataArray, other: xr.DataArray, grid: Grid, *, what: str) -> None:
    """Refuse `other` unless it has the dims of `field` outside the plane, or fewer, with equal coordinates and times.

    Parameters
    ----------
    field, other : DataArray
        With dims named alike; `field` may have more of them (ensemble members), `other` may not.
    grid : Grid
        Its dims are not compared here.

    Raises
    ------
    DataError
        If a dimension, a size or a coordinate differs.
    """
    extra = [dim for dim in other.dims if dim not in field.dims and dim not in grid.dims]
    if extra:
        raise DataError(
            f"{what} has dims {extra} that the scored field has not ({tuple(map(str, field.dims))}); select one "
            "position along them, or score a field that has them."
        )
    for dim in other.dims:
        if dim not in grid.dims and field.sizes[dim] != other.sizes[dim]:
            raise DataError(
                f"{what} has {other.sizes[dim]} steps along {dim!r}, the scored field has {field.sizes[dim]}; select "
                "the same ones from both."
            )
    for name in _compared(field, other, grid):
        _check_equal(name, field.coords[name].values, other.coords[name].values, what)
    check_times(Field(other), Field(field), what=what, every=True)


def _compared(field: xr.DataArray, other: xr.DataArray, grid: Grid) -> list[Hashable]:
    """Return the coordinates that must agree: those along shared dims, and a scalar time that is no date."""
    shared = [dim for dim in other.dims if dim not in grid.dims]
    times = [name for name, c in other.coords.items() if not c.dims and is_time(name, c)]
    found = [name for name in (*shared, *times) if name in field.coords and name in other.coords]
    return [n for n in found if n in shared or not all(is_dated(da.coords[n].variable) for da in (field, other))]


def is_time(name: Hashable, coordinate: xr.DataArray) -> bool:
    """Return whether a coordinate is the time, by name or standard name."""
    return str(name) in ("time", "valid_time") or coordinate.attrs.get("standard_name") == "time"


def _check_equal(name: Hashable, expected: np.ndarray, given: np.ndarray, what: str) -> None:
    same = expected.shape == given.shape
    if same and expected.dtype.kind in "fiu" and given.dtype.kind in "fiu":
        same = bool(np.allclose(expected, given, rtol=1e-6, atol=0.0))
    elif same:
        same = bool(np.all(expected == given))
    if not same:
        raise DataError(
            f"{what} has other values of {name!r}: expected {_ends(expected)}, got {_ends(given)}; select the same "
            "ones from both, in the same order (and decode times alike)."
        )


def _ends(values: np.ndarray) -> str:
    flat = values.ravel()
    if flat.size == 1:
        return _text(flat[0])
    return f"{flat.size} from {_text(flat[0])} to {_text(flat[-1])}"


def _text(value: Any) -> str:
    return str(value)[:19]


def scale_between(fine: Grid, coarse: Grid) -> int:
    """Return how many fine cells make a coarse one along each axis.

    Raises
    ------
    GridError
        If the coarse cells are not whole groups of the fine ones, over the same domain.
    """
    ratios = {divmod(a, b) for a, b in zip(fine.shape, coarse.shape, strict=True)}
    scale, rest = ratios.pop()
    if ratios or rest or scale < 2:
        raise GridError(
            f"coarse does not cover the domain of the scored field cell by cell: expected {fine.shape} to be the same "
            f"multiple, at least 2, of the coarse sizes along both axes, got {coarse.shape}; cut both to one domain."
        )
    if not are_blocks(fine, coarse, scale):
        raise GridError(
            f"coarse lies on other cells: expected groups of {scale} x {scale} cells of {fine.describe()}, got "
            f"{coarse.describe()}. Cut both to the same domain first (on a full circle: start at the same cell)."
        )
    return scale


def are_blocks(fine: Grid, coarse: Grid, scale: int) -> bool:
    """Return whether the coarse cells are the groups of scale x scale cells of `fine`, all of them."""
    if (coarse.y.size * scale, coarse.x.size * scale) != fine.shape:
        return False
    whole = fine.coarsen(scale).locate(coarse) is not None
    return whole or _starts_whole(fine.locate(coarse.refine(scale)), scale)


def _starts_whole(location: Location | None, scale: int) -> bool:
    """Return whether a place on the fine grid starts with a group of `scale` cells."""
    return location is not None and not (location.rows[0] % scale or location.columns[0] % scale)


def loaded_coords(da: xr.DataArray) -> xr.DataArray:
    """Return `da` with its coordinates in memory, computed together; the data stay lazy."""
    return da.assign_coords(da.coords.to_dataset().compute().coords)


def with_dims_of(da: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Return `da` with its horizontal dims named like the grid's."""
    names = {a: b for a, b in zip(grid_of(da).dims, grid.dims, strict=True) if a != b}
    return da.rename(names) if names else da


def times_of(da: xr.DataArray, grid: Grid) -> np.ndarray:
    """Return the times of `da`: valid ones of a forecast, else along its time dimension, or the one it was selected at.

    Empty if unknown.
    """
    valid = TimeAxes.of(da, grid.time).valid
    if valid is not None:
        return np.asarray(valid.values).ravel()
    if grid.time in da.coords:
        return da.coords[grid.time].values.ravel()
    found = [c for name, c in da.coords.items() if not c.dims and is_time(name, c)]
    return found[0].values.ravel() if found else np.array([])
