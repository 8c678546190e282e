"""Cell bounds beside a field, as CF netCDF wants them.

Labelled arrays in and out; lazy.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.fields.axes import Axis
from xsuperres.fields.field import Field, encoded

__all__ = ["with_bounds"]

_CELLS = ("bounds", "climatology")  # attributes that name a variable with the cells of a coordinate


def with_bounds(field: Field, extra: Mapping[Hashable, xr.Variable] | None = None) -> xr.Dataset:
    """Return a field as a Dataset with the bounds of its cells; see `SuperResolutionAccessor.with_bounds`.

    `extra` holds other variables to keep, such as the bounds of times.
    """
    da, grid = field.array, field.grid
    ds = da.copy(deep=False).to_dataset(name=da.name or "field").assign(extra or {})
    ds = ds.assign_coords({name: _without_lost_cells(c.variable, ds) for name, c in ds.coords.items()})
    for axis in (grid.y, grid.x):
        name = f"{axis.name}_bnds"
        ds[name] = ((axis.dim, "bnds"), _bounds_of(axis, np.asarray(da.coords[axis.name].values, float)))
        ds[axis.name].attrs["bounds"] = name
        ds[axis.name].encoding["_FillValue"] = ds[name].encoding["_FillValue"] = None
        ds[name].encoding["coordinates"] = None
    variable = ds[da.name or "field"]
    if variable.attrs.get("grid_mapping") in ds.variables:  # else xarray lists it among the coordinates too
        variable.encoding["grid_mapping"] = variable.attrs.pop("grid_mapping")
    return ds.assign_attrs(Conventions="CF-1.11")


def _without_lost_cells(variable: xr.Variable, ds: xr.Dataset) -> xr.Variable:
    """Return a coordinate without the attributes that name bounds which a DataArray could not carry."""

    def kept(names: dict[Any, Any]) -> dict[Any, Any]:
        return {key: value for key, value in names.items() if key not in _CELLS or value in ds.variables}

    copied = encoded(variable, kept(variable.encoding))
    copied.attrs = kept(variable.attrs)
    return copied


def _bounds_of(axis: Axis, values: np.ndarray) -> np.ndarray:
    """Return the bounds (n, 2) of an axis in the order and convention of its coordinate's `values`."""
    shift = (values[axis.order] - axis.centres)[:, None]
    pairs = np.stack([axis.lower, axis.upper], axis=1) + shift
    return pairs[::-1, ::-1] if axis.flipped else pairs
