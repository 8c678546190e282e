"""The metrics: area-weighted, over the valid cells that all compared products share.

Numpy only. A metric names the partial sums that it is made of (`xsuperres.verify.sums`) and finishes them; metrics that
name the same partial share it. To add one that is made of means, name the number of each cell and what to do with the
means, which come in the order of `partials`:

    relative = AreaMean(of=lambda cells: abs(cells.error) / abs(cells.truth))
    METRICS.add("relative_error")(Metric("relative error", (relative,), lambda mean: mean))

One that needs other sums (counts of ranks, spectra) brings a `Partial` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from xsuperres.fields.grid import Grid
from xsuperres.fields.resample import coarsen_array
from xsuperres.registry import Registry
from xsuperres.verify.sums import AreaMean, Partial, ScoredCells

__all__ = ["METRICS", "Metric", "Moments", "gradient_amplitude"]

_ROUNDING = 1e-12  # of the mean square: what is less is no variance


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments(Partial):
    """Variance of the prediction and of the truth, and their covariance; a variance that is rounding is NaN.

    A contribution holds area, means, and sums of squares about these means, which are combined without a difference of
    large numbers.

    References
    ----------
    Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, doi:10.1080/00031305.1983.10483115
    """

    def chunk(self, cells: ScoredCells) -> np.ndarray:
        """Return area, mean prediction, mean truth, and the sums of squares: p p, t t, p t."""
        centres = [_middle(values) for values in (cells.prediction, cells.truth)]
        p, t = cells.prediction - centres[0], cells.truth - centres[1]
        (sum_p, area), (sum_t, _) = cells.sums(p), cells.sums(t)
        mean_p, mean_t = (_ratio(total, area, empty=0.0) for total in (sum_p, sum_t))
        squares = [
            cells.sums(a * b)[0] - total * mean
            for a, b, total, mean in ((p, p, sum_p, mean_p), (t, t, sum_t, mean_t), (p, t, sum_p, mean_t))
        ]
        return np.stack([area, centres[0] + mean_p, centres[1] + mean_t, *squares])

    def combine(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the moments of two blocks about the mean of both."""
        area = one[0] + other[0]
        share = _ratio(other[0], area, empty=0.0)
        p, t = other[1] - one[1], other[2] - one[2]
        between = one[0] * share * np.stack([p * p, t * t, p * t])
        return np.concatenate([[area, one[1] + p * share, one[2] + t * share], one[3:] + other[3:] + between])

    def finalize(self, total: np.ndarray) -> np.ndarray:
        """Return variance of the prediction, of the truth, and covariance: (3, product, region, *left)."""
        squares = _ratio(total[3:], np.broadcast_to(total[0], total[3:].shape))
        for variance, mean in zip(squares[:2], total[1:3], strict=True):
            variance[~(variance > _ROUNDING * (variance + mean**2))] = np.nan
        return squares


def _ratio(values: np.ndarray, by: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
    """Return values / by, and `empty` where that is not above 0."""
    return np.divide(values, by, out=np.full(values.shape, empty), where=by > 0)


def _middle(values: np.ndarray) -> float:
    """Return a number amid the values, about which squares are small."""
    mean = float(values.mean()) if values.size else 0.0
    if np.isnan(mean):
        present = values[~np.isnan(values)]
        mean = float(present.mean()) if present.size else 0.0
    return mean if np.isfinite(mean) else 0.0


@dataclass(frozen=True)
class Metric:
    """A metric and how it is labelled.

    Parameters
    ----------
    long_name : str
        For plots and tables.
    partials : tuple of Partial
        The sums it is made of.
    finish : callable
        From the finished partials, in this order, to the metric (product, region, *left).
    has_units : bool
        Whether it bears the variable's units; else it is a pure number.
    """

    long_name: str
    partials: tuple[Partial, ...]
    finish: Callable[..., np.ndarray]
    has_units: bool = False

    def __call__(self, totals: Mapping[Partial, np.ndarray]) -> np.ndarray:
        """Return the metric of finished partials, (product, region, *left)."""
        return self.finish(*(totals[partial] for partial in self.partials))


METRICS: Registry[Metric] = Registry("metric")


def gradient_amplitude(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the length of the horizontal gradient of every cell, per unit length of the unit sphere.

    Along each axis it is the root mean square of the differences to both neighbours, or to the one there is: a
    centred difference would not see the finest scale. Differences wrap on a periodic longitude and never reach across
    NaN. Lengths are cos(latitude) x longitude step and latitude step; coordinate steps on a projected grid.

    Parameters
    ----------
    values : ndarray (..., y, x)
        float64 in canonical order, on `grid`.

    Examples
    --------
    >>> import xarray as xr
    >>> from xsuperres.fields.grid import grid_of
    >>> slope = xr.DataArray([[0.0, 3.0], [4.0, 7.0]], coords={"y": [0.0, 1.0], "x": [0.0, 1.0]})
    >>> gradient_amplitude(slope.values, grid_of(slope))
    array([[5., 5.],
           [5., 5.]])
    """
    x, y = grid.x.centres, grid.y.centres
    east = np.diff(x, append=x[0] + 360.0) if grid.x.periodic else np.diff(x)
    north, parallel = np.diff(y), np.ones(grid.y.size)
    if (grid.y.kind, grid.x.kind) == ("latitude", "longitude"):
        east, north = np.deg2rad(east), np.deg2rad(north)
        parallel = grid.y.lengths() / np.deg2rad(grid.y.upper - grid.y.lower)  # mean cosine: not 0 at a pole
    square = _mean_square_slope(values, east, periodic=grid.x.periodic)
    square /= (parallel**2)[:, None]
    square += _mean_square_slope(values.swapaxes(-1, -2), north, periodic=False).swapaxes(-1, -2)
    return np.sqrt(square, out=square)


def _mean_square_slope(values: np.ndarray, steps: np.ndarray, *, periodic: bool) -> np.ndarray:
    """Return the mean of the squared differences per length to the two neighbours along the last axis."""
    square = np.diff(values, append=values[..., :1]) if periodic else np.diff(values)
    square /= steps
    square *= square
    missing = np.isnan(square)
    if missing.any():
        square[missing] = 0.0
        count = _of_both_sides((~missing).astype(np.float64), values)
        return _ratio(_of_both_sides(square, values), count)
    total = _of_both_sides(square, values)
    inner = total if periodic else total[..., 1:-1]
    inner *= 0.5
    return total


def _of_both_sides(between: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return for each cell the sum of what lies between it and its neighbours along the last axis; on a circle n of n.

    Examples
    --------
    >>> cells = np.zeros(3)
    >>> _of_both_sides(np.array([1.0, 2.0]), cells), _of_both_sides(np.array([1.0, 2.0, 4.0]), cells)
    (array([1., 3., 2.]), array([5., 3., 6.]))
    """
    total = np.zeros_like(cells)
    total[..., : between.shape[-1]] = between
    total[..., 1:] += between[..., : cells.shape[-1] - 1]
    if between.shape == cells.shape:
        total[..., 0] += between[..., -1]
    return total


def _square_excess(cells: ScoredCells) -> np.ndarray:
    """Return the squared difference of the re-coarsened prediction to the coarse input, on the fine cells."""
    scale = cells.domain.scale
    excess = coarsen_array(cells.prediction, cells.domain.area, scale) - cells.coarse
    return (excess**2).repeat(scale, axis=-2).repeat(scale, axis=-1)


def _same(mean: np.ndarray) -> np.ndarray:
    return mean


_ERROR = AreaMean(of=lambda cells: cells.error)
_SIZE = AreaMean(of=lambda cells: np.abs(cells.error))
_SQUARE = AreaMean(of=lambda cells: np.square(cells.error))
_MOMENTS = Moments()
_AMPLITUDE = AreaMean(of=lambda cells: gradient_amplitude(cells.prediction, cells.domain.grid))
_TRUE_AMPLITUDE = AreaMean(of=lambda cells: gradient_amplitude(cells.truth, cells.domain.grid), of_truth=True)
_EXCESS = AreaMean(of=_square_excess)

METRICS.add("rmse")(Metric("RMSE", (_SQUARE,), np.sqrt, has_units=True))
METRICS.add("mae")(Metric("MAE", (_SIZE,), _same, has_units=True))
METRICS.add("bias")(Metric("bias", (_ERROR,), _same, has_units=True))
METRICS.add("correlation", aliases=("pearson", "corr"))(
    Metric("correlation", (_MOMENTS,), lambda moments: moments[2] / np.sqrt(moments[0] * moments[1]))
)
METRICS.add("sd_ratio", aliases=("std_ratio",))(
    Metric("sd ratio", (_MOMENTS,), lambda moments: np.sqrt(moments[0] / moments[1]))
)
METRICS.add("gradient_ratio", aliases=("gradient",))(
    Metric("gradient ratio", (_AMPLITUDE, _TRUE_AMPLITUDE), lambda prediction, truth: _ratio(prediction, truth))
)
METRICS.add("consistency")(Metric("consistency", (_EXCESS,), np.sqrt, has_units=True))
