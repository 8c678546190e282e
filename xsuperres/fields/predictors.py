"""Predictors: other variables, brought to the coarse grid and the times of the data.

Labelled arrays in and out; lazy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.checks import check_values
from xsuperres.fields.forecasts import SAMPLES, TimeAxes
from xsuperres.fields.grid import Grid, find_axes
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


def named_predictors(given: PredictorsLike | None) -> dict[str, xr.DataArray]:
    """Return the fields of ``predictors=`` by name.

    Raises
    ------
    DataError
        If one has no name, or a name comes twice.
    """
    parts = [given] if isinstance(given, (xr.Dataset, xr.DataArray)) else list(given or ())
    found: dict[str, xr.DataArray] = {}
    for part in parts:
        if not isinstance(part, (xr.Dataset, xr.DataArray)):
            raise DataError(f"predictors= takes Datasets and DataArrays, got {type(part).__name__}.")
        fields = [part[name] for name in numeric_names(part)] if isinstance(part, xr.Dataset) else [part]
        for da in fields:
            if da.name is None or str(da.name) in found:
                raise DataError(f"Predictors need names of their own, got {da.name!r}; use .rename(...).")
            found[str(da.name)] = da
    return found


def on_coarse(da: xr.DataArray, coarse: Grid, like: xr.DataArray, minimum_valid_fraction: float = 0.5) -> xr.DataArray:
    """Return a predictor on the coarse grid, at the times of `like`; lazy if dask-backed.

    Parameters
    ----------
    da : DataArray
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
    check_values(da)
    names, own = find_axes(da), find_axes(like)
    axes, joined = TimeAxes.of(like, own.time), False
    if is_series(da, names.time) and off_label(like, axes):
        da, joined = at_valid_times(da, str(names.time), like, own.time), True
    elif names.time is not None and own.time is not None and names.time != own.time:
        da = da.rename({names.time: own.time})
    lead = [str(dim) for dim in da.dims if dim not in (names.y, names.x)]
    extra = [dim for dim in lead if dim not in like.dims]
    if extra:
        raise DataError(f"Predictor {da.name!r} has dims {extra} that the data lack; select or average them.")
    done = axes.valid.dims if joined and axes.valid is not None else ()
    for dim in lead:
        da = da if dim in done else _at(da, dim, like)
    if not joined:
        check_times(da, own.time, like, own.time, what=f"Predictor {da.name!r}")
    return regrid(da, coarse, minimum_valid_fraction=minimum_valid_fraction)


def _at(da: xr.DataArray, dim: str, like: xr.DataArray) -> xr.DataArray:
    """Return `da` at the coordinate values of `like` along `dim`."""
    if dim == SAMPLES:
        labels = sample_labels(like, dim, da, dim)
    else:
        labels = (like.indexes[dim], da.indexes[dim]) if dim in like.coords and dim in da.coords else None
    if labels is None:
        if da.sizes[dim] != like.sizes[dim]:
            raise DataError(
                f"Predictor {da.name!r} has {da.sizes[dim]} steps along {dim!r}, the data {like.sizes[dim]}; give both "
                "coordinates."
            )
        return da
    wanted, index = labels
    where = positions(index, wanted, dim, what=f"Predictor {da.name!r}")
    if (where < 0).any():
        lost = wanted[where < 0]
        raise DataError(
            f"Predictor {da.name!r} lacks {len(lost)} of {len(wanted)} values of {dim!r}, the first {text(lost[0])}; "
            f"it must cover those of the data{monthly(index, wanted)}."
        )
    return da if np.array_equal(where, np.arange(len(index))) else da.isel({dim: where})
