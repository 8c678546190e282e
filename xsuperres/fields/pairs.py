"""Explicit pairs of coarse and fine data: joined in time, brought onto one pair of grids.

Fields in and out; lazy but for a check on a sample of times.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, GridError, warn
from xsuperres.fields.axes import SAME_CELL, Axis, stored_cells, wrap_longitude
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import SAMPLES
from xsuperres.fields.grid import Grid, Location
from xsuperres.fields.matching import check_unique, in_step, matched
from xsuperres.fields.regrid import overlap_weights, regrid
from xsuperres.fields.resample import coarsen
from xsuperres.fields.steps import check_times, monthly, positions, sample_labels, text

__all__ = ["Paired", "covered_part", "paired", "ratio"]

logger = logging.getLogger(__name__)
_SYNCHRONOUS = 0.3  # least correlation of departures from the seasonal cycle
_SAMPLE = 120  # times that are looked at
_CHUNK = 2**24  # bytes of the steps of a truth that is repeated


@dataclass(frozen=True, eq=False)
class Paired:
    """Coarse and fine fields on the same times and on grids that fit.

    `margin` counts the coarse cells around the fine data (south, north, west, east) that are context: there the fine
    fields are NaN.
    """

    coarse: tuple[Field, ...]
    fine: tuple[Field, ...]
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)


def ratio(outer: Grid, inner: Grid) -> int:
    """Return how many fine cells a coarse cell spans along each axis.

    Raises
    ------
    GridError
        If it is not (nearly) one whole number of at least 2 on both axes, or the coordinates mean different things.
    """
    mismatch = inner.frame.mismatch(outer.frame)
    if mismatch is not None:
        raise GridError(f"The coordinates of the coarse data are not those of the target: {mismatch}.")
    found = [a.spacing / b.spacing for a, b in ((outer.y, inner.y), (outer.x, inner.x))]
    whole = [round(value) for value in found]
    if whole[0] != whole[1] or whole[0] < 2 or any(abs(f - w) > 0.02 * w for f, w in zip(found, whole, strict=True)):
        raise GridError(
            f"A cell of the coarse data ({outer.describe()}) spans {found[0]:.4g} x {found[1]:.4g} cells of the target "
            f"({inner.describe()}); expected the same whole number of at least 2 on both axes. Pass scale= and data on "
            "grids of that ratio."
        )
    return whole[0]


def paired(
    coarse: Sequence[Field],
    fine: Sequence[Field],
    scale: int,
    *,
    reach: int = 0,
    minimum_valid_fraction: float = 0.5,
) -> Paired:
    """Join coarse and fine fields.

    Parameters
    ----------
    coarse, fine : sequence of Field
        One pair per variable; fine ones may lack members, and are then the truth of each.
    scale : int
        Fine cells per coarse cell.
    reach : int
        Coarse cells beyond the fine domain that are kept as context, where there are any.
    minimum_valid_fraction : float
        Of the area of a block, where coarse data are brought onto blocks.

    Raises
    ------
    DataError
        If no time is common to both, or their dims and labels do not match; see `xsuperres.fields.matching`.
    GridError
        If the coarse data do not cover a block of fine cells.
    """
    coarse, fine = _joined(list(coarse), matched(coarse[0], fine))
    source, inner = coarse[0].grid, fine[0].grid
    cells = {
        axis.dim: np.sort(stored_cells(axis, _blocks(axis, outer, scale)))
        for axis, outer in ((inner.y, source.y), (inner.x, source.x))
    }
    fine = [Field(field.array.isel(cells), axes=field.axes) for field in fine]
    inner = fine[0].grid
    margin = _margin(inner, source, scale, reach)
    if any(margin):
        fine = [Field(_padded(field.array, inner, margin, scale), axes=field.axes) for field in fine]
    blocks = fine[0].grid.coarsen(scale)
    if source.locate(blocks) is None:
        logger.info("Coarse data (%s) are brought conservatively onto %s.", source.describe(), blocks.describe())
    coarse = [regrid(field, blocks, minimum_valid_fraction=minimum_valid_fraction) for field in coarse]
    for made, true in zip(coarse, fine, strict=True):
        _warn_unless_synchronous(made, true, scale)
    return Paired(tuple(coarse), tuple(fine), margin)


def covered_part(source: Grid, target: Grid) -> Grid:
    """Return the largest stretch of rows and columns of `target` that `source` covers, across no gap.

    A whole circle begins where that of `source` does.

    Raises
    ------
    GridError
        If there is none.
    """
    kept = []
    for outer, axis in ((source.y, target.y), (source.x, target.x)):
        covered = overlap_weights(outer, axis).sum(axis=1) >= 1 - SAME_CELL
        if not covered.any():
            raise GridError(f"The data ({source.describe()}) do not cover any cell of {target.describe()}.")
        kept.append(_stretch(covered, axis, outer.west))
    return target.crop(Location(*kept))


def _stretch(covered: np.ndarray, axis: Axis, west: float) -> np.ndarray:
    """Return the cells of the longest stretch that is covered, across no gap; on a circle across its seam."""
    if covered.all() and axis.periodic:
        first = np.argmin((axis.centres - west + SAME_CELL * axis.spacing) % 360.0)
        return (first + np.arange(axis.size)) % axis.size
    if axis.periodic:
        run = _longest(np.concatenate([covered, covered]))
        return np.arange(run.start, run.stop) % axis.size
    inside = [np.arange(part.start, part.stop)[_longest(covered[part])] for part in axis.parts if covered[part].any()]
    return max(inside, key=len)


def _axes(grid: Grid) -> list[tuple[str, Axis]]:
    return [(grid.y.dim, grid.y), (grid.x.dim, grid.x)]


def _joined(coarse: list[Field], fine: list[Field]) -> tuple[list[Field], list[Field]]:
    """Return the fields at the times that both have; a flattened forecast is joined with its valid times."""
    outer, inner = coarse[0].axes.time, fine[0].axes.time
    if outer not in coarse[0].lead or inner not in fine[0].lead or outer is None or inner is None:
        check_times(fine[0], coarse[0], what="The target")
        return coarse, fine
    labels = sample_labels(coarse[0], fine[0])
    if labels is None:
        return coarse, in_step(coarse[0], fine, outer, inner)
    if outer != SAMPLES:
        check_unique(*labels, outer)
    where = positions(labels[1], labels[0], inner, what="The target")
    own = np.flatnonzero(where >= 0)
    if not len(own):
        ends = [" to ".join(text(index[at]) for at in (0, -1)) for index in labels]
        raise DataError(
            f"No time is common to the coarse data ({ends[0]}) and the target ({ends[1]}); check periods, calendars "
            f"and hours{monthly(*labels)}."
        )
    if len(own) < len(where):
        logger.info("%d of %d coarse times have a target.", len(own), len(where))
    fine = [_selected(field, inner, where[own]) for field in fine]
    if inner != outer:
        fine = [f.with_array(f.array.drop_vars(outer, errors="ignore")).renamed(inner, outer) for f in fine]
    return [_selected(field, outer, own) for field in coarse], fine


def _selected(field: Field, dim: str, index: np.ndarray) -> Field:
    """Return some steps of a field; lazy where there are more of them than before, as of a truth for many leads."""
    da = field.array
    if np.array_equal(index, np.arange(da.sizes[dim])):
        return field
    if len(index) > da.sizes[dim] and not field.lazy:
        da = da.chunk({dim: max(1, _CHUNK * da.sizes[dim] // max(1, da.nbytes))})
    return field.with_array(da.isel({dim: index}))


def _blocks(inner: Axis, outer: Axis, scale: int) -> np.ndarray:
    """Return the canonical fine cells that make whole blocks, under coarse cells if possible, covered by them."""
    first = _offset(inner, outer, scale)
    count = (inner.size - first) // scale
    if not count:
        raise GridError(f"The target has {inner.size} cells along {inner.dim!r}, fewer than scale={scale}.")
    cells = first + np.arange(count * scale)
    blocks = inner.take(cells).coarsen(scale)
    covered = overlap_weights(outer, blocks).sum(axis=1) >= 1 - SAME_CELL
    if not covered.any():
        raise GridError(
            f"The coarse data do not cover the target along {inner.dim!r}: {outer.lower[0]:g} to {outer.upper[-1]:g} "
            f"against {inner.lower[0]:g} to {inner.upper[-1]:g}."
        )
    return cells.reshape(-1, scale)[_longest(covered)].ravel()


def _offset(inner: Axis, outer: Axis, scale: int) -> int:
    """Return the first fine cell of a block that is a coarse cell; 0 if none is."""
    for first in range(min(scale, inner.size - scale + 1)):
        groups = np.lib.stride_tricks.sliding_window_view(inner.centres[first:], scale)[::scale]
        gap = groups.mean(axis=1)[:, None] - outer.centres[None, :]
        gap = wrap_longitude(gap) if inner.kind == "longitude" else gap
        if (np.abs(gap) < SAME_CELL * outer.spacing).any():
            return first
    return 0


def _longest(covered: np.ndarray) -> slice:
    """Return the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], covered.astype(int), [0]])))
    runs = edges.reshape(-1, 2)
    start, stop = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    return slice(int(start), int(stop))


def _margin(inner: Grid, source: Grid, scale: int, reach: int) -> tuple[int, int, int, int]:
    """Return how many coarse cells of context there are beyond the fine grid, south, north, west and east."""
    flat = all(len(c.dims) == 1 for name, c in inner.coords.items() if name in ("lat", "lon"))
    if not reach or not flat:
        return 0, 0, 0, 0
    sides = []
    for axis, outer in ((inner.y, source.y), (inner.x, source.x)):
        blocks, most = axis.coarsen(scale), reach
        if axis.kind == "longitude":  # together no full turn
            most = min(reach, max(0, int(360.0 / blocks.spacing + SAME_CELL) - blocks.size - 1) // 2)
        for step in (-1, 1):
            sides.append(0 if axis.periodic else _context(blocks, outer, step, most))
    return sides[0], sides[1], sides[2], sides[3]


def _context(blocks: Axis, outer: Axis, step: int, reach: int) -> int:
    """Return how many more blocks on one side the coarse axis covers, at most `reach`."""
    low, high = blocks.lower.min(), blocks.upper.max()
    for count in range(reach):
        edge = low - (count + 1) * blocks.spacing if step < 0 else high + count * blocks.spacing
        centre, lower, upper = (np.array([edge + part * blocks.spacing]) for part in (0.5, 0.0, 1.0))
        beyond = Axis(blocks.dim, blocks.name, blocks.kind, centre, lower, upper)
        outside = blocks.kind == "latitude" and (edge < -90 - 1e-9 or edge + blocks.spacing > 90 + 1e-9)
        if outside or overlap_weights(outer, beyond).sum() < 1 - SAME_CELL:
            return count
    return reach


def _padded(da: xr.DataArray, grid: Grid, margin: tuple[int, int, int, int], scale: int) -> xr.DataArray:
    """Return a fine field with NaN, and coordinates that go on evenly, around it."""
    widths = {}
    for (dim, axis), (before, after) in zip(_axes(grid), (margin[:2], margin[2:]), strict=True):
        ends = (after, before) if axis.flipped else (before, after)
        widths[dim] = (ends[0] * scale, ends[1] * scale)
    statics = {n: c for n, c in da.coords.items() if set(c.dims) == set(grid.dims)}
    padded = da.drop_vars(list(statics)).pad(widths, constant_values=np.nan)
    for dim, axis in _axes(grid):
        step = -axis.spacing if axis.flipped else axis.spacing
        values = np.asarray(da[axis.name].values, dtype=np.float64)
        before, after = widths[dim]
        line = np.concatenate(
            [values[0] - step * np.arange(before, 0, -1), values, values[-1] + step * np.arange(1, after + 1)]
        )
        padded = padded.assign_coords({axis.name: (dim, line.astype(da[axis.name].dtype), da[axis.name].attrs)})
    planes = {name: c.variable.pad(widths, mode="edge") for name, c in statics.items()}
    return padded.assign_coords(planes)


def _warn_unless_synchronous(coarse: Field, fine: Field, scale: int) -> None:
    """Warn where coarse and target do not vary together: a free-running model is not the weather of its dates."""
    time, sizes = coarse.axes.time, coarse.array.sizes
    if time is None or time not in sizes or sizes[time] < 8:
        return
    every = np.unique(np.linspace(0, sizes[time] - 1, _SAMPLE).astype(int))
    made = coarse.array.isel({time: every})
    true = coarsen(fine.with_array(fine.array.isel({time: every})), scale).array
    lead = [dim for dim in made.dims if dim not in true.dims]
    made = made.isel(dict.fromkeys(lead, 0)).transpose(*true.dims)
    axis = true.get_axis_num(time)
    values = [_departures(np.asarray(da.values, np.float64), made, time, axis) for da in (made, true)]
    valid = np.isfinite(values[0]) & np.isfinite(values[1])
    if not valid.any():
        return  # one time per calendar month is all season
    a, b = (v[valid] - v[valid].mean() for v in values)
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    found = float((a * b).sum()) / size if size > 0 else 0.0
    if found < _SYNCHRONOUS:
        warn(
            f"{coarse.name!r} and the coarsened target correlate by {found:.2f} only, less the seasonal cycle: they "
            "seem not to be of the same weather (a free-running model?), and pairs of times teach nothing then. Train "
            "on the fine data alone (perfect prognosis) instead."
        )


def _departures(values: np.ndarray, da: xr.DataArray, time: str, axis: int) -> np.ndarray:
    """Return values less the mean of each cell and calendar month, NaN for months of a single time."""
    months = da[time].dt.month.values if hasattr(da[time], "dt") and da[time].dtype.kind in "MO" else None
    groups = np.zeros(da.sizes[time], int) if months is None else months
    out = np.full_like(values, np.nan)
    for month in np.unique(groups):
        chosen = groups == month
        if chosen.sum() < 2:
            continue
        index: list[Any] = [slice(None)] * values.ndim
        index[axis] = chosen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # cells without data
            out[tuple(index)] = values[tuple(index)] - np.nanmean(values[tuple(index)], axis=axis, keepdims=True)
    return out
