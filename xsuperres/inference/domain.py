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
from xsuperres.fields.resample import fine_index, fine_like
from xsuperres.fields.static import StaticLike, find_static, given_fields
from xsuperres.model.artefact import SRModel

__all__ = ["bind", "everywhere", "misfit"]

_ALIKE = 1e-2  # of the spacing: cells of one size
_SHIFTED = 1e-3  # of the spacing: cells at one place


def bind(model: SRModel, da: xr.DataArray, coarse: Grid, static: StaticLike | None) -> tuple[SRModel, Location]:
    """Return the model on the domain of `coarse`, and where `coarse` lies on the model's coarse grid."""
    location = model.coarse_grid.locate(coarse)
    if static is None:
        if location is not None:
            return model, location
        if model.fixed_domain or model.static_scaling.names:
            raise _elsewhere(model, coarse)
        fine = coarse.refine(model.scale)
        return model.on(fine, xr.Dataset()), everywhere(coarse)
    if not isinstance(static, (xr.Dataset, xr.DataArray)):
        raise StaticFieldError(
            "static= takes a Dataset or DataArray with the fine fields of the data's domain; names alone do not say "
            f"where they are, got {static!r}."
        )
    if model.fixed_domain and location is None:
        raise _elsewhere(model, coarse)
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


def _elsewhere(model: SRModel, coarse: Grid) -> Exception:
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


def misfit(model: SRModel, given: Grid) -> str:
    """Return by how much a grid, on which the model's coarse grid was not found, differs from it."""
    ours, fine = model.coarse_grid, model.grid
    pairs = [(ours.y, given.y), (ours.x, given.x)]
    if any(axis.kind != other.kind for axis, other in pairs):
        kinds = [" x ".join(axis.kind for axis in axes) for axes in zip(*pairs, strict=True)]
        return f"expected axes that are {kinds[0]}, got {kinds[1]}"
    if _one_size((fine.y, given.y), (fine.x, given.x)):
        return f"this looks like the model's fine grid; coarsen it first: .sr.coarsen({model.scale})"
    if not _one_size(*pairs):
        expected, got = (" x ".join(f"{axis.spacing:.4g}" for axis in axes) for axes in zip(*pairs, strict=True))
        return f"the spacing differs, got {got}, expected {expected}"
    shifts = [_shift(axis, other) for axis, other in pairs]
    if any(abs(shift) > _SHIFTED * axis.spacing for shift, (axis, _) in zip(shifts, pairs, strict=True)):
        return f"shifted by (dy, dx) = ({shifts[0]:.4g}, {shifts[1]:.4g})"
    beyond = [
        f"{other.dim!r} reaches from {other.centres[0]:g} to {other.centres[-1]:g}, the model's from "
        f"{axis.centres[0]:g} to {axis.centres[-1]:g}"
        for axis, other in pairs
        if np.abs(_apart(axis, other)).max() > _SHIFTED * axis.spacing
    ]
    return "outside: " + " and ".join(beyond) if beyond else "across a gap of the model's domain"


def _one_size(*pairs: tuple[Axis, Axis]) -> bool:
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
