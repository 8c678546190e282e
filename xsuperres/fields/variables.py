"""The variables of a Dataset: which are fields, and which of the others go with fields on other cells.

Labelled arrays in; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Hashable

import xarray as xr

from xsuperres.errors import GridError
from xsuperres.fields.grid import find_axes

__all__ = ["field_names", "numeric_names", "off_grid"]

_NAMING = ("bounds", "climatology", "grid_mapping", "cell_measures")  # CF attributes whose words name other variables


def numeric_names(ds: xr.Dataset) -> list[Hashable]:
    """Return the data variables that are numbers, but for the bounds, grid mappings and cell measures of others.

    Examples
    --------
    >>> ds = xr.Dataset({"tas": ("time", [280.0]), "time_bnds": (("time", "bnds"), [[0, 1]])})
    >>> numeric_names(ds.assign_coords(time=("time", [0.5], {"bounds": "time_bnds"})))
    ['tas']
    """
    told = (str({**v.attrs, **v.encoding}.get(name, "")) for v in ds.variables.values() for name in _NAMING)
    named = {word.rstrip(":") for text in told for word in text.split()}
    return [name for name, da in ds.data_vars.items() if da.dtype.kind in "biufc" and str(name) not in named]


def field_names(ds: xr.Dataset) -> list[Hashable]:
    """Return the data variables that are fields: numbers along both horizontal dims; see `numeric_names`.

    Raises
    ------
    GridError
        If no variable has horizontal dims.
    """
    numeric = numeric_names(ds)
    found = [name for name in numeric if _horizontal(ds[name])]
    if numeric and not found:
        find_axes(ds[max(numeric, key=lambda name: ds[name].ndim)])  # says what was looked for
    return found


def _horizontal(da: xr.DataArray) -> set[Hashable]:
    """Return the horizontal dims, none if they cannot be told."""
    try:
        names = find_axes(da)
    except GridError:
        return set()
    return {names.y, names.x}


def off_grid(ds: xr.Dataset) -> dict[Hashable, xr.Variable]:
    """Return the variables that no field carries and that have no horizontal dim: what holds on other cells too.

    A grid mapping and the bounds of times do, also where they are coordinates; the bounds of cells do not.
    """
    fields = [ds[name] for name in field_names(ds)]
    horizontal = {dim for da in fields for dim in _horizontal(da)}
    carried = {name for da in fields for name in da.coords}
    return {
        name: variable
        for name, variable in ds.variables.items()
        if name not in carried and not set(variable.dims) & horizontal
    }
