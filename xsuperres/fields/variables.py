"""The variables of a Dataset: which are fields, and which of the others go with fields on other cells.

Labelled arrays in, Fields out; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import xarray as xr

from xsuperres.errors import GridError
from xsuperres.fields.field import Field

__all__ = ["fields_of", "numeric_names", "off_grid"]

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


def fields_of(ds: xr.Dataset, *, gaps: bool = False) -> dict[Hashable, Field]:
    """Return the data variables that are fields: numbers along both horizontal dims; see `numeric_names`.

    Raises
    ------
    GridError
        If no variable has horizontal dims.
    """
    numeric = {name: Field(ds[name], gaps=gaps) for name in numeric_names(ds)}
    found = {name: field for name, field in numeric.items() if _is_horizontal(field)}
    if numeric and not found:
        _ = max(numeric.values(), key=lambda field: field.array.ndim).axes  # says what was looked for
    return found


def _is_horizontal(field: Field) -> bool:
    try:
        _ = field.axes
    except GridError:
        return False
    return True


def off_grid(ds: xr.Dataset, fields: Iterable[Field]) -> dict[Hashable, xr.Variable]:
    """Return the variables that no field carries and that have no horizontal dim: what holds on other cells too.

    A grid mapping and the bounds of times do, also where they are coordinates; the bounds of cells do not.

    Parameters
    ----------
    fields : iterable of Field
        Those of the Dataset.
    """
    fields = list(fields)
    horizontal = {dim for field in fields for dim in (field.axes.y, field.axes.x)}
    carried = {name for field in fields for name in field.array.coords}
    return {
        name: variable
        for name, variable in ds.variables.items()
        if name not in carried and not set(variable.dims) & horizontal
    }
