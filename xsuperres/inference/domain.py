"""Where data lie on a model's domain: on its cells, cropped or regridded onto them, or refused with the reason.

Grids and Fields in; a model on the domain of the data out. Nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from xsuperres.errors import GridError, StaticFieldError, warn
from xsuperres.fields.axes import SAME_CELL, Axis, stored_cells, wrap_longitude
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location, named_like
from xsuperres.fields.pairs import covered_part
from xsuperres.fields.regrid import NEAR, overlap_weights, regrid
from xsuperres.fields.resample import fine_part
from xsuperres.fields.static import StaticLike, planes_on, static_fields
from xsuperres.model.artefact import SRModel

__all__ = [
    "Placement",
    "difference",
    "elsewhere",
    "misfit",
    "on_domain",
    "placement",
    "resolution",
    "warn_of_resolution",
]

_SAME_SIZE = 1e-2  # of the spacing: cells of one size
_DEGREE = 111.2  # km


@dataclass(frozen=True, eq=False)
class Placement:
    """How data get onto the cells that a model reads.

    Parameters
    ----------
    kind : {"same", "open", "crop", "regrid", "refused"}
        The data lie on (a crop of) the model's coarse cells; an open model goes where they are; some of their cells are
        the model's; they are regridded onto the model's; they cannot be brought there.
    source : Grid
        That of the data.
    target : Grid
        The cells that the model reads, with the names and the orientation of the data.
    note : str
        One line that says so, for the log; of refused data the reason.
    crop : Location, optional
        Where the target lies on the source, for a crop.
    """

    kind: Literal["same", "open", "crop", "regrid", "refused"]
    source: Grid
    target: Grid
    note: str = ""
    crop: Location | None = None

    def moved(self, field: Field, minimum_valid_fraction: float) -> Field:
        """Return a field of the source on the target; lazy."""
        if self.kind == "regrid":
            return regrid(field, self.target, minimum_valid_fraction=minimum_valid_fraction)
        if self.crop is None:
            return field
        y, x = self.source.y, self.source.x
        lines = ((y, self.crop.rows), (x, self.crop.columns))
        cells = {axis.dim: _consecutive(stored_cells(axis, index)) for axis, index in lines}
        turned = slice(None, None, -1) if x.flipped else slice(None)
        line = self.target.coords[x.name].isel({x.dim: turned})  # longitudes in one turn
        return Field(field.array.isel(cells).assign_coords({x.name: line}), axes=field.axes, grid=self.target)


def _consecutive(cells: np.ndarray) -> slice | np.ndarray:
    """Return positions as a slice where they follow each other, which leaves chunks alone."""
    return slice(int(cells[0]), int(cells[-1]) + 1) if (np.diff(cells) == 1).all() else cells


def placement(model: SRModel, source: Grid, *, static: bool = False) -> Placement:
    """Return what is to be done with data on a grid.

    Parameters
    ----------
    static : bool
        Whether the caller has static fields for the data's domain: an open model then goes where the data are.
    """
    ours = model.coarse_grid
    free = not model.fixed_domain and not model.static_scaling.names  # applies anywhere
    if ours.locate(source) is not None:
        return Placement("same", source, source)
    if (static and not model.fixed_domain) or (free and not model.paired):
        return Placement("open", source, source)
    reason = _obstacle(model, source)
    if reason is not None:
        return Placement("open" if free else "refused", source, source, reason)
    target = covered_part(source, ours)
    target = named_like(target, source, target).stored_like(source)
    crop = source.locate(target)
    if crop is not None:
        note = f"Coarse data ({source.describe()}) are cropped to {target.describe()}."
        return Placement("crop", source, target, note, crop)
    smoothed = "" if model.paired else "; the model was trained on means over these cells, which regridding smooths"
    note = (
        f"Coarse data ({source.describe()}) are regridded conservatively onto the model's cells ({target.describe()}): "
        f"{difference(model, source)}{smoothed}."
    )
    return Placement("regrid", source, target, note)


def on_domain(model: SRModel, grid: Grid, static: StaticLike | None) -> tuple[SRModel, Location]:
    """Return the model on the domain of a coarse grid, and where the grid lies on the model's coarse grid.

    Raises
    ------
    GridError, StaticFieldError
        If the model is bound to another domain, or static fields are missing or lie elsewhere.
    """
    location = model.coarse_grid.locate(grid)
    if location is None and (model.fixed_domain or (static is None and model.static_scaling.names)):
        raise elsewhere(model, grid)
    if static is None:
        if location is not None:
            return model, location
        return model.on(grid.refine(model.scale), xr.Dataset()), Location.whole(grid)
    if not isinstance(static, (xr.Dataset, xr.DataArray)):
        raise StaticFieldError(
            "static= takes a Dataset or DataArray with the fine fields of the data's domain; names alone do not say "
            f"where they are, got {static!r}."
        )
    fields = {n: Field(f.array.reset_coords(drop=True)) for n, f in static_fields(static, model.static).items()}
    fine = grid.refine(model.scale)
    if fields:
        first = next(iter(fields.values())).grid
        fine = fine_part(first, grid, model.scale, what=f"static={list(fields)}", error=StaticFieldError)
    planes = planes_on(fine, fields)
    if model.fixed_domain and location is not None:
        _warn_of_other_static(model, location, planes)
        return model, location
    return model.on(fine, planes), Location.whole(grid)


def _warn_of_other_static(model: SRModel, location: Location, planes: xr.Dataset) -> None:
    """Warn where the static fields passed to a fixed model are not its own, which are the ones it uses."""
    fine = location.refined(model.scale)
    for name, sd in zip(model.static_scaling.names, model.static_scaling.sd, strict=True):
        stored = model.static[name].values[np.ix_(fine.rows, fine.columns)]
        if not np.allclose(planes[name].values, stored, rtol=0, atol=1e-3 * sd):
            warn(
                f"Static field {name!r} differs from the one the model was trained with; the model is bound to its "
                "domain and uses its own."
            )


def warn_of_resolution(model: SRModel, grid: Grid) -> None:
    """Warn where an open model is taken to cells of another size than it knows."""
    found = resolution(model, grid)
    if found is not None:
        warn(f"The model is open, but knows one resolution: {found}. Its detail is that of its own scale.")


def elsewhere(model: SRModel, grid: Grid) -> Exception:
    """Return the error for a domain that is not (all) the model's."""
    where = (
        f"The data ({grid.describe()}) are not on (a crop of) the model's coarse grid "
        f"({model.coarse_grid.describe()}): {misfit(model, grid)}"
    )
    if model.fixed_domain:
        return GridError(
            f"{where}. The model is bound to its domain; train one for other domains with fit(validation='space') or "
            "fit(data={'domain': 'open'})."
        )
    names = ", ".join(map(repr, model.static_scaling.names))
    return StaticFieldError(
        f"{where}. Its static fields are needed there: pass static=Dataset with {names} on the fine grid of the data."
    )


def misfit(model: SRModel, grid: Grid) -> str:
    """Return why a grid is not (a crop of) the model's coarse grid."""
    reason = _obstacle(model, grid)
    if reason is not None:
        return reason
    covers = grid.locate(model.coarse_grid) is not None
    return "it contains the model's domain" if covers else difference(model, grid)


def _obstacle(model: SRModel, grid: Grid) -> str | None:
    """Return what keeps data, which are not on the model's coarse grid, from being brought onto it; None if nothing."""
    mismatch = model.coarse_grid.mismatch(grid)
    if mismatch is not None:
        return mismatch
    if _same_size(_pairs(model.grid, grid)):
        return f"this looks like the model's fine grid; coarsen it first: .sr.coarsen({model.scale})"
    return resolution(model, grid) or _outside(model, grid) or _across_gap(model, grid)


def resolution(model: SRModel, grid: Grid) -> str | None:
    """Return how cells are more than twice as fine or as coarse as the model's; None if they are not, or not known."""
    ours = model.coarse_grid
    if ours.frame.mismatch(grid.frame) is None:
        ratios = [other.spacing / axis.spacing for axis, other in _pairs(ours, grid)]
        words = difference(model, grid)
    else:
        expected, got = _kilometres(ours), _kilometres(grid)
        ratios, words = [got / expected], f"rows are {got:.4g} km apart, expected {expected:.4g} km"
    if max(ratios) > NEAR:
        return f"{words}, more than twice as coarse; train a model on data like these"
    if min(ratios) * NEAR < 1:
        scale = max(2, round(1 / max(ratios)))
        return f"{words}, more than twice as fine; coarsen the data first, .sr.coarsen({scale})"
    return None


def _kilometres(grid: Grid) -> float:
    """Return the distance of rows; NaN, which is near to everything, if it is not known."""
    units = {"m": 1e-3, "km": 1.0}
    return grid.y.spacing * (_DEGREE if grid.y.kind == "latitude" else units.get(str(grid.frame.units[0]), np.nan))


def _outside(model: SRModel, grid: Grid) -> str | None:
    """Return how data lie outside of the model's domain, all or in part; None if they lie in it, or contain it.

    To one cell, along each axis; what surrounds the domain, and the context around pairs, may be there or not.
    """
    beyond, apart = [], False
    margins = ((model.margin[0], model.margin[1]), (model.margin[2], model.margin[3]))
    for (axis, other), (before, after) in zip(_pairs(model.coarse_grid, grid), margins, strict=True):
        low, high = _ends_in_turn(axis, other)
        slack = max(axis.spacing, other.spacing) * (1 + _SAME_SIZE)
        contains = low <= axis.lower[before] + slack and high >= axis.upper[axis.size - 1 - after] - slack
        within = low >= axis.lower[0] - slack and high <= axis.upper[-1] + slack
        if not (contains or within or (axis.periodic and other.kind == "longitude")):
            beyond.append(
                f"{other.dim!r} reaches from {other.centres[0]:g} to {other.centres[-1]:g}, the model's from "
                f"{axis.centres[0]:g} to {axis.centres[-1]:g}"
            )
            apart = apart or high <= axis.lower[0] or low >= axis.upper[-1]
    remedy = "" if apart else "; select the part that both share, or what contains all of it"
    return f"outside: {' and '.join(beyond)}{remedy}" if beyond else None


def _ends_in_turn(axis: Axis, other: Axis) -> tuple[float, float]:
    """Return the ends of `other`; of longitudes in the turn that shares most with `axis`, a circle without ends."""
    low, high = float(other.lower[0]), float(other.upper[-1])
    if axis.kind != "longitude":
        return low, high
    if other.periodic:
        return -np.inf, np.inf
    middle = 360.0 * round((float(axis.lower[0] + axis.upper[-1]) - low - high) / 720.0)
    turns = [middle + 360.0 * lap for lap in (0, -1, 1)]
    turn = max(turns, key=lambda t: min(high + t, axis.upper[-1]) - max(low + t, axis.lower[0]))
    return low + turn, high + turn


def _across_gap(model: SRModel, grid: Grid) -> str | None:
    """Return that data cover more than one connected part of the model's domain, or None."""
    x = model.coarse_grid.x
    inside = overlap_weights(grid.x, x).sum(axis=1) >= 1 - SAME_CELL
    parts = [part for part in x.parts if inside[part].any()]
    if len(parts) < 2:
        return None
    spans = " and ".join(f"{x.centres[part.start]:g} to {x.centres[part.stop - 1]:g}" for part in parts)
    return f"across a gap of the model's domain; take its parts along {x.dim!r} one at a time: {spans}"


def difference(model: SRModel, grid: Grid) -> str:
    """Return how the cells of a grid differ from those of the model's coarse grid."""
    pairs = _pairs(model.coarse_grid, grid)
    if not _same_size(pairs):
        expected, got = (" x ".join(f"{axis.spacing:.4g}" for axis in axes) for axes in zip(*pairs, strict=True))
        return f"the spacing differs, got {got}, expected {expected}"
    shifts = [shift if abs(shift := _shift(a, b)) > SAME_CELL * a.spacing else 0.0 for a, b in pairs]
    if any(shifts):
        return f"shifted by (dy, dx) = ({shifts[0]:.4g}, {shifts[1]:.4g})"
    return "cells of uneven sizes"


def _pairs(ours: Grid, other: Grid) -> list[tuple[Axis, Axis]]:
    return [(ours.y, other.y), (ours.x, other.x)]


def _same_size(pairs: list[tuple[Axis, Axis]]) -> bool:
    """Return whether the cells of both axes have the size of the others'."""
    return all(abs(axis.spacing - other.spacing) <= _SAME_SIZE * axis.spacing for axis, other in pairs)


def _shift(axis: Axis, other: Axis) -> float:
    """Return how far the cells of `other` are from those of `axis`, which goes on evenly beyond its ends."""
    distance = other.centres[:, None] - axis.centres[None, :]
    if axis.kind == "longitude":
        distance = wrap_longitude(distance)
    nearest = distance[np.arange(other.size), np.abs(distance).argmin(axis=1)]
    inside = nearest[np.abs(nearest) <= 0.5 * axis.spacing * (1 + _SAME_SIZE)]
    if len(inside):
        return float(np.median(inside))
    return float(nearest[0] - axis.spacing * np.round(nearest[0] / axis.spacing))
