"""The coarse cells that a scored field was made of, and coarse data brought onto them as `downscale` did.

Fields in, canonical arrays out; lazy. A coarse cell is a group of scale x scale cells of the scored field, and coarse
cells are in the order of these groups.
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

REGRIDDED = "coarse was brought conservatively onto the blocks of the scored cells"


class CoarseCells(NamedTuple):
    """The coarse cells of a fine grid: canonical values (..., Y, X), and whether they cover a full circle.

    Without values they are the coarsening of the truth.
    """

    values: xr.Variable | None
    periodic: bool


def on_coarse_cells(
    coarse: Field, grid: Grid, scale: int, model: SRModel | None, *, regridded: bool
) -> tuple[CoarseCells, list[str]]:
    """Return coarse data on the coarse cells of a scored field, and what is to be said of it.

    Parameters
    ----------
    coarse : Field
        On these cells, on more of the same, or on others up to twice as fine or coarse that cover them.
    grid : Grid
        That of the scored field.
    scale : int
        Fine cells per coarse cell along each axis.
    model : SRModel or None
        Its coarse cells and valid fraction count where the field lies on its domain.
    regridded : bool
        Whether the field is known to have been made from data on other cells.

    Returns
    -------
    CoarseCells, list of str
        In the order of the groups of fine cells, lazy if dask-backed; notes.

    Raises
    ------
    GridError
        If the data do not cover the cells, or are of another scale, or the scored field begins or ends inside a cell.
    """
    own = coarse.grid
    location = _groups_of(grid, own, scale)
    if location is not None:
        return _in_order(coarse, location), []
    if not regridded:
        _check_scale(own, grid, scale)
    wanted = named_like(_cells_of(own, grid, scale, model), grid)
    pairs = [(own.y, wanted.y), (own.x, wanted.x)]
    near = all(1 / NEAR <= theirs.spacing / ours.spacing <= NEAR for theirs, ours in pairs)
    if not near or not covered(own, wanted):
        why = wanted.mismatch(own)
        raise GridError(
            f"coarse does not cover the scored field with cells of about its blocks: expected {wanted.describe()}, or "
            f"what contains them, got {own.describe()}{'' if why is None else ': ' + why}. Pass what the field was "
            "made from, and cut field and truth to what it covers."
        )
    least = (DataConfig() if model is None else model.data).minimum_valid_fraction
    moved = regrid(coarse, wanted, minimum_valid_fraction=least)
    notes = [] if own.locate(wanted) is not None else [REGRIDDED]
    return CoarseCells(moved.canonical(), wanted.x.periodic), notes


def _in_order(coarse: Field, location: Location) -> CoarseCells:
    """Return the values of coarse cells in the order of the groups at which they lie."""
    values = coarse.canonical()
    if location.columns[0]:  # a circle that begins elsewhere
        values = values.isel({coarse.grid.x.dim: np.argsort(location.columns)})
    return CoarseCells(values, coarse.grid.x.periodic)


def _groups_of(fine: Grid, coarse: Grid, scale: int) -> Location | None:
    """Return at which groups of scale x scale cells of `fine` the coarse cells lie, all of both; None if elsewhere."""
    if (coarse.y.size * scale, coarse.x.size * scale) != fine.shape:
        return None
    location = fine.coarsen(scale).locate(coarse)
    if location is None:
        parts = fine.locate(coarse.refine(scale))
        if parts is not None and not (parts.rows[0] % scale or parts.columns[0] % scale):
            location = Location(*(index[::scale] // scale for index in (parts.rows, parts.columns)))
    return location


def scale_between(fine: Grid, coarse: Field) -> tuple[int, CoarseCells]:
    """Return how many fine cells make a coarse one along each axis, and the coarse cells in their order.

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
    location = _groups_of(fine, coarse.grid, scale)
    if location is None:
        raise GridError(
            f"coarse lies on other cells: expected groups of {scale} x {scale} cells of {fine.describe()}, got "
            f"{coarse.grid.describe()}. Cut both to the same domain first (on a full circle: start at the same cell)."
        )
    return scale, _in_order(coarse, location)


def _check_scale(own: Grid, grid: Grid, scale: int) -> None:
    """Refuse coarse cells that are groups of the scored cells of another size: no field on cells of its own."""
    found = round(own.y.spacing / grid.y.spacing)
    if found not in (0, scale) and found == round(own.x.spacing / grid.x.spacing) and grid.locate(own, found):
        raise GridError(
            f"coarse: expected cells of {scale} x {scale} fine ones, as the scored field was made, got "
            f"{found} x {found}."
        )


def _cells_of(own: Grid, grid: Grid, scale: int, model: SRModel | None) -> Grid:
    """Return the coarse cells: the model's where the field lies on its domain, else those of the data, else its own."""
    known = [] if model is None or model.scale != scale else [(model.grid, model.coarse_grid)]
    for fine, coarse in [*known, (own.refine(scale), own)]:
        location = fine.locate(grid)
        if location is not None:
            _check_whole(grid, location, scale)
            rows, columns = (index[::scale] // scale for index in (location.rows, location.columns))
            return coarse.crop(Location(rows, columns))
    return grid.coarsen(scale)


def _check_whole(grid: Grid, location: Location, scale: int) -> None:
    """Refuse a field that begins or ends inside a coarse cell."""
    lines = ((grid.y, location.rows), (grid.x, location.columns))
    if any(index[0] % scale or len(index) % scale for _, index in lines):
        crop = ", ".join(_crop(axis, int(index[0]), scale) for axis, index in lines)
        raise GridError(
            "The scored field begins or ends inside a coarse cell, so that coarse= cannot be compared with it; cut "
            f"field and truth to whole blocks of {scale} x {scale} cells: .isel({crop})."
        )


def _crop(axis: Axis, first: int, scale: int) -> str:
    """Return the slice of whole blocks along an axis, in its stored orientation."""
    start = -first % scale
    stop = start + (axis.size - start) // scale * scale
    if axis.flipped:
        start, stop = axis.size - stop, axis.size - start
    return f"{axis.dim}=slice({start}, {stop})"
