"""Predictors: other variables, brought to the coarse grid and the times of the data.

Labelled arrays in and out; lazy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.checks import check_values
from xsuperres.fields.forecasts import SAMPLES, TimeAxes, at_valid_times, positions, sample_labels
from xsuperres.fields.grid import Grid, find_axes
from xsuperres.fields.regrid import regrid
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
    if _is_series(da, names.time) and TimeAxes.of(like, own.time).forecast:
        da = at_valid_times(da, str(names.time), like, own.time)
    elif names.time is not None and own.time is not None and names.time != own.time:
        da = da.rename({names.time: own.time})
    lead = [dim for dim in da.dims if dim not in (names.y, names.x)]
    extra = [str(dim) for dim in lead if dim not in like.dims]
    if extra:
        raise DataError(f"Predictor {da.name!r} has dims {extra} that the data lack; select or average them.")
    for dim in lead:
        da = _at(da, str(dim), like)
    return regrid(da, coarse, minimum_valid_fraction=minimum_valid_fraction)


def _is_series(da: xr.DataArray, time: str | None) -> bool:
    """Return whether the times of `da` are valid times, and no initial ones."""
    axes = TimeAxes.of(da, time)
    if axes.forecast or axes.along is None or axes.valid is None or axes.valid.dims != (axes.along,):
        return False
    own = da.coords.get(axes.along)
    initial = own is not None and own.attrs.get("standard_name") == "forecast_reference_time"
    return not (initial and own is not None and own.variable.equals(axes.valid))


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
            f"Predictor {da.name!r} lacks {len(lost)} of {len(wanted)} values of {dim!r}, the first {lost[0]}; it must "
            "cover those of the data."
        )
    return da if np.array_equal(where, np.arange(len(index))) else da.isel({dim: where})
