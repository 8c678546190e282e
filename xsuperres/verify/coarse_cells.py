"""The coarse cells of a scored field, and coarse data on them, regridded as `downscale` does.

Fields in, canonical arrays out; lazy. A coarse cell is a group of scale x scale cells of the scored field, and coarse
values are in the order of these groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.errors import GridError
from xsuperres.fields.axes import Axis
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location, named_like
from xsuperres.fields.regrid import NEAR, covered, regrid
from xsuperres.model.artefact import SRModel

__all__ = ["REGRIDDED", "CoarseCells", "on_coarse_cells", "scale_between"]

REGRIDDED = "coarse was regridded conservatively onto the coarse cells of the scored field"


class CoarseCells(NamedTuple):
    """Canonical values (..., Y, X) of the coarse cells of a fine grid, and whether they cover a full circle.

    No values: they are the coarsening of the truth.
    """

    values: xr.Variable | None
    periodic: bool


def on_coarse_cells(
    coarse: Field, grid: Grid, scale: int, model: SRModel | None, *, regridded: bool
) -> tuple[CoarseCells, list[str]]:
    """Return coarse data on the coarse cells of a scored field, and notes for the table.

    Parameters
    ----------
    coarse : Field
        On these cells, on more of the same, or on others up to twice as fine or coarse that cover them.
    grid : Grid
        That of the scored field.
    scale : int
        Fine cells per coarse cell along each axis.
    model : SRModel or None
        Its coarse cells and its valid fraction count where the field lies on its domain.
    regridded : bool
        Whether the scored field says that it comes from data on other cells.

    Returns
    -------
    CoarseCells, list of str
        Lazy if dask-backed.

    Raises
    ------
    GridError
        If the data do not cover the cells, or are of another scale, or the scored field begins or ends inside a cell.
    """
    groups = _groups_of(grid, coarse.grid, scale)
    if groups is not None:
        return _in_order(coarse, groups), []
    if not regridded:
        _check_scale(coarse.grid, grid, scale)
    wanted = named_like(_cells_of(grid, coarse.grid, scale, model), grid)
    axes = ((coarse.grid.y, wanted.y), (coarse.grid.x, wanted.x))
    near = all(1 / NEAR <= theirs.spacing / ours.spacing <= NEAR for theirs, ours in axes)
    if not near or not covered(coarse.grid, wanted):
        why = wanted.mismatch(coarse.grid)
        raise GridError(
            f"coarse does not cover the scored field with cells of about its scale: expected {wanted.describe()}, or "
            f"what contains them, got {coarse.grid.describe()}{'' if why is None else ': ' + why}. Pass the data that "
            "were downscaled, and cut field and truth to the area that they cover."
        )
    least = (DataConfig() if model is None else model.data).minimum_valid_fraction
    placed = regrid(coarse, wanted, minimum_valid_fraction=least)
    notes = [] if coarse.grid.locate(wanted) is not None else [REGRIDDED]
    return CoarseCells(placed.canonical(), wanted.x.periodic), notes


def scale_between(fine: Grid, coarse: Field) -> tuple[int, CoarseCells]:
    """Return how many fine cells make a coarse one along each axis, and the coarse data in the order of the groups.

    Raises
    ------
    GridError
        If the coarse cells are not whole groups of the fine ones, over the same domain.
    """
    ratios = {divmod(a, b) for a, b in zip(fine.shape, coarse.grid.shape, strict=True)}
    scale, rest = ratios.pop()
    if ratios or rest or scale < 2:
        raise GridError(
            f"coarse does not cover the domain of the scored field cell by cell: expected {fine.shape} to be the same "
            f"multiple, at least 2, of the coarse sizes along both axes, got {coarse.grid.shape}; cut both to one "
            "domain."
        )
    groups = _groups_of(fine, coarse.grid, scale)
    if groups is None:
        raise GridError(
            f"coarse lies on other cells: expected groups of {scale} x {scale} cells of {fine.describe()}, got "
            f"{coarse.grid.describe()}. Cut both to the same domain first (on a full circle: start at the same cell)."
        )
    return scale, _in_order(coarse, groups)


def _groups_of(fine: Grid, coarse: Grid, scale: int) -> Location | None:
    """Return which group of scale x scale cells of `fine` each coarse cell is, if both are of one domain; else None."""
    if (coarse.y.size * scale, coarse.x.size * scale) != fine.shape:
        return None
    groups = fine.coarsen(scale).locate(coarse)
    parts = fine.locate(coarse.refine(scale)) if groups is None else None
    if parts is not None and not (parts.rows[0] % scale or parts.columns[0] % scale):
        return Location(parts.rows[::scale] // scale, parts.columns[::scale] // scale)
    return groups


def _in_order(coarse: Field, groups: Location) -> CoarseCells:
    """Return the values of the coarse cells in the order of the groups that they are."""
    values = coarse.canonical()
    if groups.columns[0]:  # a circle that begins elsewhere
        values = values.isel({coarse.grid.x.dim: np.argsort(groups.columns)})
    return CoarseCells(values, coarse.grid.x.periodic)


def _check_scale(coarse: Grid, grid: Grid, scale: int) -> None:
    """Refuse coarse cells that are groups of the scored cells of another size: such a field is not of other cells."""
    along_y, along_x = round(coarse.y.spacing / grid.y.spacing), round(coarse.x.spacing / grid.x.spacing)
    if along_y == along_x and along_y not in (0, scale) and grid.locate(coarse, along_y):
        raise GridError(
            f"coarse: expected cells of {scale} x {scale} fine ones, as the scored field has them, got "
            f"{along_y} x {along_y}."
        )


def _cells_of(grid: Grid, coarse: Grid, scale: int, model: SRModel | None) -> Grid:
    """Return the coarse cells of a grid: the model's if it lies on its domain, else those of the data, else its groups.

    Cells of the model or of the data must be whole.
    """
    known = [] if model is None or model.scale != scale else [(model.grid, model.coarse_grid)]
    for fine, cells in [*known, (coarse.refine(scale), coarse)]:
        location = fine.locate(grid)
        if location is not None:
            _check_whole(grid, location, scale)
            return cells.crop(Location(location.rows[::scale] // scale, location.columns[::scale] // scale))
    return grid.coarsen(scale)


def _check_whole(grid: Grid, location: Location, scale: int) -> None:
    """Refuse a field that begins or ends inside a coarse cell."""
    lines = ((grid.y, location.rows), (grid.x, location.columns))
    if any(index[0] % scale or len(index) % scale for _, index in lines):
        crop = ", ".join(_crop(axis, int(index[0]), scale) for axis, index in lines)
        raise GridError(
            "The scored field begins or ends inside a coarse cell, so that coarse= cannot be compared with it; cut "
            f"field and truth to whole coarse cells of {scale} x {scale}: .isel({crop})."
        )


def _crop(axis: Axis, first: int, scale: int) -> str:
    """Return the slice of whole coarse cells along an axis, in its stored orientation."""
    start = -first % scale
    stop = start + (axis.size - start) // scale * scale
    if axis.flipped:
        start, stop = axis.size - stop, axis.size - start
    return f"{axis.dim}=slice({start}, {stop})"
