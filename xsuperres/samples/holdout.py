"""What is held out: blocks in time, a period, or a stretch of the domain to validate; a band to test.

Never random steps. Labelled arrays in; masks, or labelled arrays, out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, DataError
from xsuperres.fields.axes import stored_cells
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid

__all__ = ["Holdout", "cut_band", "hold_out", "whole_cells"]

_SPACE_SHARE = 0.15  # of the longer axis
_LARGEST_BLOCKS = 4


@dataclass(frozen=True)
class Holdout:
    """Masks of training and validation.

    Parameters
    ----------
    training, validation : ndarray of bool (fields,)
        Fields, ordered as `FieldBlocks` counts them.
    weight, validation_weight : ndarray (Y, X)
        1 for fine cells that count, else 0.
    kind : str
        For people: what was held out.
    """

    training: np.ndarray
    validation: np.ndarray
    weight: np.ndarray
    validation_weight: np.ndarray
    kind: str


def hold_out(field: Field, grid: Grid, validation: Any, *, scale: int, halo: int) -> Holdout:
    """Return the masks for ``fit(validation=...)``.

    Parameters
    ----------
    field : Field
        Whose dims outside the horizontal count samples.
    grid : Grid
        The fine grid.
    validation : float, slice, "space", xr.DataArray, xr.Dataset or None
        A fraction (up to four blocks at the ends of equal stretches of time), a period, a stretch of the longer
        horizontal axis at least `halo` coarse cells apart from training, other data, or nothing.

    Raises
    ------
    ConfigError, DataError
        If it is none of these, or leaves nothing to train on or to validate with.
    """
    da, dim = field.array, field.sample_dim
    count = int(da.sizes[dim]) if dim else 1
    empty = [str(name) for name, size in da.sizes.items() if size == 0]
    if empty:
        raise DataError(f"Dimension {empty[0]!r} has length 0: there is nothing to train on; check the selection.")
    every, ones = np.ones(count, bool), np.ones(grid.shape)
    fields = int(np.prod([da.sizes[d] for d in field.lead if d != dim], dtype=int))
    if isinstance(validation, str):
        if validation != "space":
            raise ConfigError(
                f"validation must be a fraction, a time slice, other data, 'space' or None, got {validation!r}."
            )
        training, held = _stretch(grid, scale, halo)
        everything = np.repeat(every, fields)
        return Holdout(everything, everything, training, held, f"held-out {_longer(grid)} stretch")
    if isinstance(validation, (xr.DataArray, xr.Dataset)) or validation is None or validation is False:
        kind = "other data" if isinstance(validation, (xr.DataArray, xr.Dataset)) else "none"
        return Holdout(np.repeat(every, fields), np.zeros(count * fields, bool), ones, ones, kind)
    chosen, kind = _times(da, dim, count, validation)
    if not chosen.any() or chosen.all():
        raise DataError(
            f"validation={validation!r} holds out {int(chosen.sum())} of {count} "
            + (f"steps along {dim!r}" if dim else "fields, for there is no time dimension")
            + "; use another period or fraction, validation='space', or validation=None."
        )
    return Holdout(np.repeat(~chosen, fields), np.repeat(chosen, fields), ones, ones, kind)


def cut_band(da: xr.DataArray, west: float, east: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the data outside and inside of the band ``west <= x < east``; longitudes are taken modulo a turn.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> rest, band = cut_band(xsr.testing.toy_field(time=1, y=8, x=8, periodic=True), -180, -90)
    >>> band.lon.values.tolist(), rest.lon.size
    ([202.5, 247.5], 6)
    """
    x = Field(da, gaps=True).grid.x
    offset = (x.centres - west) % 360.0 if x.kind == "longitude" else x.centres - west
    inside = np.zeros(x.size, bool)
    inside[np.arange(x.size)[x.order]] = (offset >= 0) & (offset < east - west)
    if not inside.any() or inside.all():
        raise DataError(f"The band {west:g} to {east:g} holds {inside.sum()} of {x.size} columns of {x.dim!r}.")
    return da.isel({x.dim: ~inside}), da.isel({x.dim: inside})


def whole_cells(da: xr.DataArray, scale: int) -> xr.DataArray:
    """Return the largest part of `da` that scale x scale cells tile: every connected stretch is cut at its end.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> dict(whole_cells(xsr.testing.toy_field(time=1, y=9, x=14), 4).sizes)
    {'time': 1, 'lat': 8, 'lon': 12}
    """
    grid, cells = Field(da, gaps=True).grid, {}
    for axis in (grid.y, grid.x):
        whole = [np.arange(p.start, p.stop - (p.stop - p.start) % scale) for p in axis.parts]
        cells[axis.dim] = np.sort(stored_cells(axis, np.concatenate(whole)))
    return da.isel(cells)


def _times(da: xr.DataArray, dim: str | None, count: int, validation: Any) -> tuple[np.ndarray, str]:
    if isinstance(validation, slice):
        if dim is None or dim not in da.coords:
            raise ConfigError(f"validation={validation!r} needs a time coordinate, the data have none.")
        positions = xr.DataArray(np.arange(count), dims=[dim], coords={dim: da.coords[dim].values}).sortby(dim)
        chosen = np.zeros(count, bool)
        try:
            chosen[positions.sel({dim: validation}).values] = True
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"validation={validation!r} is no period of {dim!r}: {error}.") from error
        return chosen, f"period {validation.start} to {validation.stop}"
    if isinstance(validation, bool) or not isinstance(validation, (int, float)) or not 0 < validation < 1:
        raise ConfigError(
            "validation must be a fraction between 0 and 1, a time slice, other data (a DataArray or Dataset), 'space' "
            "or None, "
            f"got {validation!r}."
        )
    return _end_steps(da, dim, count, validation), f"{validation:g} of time, in blocks"


def _end_steps(da: xr.DataArray, dim: str | None, count: int, fraction: float) -> np.ndarray:
    """Return a mask of steps in blocks; where times repeat, as in many forecasts of one day, all of a time or none."""
    if dim in da.indexes and not da.indexes[dim].is_unique:
        times, which = np.unique(da.coords[dim].values, return_inverse=True)
        if len(times) > 1:
            return _end_blocks(len(times), fraction)[which]
    return _end_blocks(count, fraction)


def _end_blocks(count: int, fraction: float) -> np.ndarray:
    """Return a mask of blocks at the ends of equal stretches, together `fraction` of all, at least one step."""
    held = min(max(1, round(fraction * count)), count - 1)
    blocks = min(_LARGEST_BLOCKS, max(1, held // 4))
    chosen = np.zeros(count, bool)
    ends = np.linspace(0, count, blocks + 1).round().astype(int)[1:]
    sizes = np.diff(np.linspace(0, held, blocks + 1).round().astype(int))
    for end, size in zip(ends, sizes, strict=True):
        chosen[end - size : end] = True
    return chosen


def _longer(grid: Grid) -> str:
    return grid.x.dim if grid.x.size >= grid.y.size else grid.y.dim


def _stretch(grid: Grid, scale: int, halo: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of training and validation cells (Y, X), a halo apart."""
    along_x = _longer(grid) == grid.x.dim
    axis = grid.x if along_x else grid.y
    cells = axis.size // scale
    held = max(1, round(_SPACE_SHARE * cells))
    if cells - held - halo * (2 if axis.periodic else 1) < cells // 3:
        raise DataError(
            f"validation='space' needs a wider domain: of {cells} coarse cells along {axis.dim!r}, {held} are held out "
            f"and {halo} must lie between; use a time validation, or a smaller network."
        )
    training, validation = np.ones(cells), np.zeros(cells)
    validation[-held:] = 1
    training[-held - halo :] = 0
    if axis.periodic:
        training[:halo] = 0
    fine = [np.repeat(line, scale) for line in (training, validation)]
    shape = (1, -1) if along_x else (-1, 1)
    planes = [np.broadcast_to(line.reshape(shape), grid.shape).copy() for line in fine]
    return planes[0], planes[1]
