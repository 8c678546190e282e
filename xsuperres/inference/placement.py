"""Coarse data on cells that are not (a crop of) the model's: cropped, regridded, or refused; never extrapolated.

Labelled arrays in and out, lazy; one line of log says what was done.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xsuperres.errors import XSuperResWarning
from xsuperres.fields.axes import Axis
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.labels import named_like
from xsuperres.fields.pairs import covered_part
from xsuperres.fields.regrid import regrid
from xsuperres.inference.domain import difference, elsewhere, obstacle, resolution
from xsuperres.model.artefact import SRModel

__all__ = ["Placement", "brought", "placement"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Placement:
    """What becomes of data on other cells.

    Parameters
    ----------
    given : Grid
        That of the data.
    target : Grid
        Those of the model's coarse cells that the data cover, with the names of the data and in their turn.
    crop : Location or None
        Where they lie on the grid of the data, if they are cells of it; None: the data are regridded.
    note : str
        One line that says so.
    """

    given: Grid
    target: Grid
    crop: Location | None
    note: str

    def moved(self, da: xr.DataArray, minimum_valid_fraction: float) -> xr.DataArray:
        """Return a field on the target's cells, in its own orientation; lazy."""
        y, x = self.given.y, self.given.x
        turned = {axis.dim: slice(None, None, -1) for axis in (y, x) if axis.flipped}
        if self.crop is None:
            return regrid(da, self.target, minimum_valid_fraction=minimum_valid_fraction).isel(turned)
        cells = {axis.dim: _stored(axis, index) for axis, index in ((y, self.crop.rows), (x, self.crop.columns))}
        line = self.target.coords[[x.name]].isel({x.dim: turned.get(x.dim, slice(None))})  # in one turn
        return da.isel(cells).assign_coords(line.coords)


def placement(model: SRModel, given: Grid, *, static: bool = False) -> Placement | None:
    """Return what is to be done with data on the grid `given`; None: nothing, they are taken as they are.

    Parameters
    ----------
    static : bool
        Whether static fields are given: an open model then goes where the data are.

    Raises
    ------
    GridError, StaticFieldError
        If the data cannot be brought onto the model's cells, by their kind, resolution or place.
    """
    ours = model.coarse_grid
    free = not model.fixed_domain and not model.static_scaling.names  # applies anywhere
    if ours.locate(given) is not None or (static and not model.fixed_domain) or (free and not model.paired):
        return None
    if obstacle(model, given) is not None:
        if free:
            return None
        raise elsewhere(model, given)
    target = covered_part(given, ours)
    target = named_like(target, given, target)
    crop = given.locate(target)
    if crop is not None:
        return Placement(given, target, crop, f"Coarse data ({given.describe()}) are cropped to {target.describe()}.")
    told = "" if model.paired else "; the model was trained on means over these cells, which regridded fields smooth"
    note = (
        f"Coarse data ({given.describe()}) are regridded conservatively onto the model's cells ({target.describe()}): "
        f"{difference(model, given)}{told}."
    )
    return Placement(given, target, None, note)


def brought(
    fields: Sequence[xr.DataArray], model: SRModel, *, static: bool
) -> tuple[Sequence[xr.DataArray], dict[str, str]]:
    """Return fields on (a crop of) the model's coarse cells where they come on others, and the result's mark of it.

    See `placement`; the mark is an attribute that tells `score` that the network saw regridded data.
    """
    given = grid_of(fields[0])
    found = placement(model, given, static=static)
    if found is None:
        _warn_of_resolution(model, given)
        return fields, {}
    logger.info(found.note)
    mark = {"xsuperres_regridded": given.describe()} if found.crop is None else {}
    return [found.moved(da, model.data.minimum_valid_fraction) for da in fields], mark


def _warn_of_resolution(model: SRModel, given: Grid) -> None:
    """Warn where an open model is taken to cells of another size than it knows."""
    told = resolution(model, given)
    if told is not None:
        warnings.warn(
            f"The model is open, but knows one resolution: {told}. Its detail is that of its own scale.",
            XSuperResWarning,
            stacklevel=5,
        )


def _stored(axis: Axis, index: np.ndarray) -> slice | np.ndarray:
    """Return the stored positions of canonical cells, in the orientation of the data."""
    cells = np.arange(axis.size)[axis.order][index]
    cells = cells[::-1] if axis.flipped else cells
    return slice(int(cells[0]), int(cells[-1]) + 1) if (np.diff(cells) == 1).all() else cells
