"""The metrics: area-weighted, over the valid cells that all compared methods share.

Labelled arrays in and out, on one grid, dims (..., y, x) in canonical order; lazy. A `Pair` holds one method and
the truth; every metric is a function of a Pair, made of weighted means over the reduced dims. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid
from xsuperres.fields.resample import coarsen, interpolate
from xsuperres.registry import Registry

__all__ = ["METRICS", "Metric", "Pair", "gradient_amplitude", "recoarsened", "weighted_mean"]


def weighted_mean(field: xr.DataArray, weights: xr.DataArray, dims: tuple[Hashable, ...]) -> xr.DataArray:
    """Return the mean of the valid cells of `field` over `dims`, NaN where there is none; lazy if dask-backed.

    Parameters
    ----------
    field : DataArray (..., y, x)
        NaN is missing.
    weights : DataArray ([region], y, x)
        Cell areas; 0 outside a region. Dims that `field` lacks stay in the result.
    dims : tuple of str
        Dims of `field` to average over.

    Examples
    --------
    >>> field = xr.DataArray([[1.0, np.nan], [4.0, 2.0]], dims=("y", "x"))
    >>> area = xr.DataArray([[1.0, 1.0], [2.0, 1.0]], dims=("y", "x"))
    >>> float(weighted_mean(field, area, ("y", "x")))
    2.75
    """
    valid = field.notnull()
    plain = [dim for dim in dims if dim not in weights.dims]  # cheaper to sum up before weights come in
    total = field.where(valid, 0.0).sum(plain, dtype=np.float64)
    count = valid.sum(plain, dtype=np.float64)
    plane = [dim for dim in dims if dim in weights.dims]
    covered = _dot(count, weights, plane)
    return _dot(total, weights, plane) / covered.where(covered > 0)


def _dot(field: xr.DataArray, weights: xr.DataArray, dims: list[Hashable]) -> xr.DataArray:
    return xr.dot(field, weights, dim=dims, optimize=True) if dims else field * weights


@dataclass(frozen=True, eq=False)
class Pair:
    """One method's field beside the truth.

    Parameters
    ----------
    prediction, truth : DataArray (..., y, x)
        float64 on `grid`, in canonical order, NaN in the same cells.
    weights : DataArray (region, y, x)
        Cell areas; 0 outside the region.
    grid : Grid
        Of both.
    dims : tuple of str
        Dims to reduce over.
    scale : int
        Fine cells per coarse cell along each axis.
    coarse : DataArray (..., y, x) or None
        The coarse input, each cell repeated over its fine cells.
    """

    prediction: xr.DataArray
    truth: xr.DataArray
    weights: xr.DataArray
    grid: Grid
    dims: tuple[Hashable, ...]
    scale: int = 1
    coarse: xr.DataArray | None = None

    def mean(self, field: xr.DataArray) -> xr.DataArray:
        """Return the area-weighted mean of a field over the reduced dims."""
        return weighted_mean(field, self.weights, self.dims)

    @cached_property
    def error(self) -> xr.DataArray:
        """Prediction minus truth."""
        return self.prediction - self.truth

    @cached_property
    def moments(self) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
        """Variance of the prediction, of the truth, and their covariance; NaN where one does not vary."""
        p, t = self.prediction, self.truth
        mean_p, mean_t = self.mean(p), self.mean(t)
        squares = ((self.mean(p * p), mean_p**2), (self.mean(t * t), mean_t**2))
        # A difference below rounding of its terms is no variance.
        var_p, var_t = ((a - b).where(a - b > 1e-12 * a) for a, b in squares)
        return var_p, var_t, self.mean(p * t) - mean_p * mean_t


@dataclass(frozen=True)
class Metric:
    """A metric and how it is labelled.

    Parameters
    ----------
    function : callable
        From a `Pair` to a DataArray of the dims that are left.
    long_name : str
        For plots and tables.
    has_units : bool
        Whether it bears the variable's units; else it is a pure number.
    """

    function: Callable[[Pair], xr.DataArray]
    long_name: str
    has_units: bool = False

    def __call__(self, pair: Pair) -> xr.DataArray:
        """Return the metric of `pair`."""
        return self.function(pair)


METRICS: Registry[Metric] = Registry("metric")


def _metric(
    name: str, long_name: str, *, has_units: bool = False, aliases: tuple[str, ...] = ()
) -> Callable[[Callable[[Pair], xr.DataArray]], Callable[[Pair], xr.DataArray]]:
    """Return a decorator that registers a function of a Pair."""

    def register(function: Callable[[Pair], xr.DataArray]) -> Callable[[Pair], xr.DataArray]:
        METRICS.add(name, aliases=aliases)(Metric(function, long_name, has_units))
        return function

    return register


@_metric("rmse", "RMSE", has_units=True)
def _rmse(pair: Pair) -> xr.DataArray:
    return pair.mean(pair.error**2) ** 0.5


@_metric("mae", "MAE", has_units=True)
def _mae(pair: Pair) -> xr.DataArray:
    return pair.mean(abs(pair.error))


@_metric("bias", "bias", has_units=True)
def _bias(pair: Pair) -> xr.DataArray:
    return pair.mean(pair.error)


@_metric("correlation", "correlation", aliases=("pearson", "corr"))
def _correlation(pair: Pair) -> xr.DataArray:
    var_p, var_t, covariance = pair.moments
    return covariance / (var_p * var_t) ** 0.5


@_metric("sd_ratio", "sd ratio", aliases=("std_ratio",))
def _sd_ratio(pair: Pair) -> xr.DataArray:
    var_p, var_t, _ = pair.moments
    return (var_p / var_t) ** 0.5


@_metric("gradient_ratio", "gradient ratio", aliases=("gradient",))
def _gradient_ratio(pair: Pair) -> xr.DataArray:
    amplitudes = [pair.mean(gradient_amplitude(f, pair.grid)) for f in (pair.prediction, pair.truth)]
    return amplitudes[0] / amplitudes[1].where(amplitudes[1] > 0)


@_metric("consistency", "consistency", has_units=True)
def _consistency(pair: Pair) -> xr.DataArray:
    if pair.coarse is None:
        return pair.mean(pair.error) * np.nan
    excess = recoarsened(pair.prediction, pair.grid, pair.scale) - pair.coarse
    return pair.mean((excess**2).where(pair.error.notnull())) ** 0.5


def gradient_amplitude(field: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Return the length of the horizontal gradient of every cell, per unit length of the unit sphere; lazy.

    Along each axis it is the root mean square of the differences to both neighbours, or to the one there is: a
    centred difference would not see the finest scale. Differences wrap on a periodic longitude and never reach across
    NaN. Lengths are cos(latitude) x longitude step and latitude step; coordinate steps on a projected grid.

    Parameters
    ----------
    field : DataArray (..., y, x)
        In canonical order, on `grid`.

    Examples
    --------
    >>> from xsuperres.fields.grid import grid_of
    >>> slope = xr.DataArray([[0.0, 3.0], [4.0, 7.0]], coords={"y": [0.0, 1.0], "x": [0.0, 1.0]})
    >>> gradient_amplitude(slope.drop_vars(["y", "x"]), grid_of(slope)).values
    array([[5., 5.],
           [5., 5.]])
    """
    east, north = _steps(grid)
    x = _mean_square(field, grid.x.dim, east, periodic=grid.x.periodic)
    y = _mean_square(field, grid.y.dim, north, periodic=False)
    return (x + y) ** 0.5


def _steps(grid: Grid) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the distance from each cell's centre to the next one's, eastward (y, x) and northward (y)."""
    x, y = grid.x.centres, grid.y.centres
    east = np.append(np.diff(x), x[0] + 360.0 - x[-1] if grid.x.periodic else np.nan)
    north = np.append(np.diff(y), np.nan)
    parallel = np.ones(grid.y.size)
    if (grid.y.kind, grid.x.kind) == ("latitude", "longitude"):
        east, north = np.deg2rad(east), np.deg2rad(north)
        parallel = grid.y.lengths() / np.deg2rad(grid.y.upper - grid.y.lower)  # mean cosine: not 0 at a pole
    return xr.DataArray(parallel[:, None] * east, dims=grid.dims), xr.DataArray(north, dims=grid.y.dim)


def _mean_square(field: xr.DataArray, dim: str, step: xr.DataArray, *, periodic: bool) -> xr.DataArray:
    """Return the mean of the squared differences per length to the two neighbours along `dim`."""
    following = field.roll({dim: -1}, roll_coords=False) if periodic else field.shift({dim: -1})
    ahead = ((following - field) / step) ** 2
    behind = ahead.roll({dim: 1}, roll_coords=False) if periodic else ahead.shift({dim: 1})
    return ahead.where(behind.isnull(), behind.where(ahead.isnull(), (ahead + behind) / 2))


def recoarsened(field: xr.DataArray, grid: Grid, scale: int) -> xr.DataArray:
    """Return the area-weighted coarse means of `field`, each repeated over its fine cells; lazy.

    Parameters
    ----------
    field : DataArray (..., y, x)
        In canonical order, on `grid`; a coarse cell is NaN where less than half its area is valid.
    """
    lines = grid.coords[[name for name, c in grid.coords.variables.items() if c.ndim == 1]]
    labelled = field.assign_coords(lines.coords)
    means = coarsen(Field(labelled), scale)
    repeated = interpolate(means, scale, method="nearest", like=labelled).array
    return repeated.drop_vars(list(repeated.coords)).transpose(*field.dims)
