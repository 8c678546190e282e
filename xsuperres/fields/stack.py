"""Several variables as one array: targets and predictors along an axis of their own, in canonical order.

Fields in, a labelled array out; lazy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import xarray as xr

from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid

__all__ = ["VARIABLE", "stack"]

VARIABLE = "xsuperres_variable"


def stack(fields: Sequence[Field], grid: Grid, lead: Sequence[str], sizes: Mapping[str, int]) -> xr.DataArray:
    """Return fields as one array (*lead, variable, y, x) in canonical order, without coordinates; lazy.

    Parameters
    ----------
    fields : sequence of Field
        On `grid`; one that lacks a leading dim is repeated along it.
    lead : sequence of str
        Leading dims.
    sizes : mapping of str to int
        Theirs.
    """
    planes = []
    for field in fields:
        bare = grid.canonical(field.array)
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
