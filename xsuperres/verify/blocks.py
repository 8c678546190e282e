"""The blocks of cells that a scored field was made of, and coarse data brought onto them as `downscale` did.

Labelled arrays in and out; lazy.
"""

from __future__ import annotations

import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.errors import GridError
from xsuperres.fields.axes import Axis
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location, grid_of, named_like
from xsuperres.fields.regrid import NEAR, covered, regrid
from xsuperres.model.artefact import SRModel
from xsuperres.verify.alignment import are_blocks

__all__ = ["REGRIDDED", "on_blocks"]

REGRIDDED = "coarse was brought conservatively onto the blocks of the scored cells"


def on_blocks(
    coarse: xr.DataArray, grid: Grid, scale: int, model: SRModel | None, *, regridded: bool
) -> tuple[xr.DataArray, list[str]]:
    """Return coarse data on the blocks of scale x scale scored cells, and what is to be said of it.

    Parameters
    ----------
    coarse : DataArray
        On these blocks, on more of the same cells, or on others up to twice as fine or coarse that cover them; its
        horizontal dims are those of `grid`.
    grid : Grid
        That of the scored field.
    scale : int
        Fine cells per coarse cell along each axis.
    model : SRModel or None
        Whose blocks and valid fraction are taken where the field lies on its domain.
    regridded : bool
        Whether the field is known to have been made from data on other cells.

    Raises
    ------
    GridError
        If the coarse data do not cover the blocks, or are of another scale, or the scored field is no whole blocks.
    """
    own = grid_of(coarse)
    if are_blocks(grid, own, scale):
        return coarse, []
    if not regridded:
        _check_scale(own, grid, scale)
    blocks = named_like(_blocks(own, grid, scale, model), grid)
    pairs = [(own.y, blocks.y), (own.x, blocks.x)]
    near = all(1 / NEAR <= given.spacing / block.spacing <= NEAR for given, block in pairs)
    if not near or not covered(own, blocks):
        why = blocks.mismatch(own)
        raise GridError(
            f"coarse does not cover the scored field with cells of about its blocks: expected {blocks.describe()}, or "
            f"what contains them, got {own.describe()}{'' if why is None else ': ' + why}. Pass what the field was "
            "made from, and cut field and truth to what it covers."
        )
    least = (DataConfig() if model is None else model.data).minimum_valid_fraction
    brought = regrid(Field(coarse), blocks, minimum_valid_fraction=least).array
    return brought, [] if own.locate(blocks) is not None else [REGRIDDED]


def _check_scale(own: Grid, grid: Grid, scale: int) -> None:
    """Refuse coarse cells that are blocks of the scored cells of another size: no field on cells of its own."""
    found = round(own.y.spacing / grid.y.spacing)
    if found not in (0, scale) and found == round(own.x.spacing / grid.x.spacing) and grid.locate(own, found):
        raise GridError(
            f"coarse: expected cells of {scale} x {scale} fine ones, as the scored field was made, got "
            f"{found} x {found}."
        )


def _blocks(own: Grid, grid: Grid, scale: int, model: SRModel | None) -> Grid:
    """Return the blocks: of the model where the field lies on its domain, else coarse cells, else its own."""
    known = [] if model is None or model.scale != scale else [(model.grid, model.coarse_grid)]
    for fine, coarse in [*known, (own.refine(scale), own)]:
        location = fine.locate(grid)
        if location is not None:
            _check_whole(grid, location, scale)
            rows, columns = (index[::scale] // scale for index in (location.rows, location.columns))
            return coarse.crop(Location(rows, columns))
    return grid.coarsen(scale)


def _check_whole(grid: Grid, location: Location, scale: int) -> None:
    """Refuse a field that begins or ends inside a block."""
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
