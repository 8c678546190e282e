"""Predictors: other variables, brought to the coarse grid and the times of the data.

Labelled arrays in, Fields out; lazy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.checks import check_values
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import SAMPLES
from xsuperres.fields.grid import Grid
from xsuperres.fields.regrid import regrid
from xsuperres.fields.steps import (
    at_valid_times,
    check_times,
    is_series,
    monthly,
    off_label,
    positions,
    sample_labels,
    text,
)
from xsuperres.fields.variables import numeric_names

__all__ = ["PredictorsLike", "named_predictors", "on_coarse"]

PredictorsLike = xr.Dataset | xr.DataArray | Sequence[xr.Dataset | xr.DataArray]


def named_predictors(predictors: PredictorsLike | None) -> dict[str, Field]:
    """Return the fields of ``predictors=`` by name.

    Raises
    ------
    DataError
        If one has no name, or a name comes twice.
    """
    parts = [predictors] if isinstance(predictors, (xr.Dataset, xr.DataArray)) else list(predictors or ())
    fields: dict[str, Field] = {}
    for part in parts:
        if not isinstance(part, (xr.Dataset, xr.DataArray)):
            raise DataError(f"predictors= takes Datasets and DataArrays, got {type(part).__name__}.")
        for da in [part[name] for name in numeric_names(part)] if isinstance(part, xr.Dataset) else [part]:
            if da.name is None or str(da.name) in fields:
                raise DataError(f"Predictors need names of their own, got {da.name!r}; use .rename(...).")
            fields[str(da.name)] = Field(da)
    return fields


def on_coarse(field: Field, coarse: Grid, like: Field, minimum_valid_fraction: float = 0.5) -> Field:
    """Return a predictor on the coarse grid, at the times of `like`; lazy if dask-backed.

    Parameters
    ----------
    field : Field
        On any grid that covers the coarse one: the same cells are taken as they are, finer ones and those up to twice
        as coarse averaged conservatively, as the fields themselves are, coarser ones interpolated. Dims other than
        horizontal ones are those of `like`, or fewer.
    minimum_valid_fraction : float
        Of the area of a coarse cell, where cells are averaged.

    Raises
    ------
    DataError
        If times or other coordinates of `like` are missing.
    GridError
        If it does not cover the coarse grid.
    """
    check_values(field.array)
    time, joined = like.axes.time, False
    if is_series(field) and off_label(like):
        field, joined = at_valid_times(field, like), True
    elif field.axes.time is not None and time is not None and field.axes.time != time:
        field = field.renamed(field.axes.time, time)
    name = field.name
    extra = [dim for dim in field.lead if dim not in like.array.dims]
    if extra:
        raise DataError(f"Predictor {name!r} has dims {extra} that the data lack; select or average them.")
    done = like.times.valid.dims if joined and like.times.valid is not None else ()
    for dim in field.lead:
        field = field if dim in done else _at(field, dim, like)
    if not joined:
        check_times(field, like, what=f"Predictor {name!r}")
    return regrid(field, coarse, minimum_valid_fraction=minimum_valid_fraction)


def _at(field: Field, dim: str, like: Field) -> Field:
    """Return a field at the coordinate values of `like` along `dim`."""
    name, da = field.name, field.array
    if dim == SAMPLES:
        labels = sample_labels(like, field)
    else:
        indexed = dim in like.array.coords and dim in da.coords
        labels = (like.array.indexes[dim], da.indexes[dim]) if indexed else None
    if labels is None:
        if da.sizes[dim] != like.array.sizes[dim]:
            raise DataError(
                f"Predictor {name!r} has {da.sizes[dim]} steps along {dim!r}, the data {like.array.sizes[dim]}; give "
                "both coordinates."
            )
        return field
    wanted, index = labels
    where = positions(index, wanted, dim, what=f"Predictor {name!r}")
    if (where < 0).any():
        lost = wanted[where < 0]
        raise DataError(
            f"Predictor {name!r} lacks {len(lost)} of {len(wanted)} values of {dim!r}, the first {text(lost[0])}; "
            f"it must cover those of the data{monthly(index, wanted)}."
        )
    return field if np.array_equal(where, np.arange(len(index))) else field.with_array(da.isel({dim: where}))
