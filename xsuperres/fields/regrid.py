"""Bring a field from its own rectilinear grid to another one: conservatively, or by linear interpolation.

Labelled arrays in and out, lazy. Everything is separable: one small weight matrix per axis, float64, whose rows are
the target's cells. The weight of a source cell is the product of both axes' weights; missing cells carry none, and
the rest is renormalised. Sums are float64 whatever the dtype, in an order that only the grids decide, so that
chunks, orientation and memory layout do not change a bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from xsuperres.config import DataConfig, check_choice
from xsuperres.errors import GridError
from xsuperres.fields.axes import SAME_CELL, Axis
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location

__all__ = ["NEAR", "covered", "linear_weights", "overlap_weights", "regrid"]

Method = Literal["conservative", "linear"]
Bands = tuple[np.ndarray, np.ndarray]

NEAR = 2.02  # times as coarse as the target, to rounding: what is averaged still, and not interpolated
_ROUNDING = 1e-9  # of a cell: what float64 arithmetic leaves between edges that are one
_SLAB = 2**18  # cells at a time: float64 copies stay in the processor's cache


def overlap_weights(source: Axis, target: Axis) -> np.ndarray:
    """Return first-order conservative weights: the share of each target cell that each source cell covers.

    Both axes are of one kind. Latitudes are measured by their sine, longitudes modulo a turn. A periodic source has no
    seam, and one whose outermost row leaves less than half a cell to a pole (Gaussian latitudes) reaches it.

    Returns
    -------
    ndarray (target.size, source.size)
        float64; a row sums to the covered share of its cell, 1 where all of it is covered.

    References
    ----------
    Jones (1999), First- and second-order conservative remapping schemes for grids in spherical coordinates,
    doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2

    Examples
    --------
    >>> cells = lambda *edges: Axis("x", "x", "other", np.convolve(edges, [0.5, 0.5], "valid"),
    ...                             np.array(edges[:-1]), np.array(edges[1:]))
    >>> overlap_weights(cells(0.0, 1.0, 2.0, 3.0), cells(0.0, 1.5, 4.0))
    array([[0.66666667, 0.33333333, 0.        ],
           [0.        , 0.2       , 0.4       ]])
    """
    source = _closed(source)
    low, high = _measure(target.lower, target)[:, None], _measure(target.upper, target)[:, None]
    shared = np.zeros((target.size, source.size))
    for lap in _laps(source, target):
        left = np.maximum(low, _measure(source.lower + lap, source))
        right = np.minimum(high, _measure(source.upper + lap, source))
        shared += np.clip(right - left, 0.0, None)
    weights = shared / (high - low)
    weights[weights < _ROUNDING] = 0.0  # or a missing neighbour would be felt
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)


def linear_weights(source: Axis, target: Axis) -> np.ndarray:
    """Return the weights of linear interpolation between source centres at the target centres.

    Both axes are of one kind. A periodic longitude wraps. Beyond the outermost centre, or beside a gap, but still
    inside a source cell, the nearest value is taken.

    Returns
    -------
    ndarray (target.size, source.size)
        float64; a row sums to 1 inside the source's cells (to a thousandth of one), to 0 outside.

    Examples
    --------
    >>> cells = lambda *edges: Axis("x", "x", "other", np.convolve(edges, [0.5, 0.5], "valid"),
    ...                             np.array(edges[:-1]), np.array(edges[1:]))
    >>> linear_weights(cells(0.0, 2.0, 4.0), cells(0.0, 1.0, 2.0, 6.0))
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.  , 1.  ]])
    """
    source = _closed(source)
    at, points, cells = target.centres, source.centres, np.arange(source.size)
    if source.kind == "longitude":
        middle = (source.lower[0] + source.upper[-1]) / 2
        at = at - 360.0 * np.round((at - middle) / 360.0)
    if source.periodic:
        points, cells = np.r_[points[-1] - 360.0, points, points[0] + 360.0], np.r_[cells[-1], cells, cells[0]]
    after = np.searchsorted(points, at)
    before, after = np.maximum(after - 1, 0), np.minimum(after, len(points) - 1)  # one cell beyond the ends
    width = points[after] - points[before]
    share = np.divide(at - points[before], width, out=np.zeros(target.size), where=width > 0)
    share = np.where(np.isin(after, source.breaks), np.round(share), share)  # an axis with breaks is not periodic
    weights, rows = np.zeros((target.size, source.size)), np.arange(target.size)
    np.add.at(weights, (rows, cells[before]), 1.0 - share)
    np.add.at(weights, (rows, cells[after]), share)
    slack = SAME_CELL * source.spacing
    within = (source.lower - slack <= at[:, None]) & (at[:, None] <= source.upper + slack)
    return weights * within.any(axis=1, keepdims=True)


def _closed(axis: Axis) -> Axis:
    """Return the axis with the seam of a circle closed, and with outermost rows that reach the pole they are next to.

    Of a circle of float32 longitudes both ends are inexact. Between the last Gaussian row and the pole there is
    room for no other row.
    """
    lower, upper = axis.lower.copy(), axis.upper.copy()
    if axis.periodic:
        seam = (lower[0] + 360.0 + upper[-1]) / 2
        lower[0], upper[-1] = seam - 360.0, seam
    elif axis.kind == "latitude":
        near = (0.5 - SAME_CELL) * (upper - lower)
        lower[0] = -90.0 if lower[0] + 90.0 < near[0] else lower[0]
        upper[-1] = 90.0 if 90.0 - upper[-1] < near[-1] else upper[-1]
    return replace(axis, lower=lower, upper=upper)


def _measure(edges: np.ndarray, axis: Axis) -> np.ndarray:
    return np.sin(np.deg2rad(edges)) if axis.kind == "latitude" else edges


def _laps(source: Axis, target: Axis) -> tuple[float, ...]:
    """Return the turns by which the source may have to be shifted to lie on the target."""
    if source.kind != "longitude":
        return (0.0,)
    nearest = np.round((target.lower[0] + target.upper[-1] - source.lower[0] - source.upper[-1]) / 720.0)
    return tuple(360.0 * (float(nearest) + lap) for lap in (-1, 0, 1))


def covered(source: Grid, target: Grid) -> bool:
    """Return whether every cell of `target` lies inside the domain of `source`, so that `regrid` would not extrapolate.

    To a thousandth of the cell, which is what float32 coordinates leave. Grids whose coordinates mean different things
    (latitudes and rotated latitudes, metres and kilometres, two poles) do not cover each other.

    Examples
    --------
    >>> from xsuperres.testing import toy_field
    >>> grid = Field(toy_field()).grid
    >>> covered(grid, grid.coarsen(4)), covered(Field(toy_field(x=8)).grid, grid.coarsen(4))
    (True, False)
    """
    return _objection(source, target) is None


def _objection(source: Grid, target: Grid) -> str | None:
    """Return what keeps a field from being brought to `target`, or None."""
    mismatch = target.mismatch(source)
    if mismatch is not None:
        return (
            f"The coordinates of the data are not those of the target grid: {mismatch}. Annotate them (standard_name, "
            "units, grid_mapping), or reproject the data."
        )
    if _same_cells(source, target) is not None:
        return None
    for ours, theirs in _pairs(source, target):
        if overlap_weights(ours, theirs).sum(axis=1).min() < 1.0 - SAME_CELL:
            have, want = (f"{axis.lower[0]:g} to {axis.upper[-1]:g}" for axis in (_closed(ours), theirs))
            return (
                f"The target grid reaches beyond the data along {ours.dim!r}: its cells run from {want}, those of the "
                f"data from {have}. Nothing is extrapolated in space: crop the target, or bring data that cover it."
            )
    return None


def _pairs(source: Grid, target: Grid) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
    return (source.y, target.y), (source.x, target.x)


def _same_cells(source: Grid, target: Grid) -> Location | None:
    """Return where the cells of `target` are cells of `source`, or None if they are not.

    The centres decide, as everywhere; bounds, when inferred, differ at the ends of uneven axes. Widths keep a lone
    wide cell from being taken for the narrow one at its centre.
    """
    location = source.locate(target)
    if location is None:
        return None
    for (ours, theirs), index in zip(_pairs(source, target), (location.rows, location.columns), strict=True):
        width = theirs.upper - theirs.lower
        if (np.abs((ours.upper - ours.lower)[index] - width) > 0.25 * width).any():
            return None
    return location


def regrid(field: Field, target: Grid, *, method: Method | None = None, minimum_valid_fraction: float = 0.5) -> Field:
    """Bring a field from its own grid to `target`, which lies within its domain.

    Parameters
    ----------
    field : Field
        Dims y and x and any others, in any order and orientation; float32 or float64; NaN is missing.
    target : Grid
        Latitudes and longitudes where the field has them, else the same rotated pole or projection, in the same units.
    method : {"conservative", "linear"}, optional
        Conservative: the mean over each target cell, weighted by the area that it shares with source cells. Linear:
        bilinear interpolation at the target's centres. By default conservative where the source is up to twice as
        coarse as the target along both axes, or finer, else linear: a block of a few cells is no field to learn from.
    minimum_valid_fraction : float
        Least valid fraction of a target cell's area (conservative); linear interpolation wants half the weight.

    Returns
    -------
    Field
        Dims in the order of the field, the horizontal ones with names, coordinates and orientation of `target`. Name,
        attributes, units, dtype and other coordinates are kept; `history` gains a line. Lazy if dask-backed, chunks
        along other dims kept. Where the target's cells are cells of the field, its values bit for bit.

    Raises
    ------
    GridError
        If axes are of another kind, if a target cell is not inside the domain of the field (see `covered`), or if
        another dimension or coordinate of it has the name of a horizontal one of the target.

    References
    ----------
    Conservative weights: Jones (1999), see `overlap_weights`.

    Examples
    --------
    >>> from xsuperres.testing import toy_field
    >>> field = Field(toy_field(time=2, y=8, x=12))
    >>> coarse = regrid(field, field.grid.coarsen(4)).array
    >>> coarse.shape, bool(np.allclose(coarse, field.array.sr.coarsen(4)))
    ((2, 2, 3), True)
    """
    check_choice("method of regridding", method, ("conservative", "linear", None))
    least = DataConfig(minimum_valid_fraction=minimum_valid_fraction).minimum_valid_fraction
    source = field.grid
    objection = _objection(source, target)
    if objection is not None:
        raise GridError(objection)
    bare = _bare(field.array, source, target)
    values = field.canonical()
    location = _same_cells(source, target)
    if location is not None:
        index = {source.y.dim: _stretch(location.rows), source.x.dim: _stretch(location.columns)}
        data, method_note = values.isel(index).copy().data, "selection of cells"
    else:
        method = method or _default_method(source, target)
        build, least = (overlap_weights, least) if method == "conservative" else (linear_weights, 0.5)
        rows, columns = (_bands(build(ours, theirs)) for ours, theirs in _pairs(source, target))
        data, method_note = _regrid_data(values.data, rows, columns, least, lazy=field.lazy), method
    # The target stands for both grids: `bare` has its dims, and its orientation is the one wanted.
    placed = Field(bare, axes=replace(field.axes, y=target.y.dim, x=target.x.dim), grid=target)
    return placed.labelled(data, target, note=f"regridding, {method_note}")


def _default_method(source: Grid, target: Grid) -> Method:
    near = all(ours.spacing <= theirs.spacing * NEAR for ours, theirs in _pairs(source, target))
    return "conservative" if near else "linear"


def _bare(da: xr.DataArray, source: Grid, target: Grid) -> xr.DataArray:
    """Return `da` without horizontal coordinates, its horizontal dims named like those of `target`."""
    bare = da.drop_vars([name for name, c in da.coords.items() if set(c.dims) & set(source.dims)])
    others = {*map(str, bare.coords), *map(str, da.dims)} - {*source.dims}
    clash = sorted(others & {*target.dims, target.y.name, target.x.name})
    if clash:
        raise GridError(
            f"{clash} of the data has the name of a horizontal coordinate of the target; rename or drop it."
        )
    return bare.rename(dict(zip(source.dims, target.dims, strict=True)))


def _stretch(index: np.ndarray) -> slice | np.ndarray:
    """Return consecutive indices as a slice, which leaves chunks alone."""
    return slice(int(index[0]), int(index[-1]) + 1) if (np.diff(index) == 1).all() else index


def _bands(weights: np.ndarray) -> Bands:
    """Return the source cells of each target cell and their weights, each (most, target), rows normalised.

    A row of the matrix is zero but for a few cells; shorter rows are padded with weights of zero.
    """
    most = int(np.count_nonzero(weights, axis=1).max())
    index = np.argsort(weights == 0.0, axis=1, kind="stable")[:, :most]
    shares = np.take_along_axis(weights, index, axis=1)
    return index.T, (shares / shares.sum(axis=1, keepdims=True)).T


def _regrid_data(data: Any, rows: Bands, columns: Bands, least: float, *, lazy: bool) -> Any:
    if not lazy:
        return _regrid_array(np.asarray(data), rows, columns, least)
    data = data.rechunk({data.ndim - 2: -1, data.ndim - 1: -1})
    return data.map_blocks(
        _regrid_array,
        rows,
        columns,
        least,
        chunks=(*data.chunks[:-2], (rows[0].shape[1],), (columns[0].shape[1],)),
        dtype=data.dtype,
        meta=np.empty((0,) * data.ndim, data.dtype),
    )


def _regrid_array(values: np.ndarray, rows: Bands, columns: Bands, least: float) -> np.ndarray:
    """Return `values` (..., y, x) on the target, NaN where less than `least` of the weight is valid."""
    planes = values.reshape(-1, *values.shape[-2:])
    out = np.empty((len(planes), rows[0].shape[1], columns[0].shape[1]), values.dtype)
    step = max(1, _SLAB // max(planes.shape[1] * planes.shape[2], out.shape[1] * out.shape[2]))
    for start in range(0, len(planes), step):
        out[start : start + step] = _regrid_slab(planes[start : start + step], rows, columns, least)
    return out.reshape(*values.shape[:-2], *out.shape[1:])


def _regrid_slab(planes: np.ndarray, rows: Bands, columns: Bands, least: float) -> np.ndarray:
    """Return some planes on the target, float64."""
    valid = np.isfinite(planes)
    sums = _contract(_contract(np.where(valid, planes, 0.0).astype(np.float64, order="C"), rows, 1), columns, 2)
    holed = ~valid.all(axis=(1, 2))  # each plane for itself, so that chunks change nothing
    if holed.any():
        mass = _contract(_contract(valid[holed].astype(np.float64, order="C"), rows, 1), columns, 2)
        enough = (mass > 0.0) & (mass >= least * (1.0 - _ROUNDING))
        sums[holed] = np.divide(sums[holed], mass, out=np.full(mass.shape, np.nan), where=enough)
    return sums


def _contract(values: np.ndarray, bands: Bands, axis: int) -> np.ndarray:
    """Return the product of (n, y, x) with a weight matrix along one axis, as a fixed sequence of sums."""
    shape = (-1, 1) if axis == 1 else (-1,)
    terms = (np.take(values, index, axis=axis) * share.reshape(shape) for index, share in zip(*bands, strict=True))
    total = next(terms)
    for term in terms:
        total += term
    return total
