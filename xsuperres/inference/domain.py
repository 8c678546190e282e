"""Where data lie on a model's domain, and what they lack if they do not.

Labelled arrays in; a model on the domain of the data out.
"""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr

from xsuperres.errors import GridError, StaticFieldError, XSuperResWarning
from xsuperres.fields.axes import Axis
from xsuperres.fields.grid import Grid, Location
from xsuperres.fields.regrid import NEAR, overlap_weights
from xsuperres.fields.resample import fine_index, fine_like
from xsuperres.fields.static import StaticLike, find_static, given_fields
from xsuperres.model.artefact import SRModel

__all__ = ["bind", "difference", "elsewhere", "everywhere", "misfit", "obstacle", "resolution"]

_ALIKE = 1e-2  # of the spacing: cells of one size
_SHIFTED = 1e-3  # of the spacing: cells at one place
_DEGREE = 111.2  # km


def bind(model: SRModel, da: xr.DataArray, coarse: Grid, static: StaticLike | None) -> tuple[SRModel, Location]:
    """Return the model on the domain of `coarse`, and where `coarse` lies on the model's coarse grid."""
    location = model.coarse_grid.locate(coarse)
    if location is None and (model.fixed_domain or (static is None and model.static_scaling.names)):
        raise elsewhere(model, coarse)
    if static is None:
        if location is not None:
            return model, location
        fine = coarse.refine(model.scale)
        return model.on(fine, xr.Dataset()), everywhere(coarse)
    if not isinstance(static, (xr.Dataset, xr.DataArray)):
        raise StaticFieldError(
            "static= takes a Dataset or DataArray with the fine fields of the data's domain; names alone do not say "
            f"where they are, got {static!r}."
        )
    fields = given_fields(static, model.static)
    bare = xr.Dataset({name: field.reset_coords(drop=True) for name, field in fields.items()})
    if not fields:
        fine = coarse.refine(model.scale)
    else:
        fine = fine_like(bare, coarse, model.scale, what=f"static={list(fields)}", error=StaticFieldError)
    planes = find_static(da, fine, bare)
    if model.fixed_domain and location is not None:
        _check_same_static(model, location, planes)
        return model, location
    return model.on(fine, planes), everywhere(coarse)


def _check_same_static(model: SRModel, location: Location, planes: xr.Dataset) -> None:
    """Warn where static fields given to a fixed model are not its own, which are the ones it uses."""
    index = tuple(fine_index(i, model.scale) for i in (location.rows, location.columns))
    for name, sd in zip(model.static_scaling.names, model.static_scaling.sd, strict=True):
        own = model.static[name].values[np.ix_(*index)]
        if not np.allclose(planes[name].values, own, rtol=0, atol=1e-3 * sd):
            warnings.warn(
                f"Static field {name!r} differs from the one the model was trained with; the model is bound to its "
                "domain and uses its own.",
                XSuperResWarning,
                stacklevel=5,
            )


def everywhere(coarse: Grid) -> Location:
    """Return the location of a grid on itself."""
    return Location(np.arange(coarse.y.size), np.arange(coarse.x.size))


def elsewhere(model: SRModel, coarse: Grid) -> Exception:
    """Return the error for a domain that is not (all) the model's."""
    where = (
        f"The data ({coarse.describe()}) are not on (a crop of) the model's coarse grid "
        f"({model.coarse_grid.describe()}): {misfit(model, coarse)}"
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


def obstacle(model: SRModel, given: Grid) -> str | None:
    """Return what keeps data, which are not on the model's coarse grid, from being brought onto it; None if nothing."""
    ours, fine = model.coarse_grid, model.grid
    mismatch = ours.mismatch(given)
    if mismatch is not None:
        return mismatch
    if _one_size(_pairs(fine, given)):
        return f"this looks like the model's fine grid; coarsen it first: .sr.coarsen({model.scale})"
    return resolution(model, given) or _outside(model, given) or _across(model, given)


def resolution(model: SRModel, given: Grid) -> str | None:
    """Return how cells are more than twice as fine or as coarse as the model's; None if they are not, or not known."""
    ours = model.coarse_grid
    if ours.frame.mismatch(given.frame) is None:
        ratios = [other.spacing / axis.spacing for axis, other in _pairs(ours, given)]
        told = difference(model, given)
    else:
        expected, got = _kilometres(ours), _kilometres(given)
        ratios, told = [got / expected], f"rows are {got:.4g} km apart, expected {expected:.4g} km"
    if max(ratios) > NEAR:
        return f"{told}, more than twice as coarse; train a model on data like these"
    if min(ratios) * NEAR < 1:
        scale = max(2, round(1 / max(ratios)))
        return f"{told}, more than twice as fine; coarsen the data first, .sr.coarsen({scale})"
    return None


def _kilometres(grid: Grid) -> float:
    """Return the distance of rows; NaN, which is near to everything, if it is not known."""
    units = {"m": 1e-3, "km": 1.0}
    return grid.y.spacing * (_DEGREE if grid.y.kind == "latitude" else units.get(str(grid.frame.units[0]), np.nan))


def _outside(model: SRModel, given: Grid) -> str | None:
    """Return how data lie outside of the model's domain, all or in part; None if they lie in it, or contain it.

    To one cell, along each axis; what surrounds the domain, and the context around pairs, may be there or not.
    """
    beyond, apart = [], False
    margins = ((model.margin[0], model.margin[1]), (model.margin[2], model.margin[3]))
    for (axis, other), (before, after) in zip(_pairs(model.coarse_grid, given), margins, strict=True):
        low, high = _reach(axis, other)
        slack = max(axis.spacing, other.spacing) * (1 + _ALIKE)
        contains = low <= axis.lower[before] + slack and high >= axis.upper[axis.size - 1 - after] - slack
        within = low >= axis.lower[0] - slack and high <= axis.upper[-1] + slack
        if not (contains or within or (axis.periodic and other.kind == "longitude")):
            beyond.append(_ends(axis, other))
            apart = apart or high <= axis.lower[0] or low >= axis.upper[-1]
    remedy = "" if apart else "; select the part that both share, or what contains all of it"
    return f"outside: {' and '.join(beyond)}{remedy}" if beyond else None


def _reach(axis: Axis, other: Axis) -> tuple[float, float]:
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


def _across(model: SRModel, given: Grid) -> str | None:
    """Return that data cover more than one connected part of the model's domain, or None."""
    x = model.coarse_grid.x
    inside = overlap_weights(given.x, x).sum(axis=1) >= 1 - _SHIFTED
    parts = [part for part in x.parts if inside[part].any()]
    if len(parts) < 2:
        return None
    told = " and ".join(f"{x.centres[part.start]:g} to {x.centres[part.stop - 1]:g}" for part in parts)
    return f"across a gap of the model's domain; take its parts along {x.dim!r} one at a time: {told}"


def _ends(axis: Axis, other: Axis) -> str:
    return (
        f"{other.dim!r} reaches from {other.centres[0]:g} to {other.centres[-1]:g}, the model's from "
        f"{axis.centres[0]:g} to {axis.centres[-1]:g}"
    )


def difference(model: SRModel, given: Grid) -> str:
    """Return how the cells of a grid differ from those of the model's coarse grid."""
    pairs = _pairs(model.coarse_grid, given)
    if not _one_size(pairs):
        expected, got = (" x ".join(f"{axis.spacing:.4g}" for axis in axes) for axes in zip(*pairs, strict=True))
        return f"the spacing differs, got {got}, expected {expected}"
    found = [(_shift(axis, other), _SHIFTED * axis.spacing) for axis, other in pairs]
    shifts = [shift if abs(shift) > rounding else 0.0 for shift, rounding in found]
    if any(shifts):
        return f"shifted by (dy, dx) = ({shifts[0]:.4g}, {shifts[1]:.4g})"
    return "cells of uneven sizes"


def misfit(model: SRModel, given: Grid) -> str:
    """Return why a grid is not (a crop of) the model's coarse grid."""
    told = obstacle(model, given)
    if told is not None:
        return told
    covers = given.locate(model.coarse_grid) is not None
    return "it contains the model's domain" if covers else difference(model, given)


def _pairs(ours: Grid, given: Grid) -> list[tuple[Axis, Axis]]:
    return [(ours.y, given.y), (ours.x, given.x)]


def _one_size(pairs: list[tuple[Axis, Axis]]) -> bool:
    """Return whether the cells of both axes have the size of the others'."""
    return all(abs(axis.spacing - other.spacing) <= _ALIKE * axis.spacing for axis, other in pairs)


def _apart(axis: Axis, other: Axis) -> np.ndarray:
    """Return how far each centre of `other` lies from the nearest one of `axis`, signed."""
    apart = other.centres[:, None] - axis.centres[None, :]
    if axis.kind == "longitude":
        apart = (apart + 180.0) % 360.0 - 180.0
    return apart[np.arange(other.size), np.abs(apart).argmin(axis=1)]


def _shift(axis: Axis, other: Axis) -> float:
    """Return how far the cells of `other` are from those of `axis`, which goes on evenly beyond its ends."""
    apart = _apart(axis, other)
    inside = apart[np.abs(apart) <= 0.5 * axis.spacing * (1 + _ALIKE)]
    if len(inside):
        return float(np.median(inside))
    return float(apart[0] - axis.spacing * np.round(apart[0] / axis.spacing))
