"""Several variables as one array: targets and predictors along an axis of their own, in canonical order.

Labelled arrays in and out; lazy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.grid import Grid

__all__ = ["VARIABLE", "check_together", "stacked"]

VARIABLE = "xsuperres_variable"


def stacked(fields: Sequence[xr.DataArray], grid: Grid, lead: Sequence[str], sizes: Mapping[str, int]) -> xr.DataArray:
    """Return fields as one array (*lead, variable, y, x) in canonical order, without coordinates; lazy.

    Parameters
    ----------
    fields : sequence of DataArray
        On `grid`; one that lacks a leading dim is repeated along it.
    lead : sequence of str
        Leading dims.
    sizes : mapping of str to int
        Theirs.
    """
    planes = []
    for field in fields:
        bare = grid.canonical(field).variable
        missing = {dim: sizes[dim] for dim in lead if dim not in bare.dims}
        whole = bare.set_dims({**missing, **dict(zip(bare.dims, bare.shape, strict=True))})
        planes.append(whole.transpose(*lead, *grid.dims))
    order = (*lead, VARIABLE, *grid.dims)
    if len(planes) == 1:
        joined = planes[0].set_dims({VARIABLE: 1, **dict(zip(planes[0].dims, planes[0].shape, strict=True))})
    else:
        joined = xr.Variable.concat(planes, VARIABLE)
    joined = joined.transpose(*order)
    return xr.DataArray(joined.chunk({VARIABLE: -1}) if joined.chunks else joined)


def check_together(fields: Sequence[xr.DataArray]) -> None:
    """Refuse variables that do not share their dims and coordinates.

    Raises
    ------
    DataError
        With the first that differs.
    """
    first = fields[0]
    for other in fields[1:]:
        if set(other.dims) != set(first.dims):
            raise DataError(
                f"{other.name!r} has dims {tuple(map(str, other.dims))}, {first.name!r} has "
                f"{tuple(map(str, first.dims))}; the variables of one network share their dims."
            )
        try:
            xr.align(first, other, join="exact", copy=False)
        except ValueError as error:
            raise DataError(
                f"{other.name!r} and {first.name!r} lie on different coordinates ({error}); align them first."
            ) from error
