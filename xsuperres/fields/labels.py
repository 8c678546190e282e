"""Labels of results: coordinates, attributes, history, cell bounds, dims and orientation as the user has them.

Labelled arrays in and out; lazy.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from xsuperres._version import __version__
from xsuperres.fields.axes import Axis
from xsuperres.fields.grid import Grid, grid_of, in_convention

__all__ = ["attach", "named_like", "with_bounds", "with_history"]

_CF_ENCODINGS = ("units", "calendar", "dtype", "_FillValue")  # what any format can write
_PACKING = ("scale_factor", "add_offset")
_CELLS = ("bounds", "climatology")  # attributes that name a variable with the cells of a coordinate


def attach(
    source: xr.DataArray, data: Any, dims: tuple[Any, ...], grid: Grid, target: Grid, *, note: str
) -> xr.DataArray:
    """Return `data` (canonical, on grid `target`) as a DataArray like `source`, which lies on `grid`.

    Kept: name, attributes, coordinates that do not lie on the horizontal grid, orientation and order of dims.
    Replaced: horizontal coordinates, by those of `target`. Dropped: encodings of packing, chunks and compression, of
    coordinates too (they belong to one format, and fail in another), and the digest of a model that made the source.
    """
    attrs = {name: value for name, value in source.attrs.items() if not str(name).startswith("xsuperres_")}
    out = xr.DataArray(data, dims=dims, attrs=attrs).rename(source.name)  # name=None would be that of a dask array
    kept = {
        name: _portable(coordinate.variable)
        for name, coordinate in source.coords.items()
        if not set(coordinate.dims) & set(grid.dims)
    }
    moved = {name: _encoded(v, {}) for name, v in target.coords.variables.items() if name not in kept}
    out = out.assign_coords(kept).assign_coords(xr.Dataset(coords=moved).coords)
    out = grid.restored(out, source.dims)
    out.encoding = {k: v for k, v in source.encoding.items() if k in ("grid_mapping",)}
    return with_history(out, note)


def _portable(variable: xr.Variable) -> xr.Variable:
    """Return a coordinate with those of its encodings that are CF's: times are written as they were read."""
    encoding = {name: variable.encoding[name] for name in _CF_ENCODINGS if name in variable.encoding}
    packed = any(name in variable.encoding for name in _PACKING)
    if packed or np.dtype(encoding.get("dtype", float)).kind not in "fiu":  # no dtype without its packing
        encoding = {name: value for name, value in encoding.items() if name in ("units", "calendar")}
    return _encoded(variable, encoding)


def _encoded(variable: xr.Variable, encoding: dict[Any, Any]) -> xr.Variable:
    """Return a shallow copy with other encodings; the given variable may be shared with the user's data."""
    copied = variable.copy(deep=False)
    copied.encoding = encoding
    return copied


def with_history(da: xr.DataArray, note: str) -> xr.DataArray:
    """Return `da` with one more line in its history attribute, signed with the package's version."""
    before = da.attrs.get("history")
    line = f"xsuperres {__version__}: {note}"
    return da.assign_attrs(history=f"{before}\n{line}" if before else line)


def named_like(fine: Grid, coarse: Grid, stored: Grid | None = None) -> Grid:
    """Return the fine grid with the dims and coordinate names of the user's coarse one.

    Parameters
    ----------
    fine : Grid
        Cut to the user's domain.
    coarse : Grid
        The user's.
    stored : Grid, optional
        Cells inside the user's that belong to `fine`, or are these. Where the user has their longitudes in another
        turn, the fine ones follow the user; else, and where that would cut them in two, they stay bit for bit.
    """
    coords = fine.coords if stored is None else _turned(fine, coarse, stored)
    pairs = ((fine.y, coarse.y), (fine.x, coarse.x))
    names = {ours.name: theirs.name for ours, theirs in pairs if ours.name != theirs.name}
    dims = {ours.dim: theirs.dim for ours, theirs in pairs if ours.dim != theirs.dim}
    if names or dims:
        renamed = {
            names.get(str(name), name): (tuple(dims.get(str(d), d) for d in v.dims), v.values, v.attrs)
            for name, v in coords.variables.items()
        }
        coords = xr.Dataset(coords=renamed)
    y, x = (replace(ours, dim=theirs.dim, name=theirs.name) for ours, theirs in pairs)
    return replace(fine, y=y, x=x, coords=coords)


def _turned(fine: Grid, coarse: Grid, stored: Grid) -> xr.Dataset:
    """Return the fine coordinates with longitudes in the turn of the user's."""
    axis = coarse.x
    if axis.kind != "longitude" or axis.name not in coarse.coords:
        return fine.coords
    given, ours = coarse.coords.variables[axis.name], stored.coords.variables[stored.x.name]
    rounding = 1e-3 * axis.spacing
    lap = -360.0 * np.floor((stored.x.centres[0] - axis.west + rounding) / 360.0)
    wanted = in_convention(stored.x.centres + lap, axis, given)
    cut = _wraps(wanted) and not _wraps(given.values)  # at the seam of a globe
    if cut or np.allclose(ours.values, wanted, rtol=0, atol=rounding):
        return fine.coords
    values = fine.coords.variables[fine.x.name]
    turned = in_convention(fine.x.centres + lap, axis, given).astype(values.dtype)
    return fine.coords.assign_coords({fine.x.name: values.copy(data=turned)})


def _wraps(longitudes: np.ndarray) -> bool:
    return bool((np.diff(longitudes) < 0).any())


def with_bounds(da: xr.DataArray, beside: Mapping[Hashable, xr.Variable] | None = None) -> xr.Dataset:
    """Return `da` as a Dataset with the bounds of its cells; see `SuperResolutionAccessor.with_bounds`.

    `beside` holds other variables to keep, such as the bounds of times.
    """
    grid = grid_of(da)
    ds = da.copy(deep=False).to_dataset(name=da.name or "field").assign(beside or {})
    ds = ds.assign_coords({name: _without_lost_cells(c.variable, ds) for name, c in ds.coords.items()})
    for axis in (grid.y, grid.x):
        name = f"{axis.name}_bnds"
        ds[name] = ((axis.dim, "bnds"), _bounds_of(axis, np.asarray(da.coords[axis.name].values, float)))
        ds[axis.name].attrs["bounds"] = name
        ds[axis.name].encoding["_FillValue"] = ds[name].encoding["_FillValue"] = None
        ds[name].encoding["coordinates"] = None
    field = ds[da.name or "field"]
    if field.attrs.get("grid_mapping") in ds.variables:  # else xarray lists it among the coordinates too
        field.encoding["grid_mapping"] = field.attrs.pop("grid_mapping")
    return ds.assign_attrs(Conventions="CF-1.11")


def _without_lost_cells(variable: xr.Variable, ds: xr.Dataset) -> xr.Variable:
    """Return a coordinate without the attributes that name bounds which a DataArray could not carry."""

    def kept(names: dict[Any, Any]) -> dict[Any, Any]:
        return {key: value for key, value in names.items() if key not in _CELLS or value in ds.variables}

    copied = _encoded(variable, kept(variable.encoding))
    copied.attrs = kept(variable.attrs)
    return copied


def _bounds_of(axis: Axis, values: np.ndarray) -> np.ndarray:
    """Return the bounds (n, 2) of an axis in the order and convention of its coordinate's `values`."""
    shift = (values[axis.order] - axis.centres)[:, None]
    pairs = np.stack([axis.lower, axis.upper], axis=1) + shift
    return pairs[::-1, ::-1] if axis.flipped else pairs
