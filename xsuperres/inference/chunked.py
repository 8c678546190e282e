"""`downscale`: the lazy whole from `apply` on tiles.

Labelled arrays in and out. On dask input nothing is computed; in-memory input runs through the same tiles at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.config import check_choice
from xsuperres.errors import ConfigError, DataError, GridError
from xsuperres.fields.checks import check_units, check_values, check_variable, is_lazy
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.labels import attach, named_like
from xsuperres.fields.predictors import PredictorsLike, named_predictors, on_coarse
from xsuperres.fields.resample import fine_index
from xsuperres.fields.stack import check_together
from xsuperres.fields.static import StaticLike
from xsuperres.inference.apply import Mask
from xsuperres.inference.devices import Execution
from xsuperres.inference.domain import bind
from xsuperres.inference.guard import CHECKS, CheckRange, Guard, check_now
from xsuperres.inference.layout import Layout
from xsuperres.inference.placement import brought
from xsuperres.inference.tile import Tile
from xsuperres.inference.workers import refer
from xsuperres.model.artefact import SRModel, Target
from xsuperres.options import current_options

__all__ = ["check_in_memory", "downscale"]


def downscale(
    fields: Sequence[xr.DataArray],
    model: SRModel,
    *,
    predictors: PredictorsLike | None = None,
    static: StaticLike | None = None,
    members: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    execution: Execution | None = None,
    mask: Mask = "model",
    check_range: CheckRange = "warn",
    request: str | None = None,
) -> list[xr.DataArray]:
    """Apply `model` to coarse fields, one per target; see `SuperResolutionAccessor.downscale`.

    The guard of a lazy result counts under the name `request`; by default nobody knows it.
    """
    execution = execution or Execution()
    _check_settings(model, members, seed, batch_size, mask)
    check_choice("check_range", check_range, CHECKS)
    for da, target in zip(fields, model.targets, strict=True):
        check_values(da)
        check_units(da, target.coarse.units, what="downscale")
        check_variable(da, target.coarse.name, target.coarse.standard_name)
    check_together(fields)
    fields = [_as_target(da, target) for da, target in zip(fields, model.targets, strict=True)]
    fields, mark = brought(fields, model, static=static is not None)
    first = fields[0]
    coarse = grid_of(first)
    bound, location = bind(model, first, coarse, static)
    shown = _predictors(predictors, model, coarse, first)
    check_missing([*fields, *shown], bound)
    layout = Layout.of(fields, shown, bound, coarse, members)
    lazy = is_lazy(layout.values)
    guard = None
    if lazy:
        shape = (*layout.values.shape[: len(layout.dims) - 2], *coarse.shape)
        guard = Guard.of(check_range, bound, shape, request)
    else:
        execution.chosen()  # a lazy result may be computed where there are other devices
        check_now(check_range, bound, layout.each, location)
    tile = Tile(
        reference=refer(bound, to_file=lazy),
        first=(int(location.rows[0]), int(location.columns[0])),
        period=bound.coarse_grid.x.size,
        width=coarse.x.size,
        stacked=layout.stacked,
        order=layout.order,
        seed=None if members is None else seed,
        execution=execution,
        batch_size=batch_size,
        mask=mask,
        memory_budget=current_options().memory_budget,
        guard=guard,
    )
    data = layout.mapped(tile)
    return [da.assign_attrs(mark) for da in _results(fields, data, layout, location)]


def _results(fields: Sequence[xr.DataArray], data: Any, layout: Layout, location: Location) -> list[xr.DataArray]:
    """Return fine data with all that goes with them, made from coarse fields at `location` of the model's grid."""
    model, coarse = layout.model, layout.coarse
    fine_location = Location(*(fine_index(i, model.scale) for i in (location.rows, location.columns)))
    fine_location, cut = _inside(model, fine_location)
    fine = named_like(model.grid.crop(fine_location), coarse, model.coarse_grid.crop(location))
    return [
        _labelled(layout.like(da), _cropped(part, cut), layout.dims, coarse, fine, model, fine_location)
        for da, part in zip(fields, layout.parts(data), strict=True)
    ]


def _as_target(da: xr.DataArray, target: Target) -> xr.DataArray:
    """Return a coarse field with the labels of what it becomes: of explicit pairs those of the target."""
    if target.source is None:
        return da
    told = {name: getattr(target.variable, name) for name in ("units", "standard_name", "long_name")}
    named = da.rename(target.variable.name or da.name)
    return named.assign_attrs({name: value for name, value in told.items() if value is not None})


def _inside(model: SRModel, location: Location) -> tuple[Location, tuple[slice, ...]]:
    """Return the fine cells that are no context of a regional training, and where they are among the given ones."""
    if not any(model.margin):
        return location, ()
    south, north, west, east = (count * model.scale for count in model.margin)
    lines, cut = [], []
    for index, size, before, after in (
        (location.rows, model.grid.y.size, south, north),
        (location.columns, model.grid.x.size, west, east),
    ):
        inner = np.flatnonzero((index >= before) & (index < size - after))
        if not len(inner):
            raise GridError(
                "The data lie in the margin of the model's domain, of which there was no target to train on."
            )
        cut.append(slice(int(inner[0]), int(inner[-1]) + 1))
        lines.append(index[cut[-1]])
    return Location(lines[0], lines[1]), (cut[0], cut[1])


def _cropped(data: Any, cut: tuple[slice, ...]) -> Any:
    """Return the cells of `cut` along the last axes, of dask data in equal chunks but for the last, as Zarr wants."""
    if not cut:
        return data
    part = data[(..., *cut)]
    if not hasattr(part, "dask"):
        return part
    axes = range(part.ndim - len(cut), part.ndim)
    return part.rechunk({axis: max(part.chunks[axis]) for axis in axes})


def _predictors(given: PredictorsLike | None, model: SRModel, coarse: Grid, like: xr.DataArray) -> list[xr.DataArray]:
    """Return the predictors that the model was trained with, on the coarse grid."""
    names = [str(predictor.variable.name) for predictor in model.predictors]
    found = named_predictors(given)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"The model was trained with predictors {names}; {missing} are missing: pass predictors= with variables of "
            "these names."
        )
    for predictor, name in zip(model.predictors, names, strict=True):
        check_units(found[name], predictor.variable.units, what=f"predictor {name!r}")
    return [on_coarse(found[name], coarse, like, model.data.minimum_valid_fraction) for name in names]


def _check_settings(model: SRModel, members: int | None, seed: int, batch_size: int | None, mask: Mask) -> None:
    if mask not in ("input", "model", None):
        raise ConfigError(f"mask must be 'input', 'model' or None, got {mask!r}.")
    given = {"seed": (seed, 0), "batch_size": (batch_size, 1), "members": (members, 1)}
    for name, (value, least) in given.items():
        if value is None and name != "seed":
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if members is not None and not model.network.is_random:
        raise ConfigError(
            f"members={members} needs a network with randomness: trained with dropout (network={{'dropout': ...}}) or "
            "noise (adversarial={'noise': ...}); this one has neither."
        )


def check_in_memory(
    fields: Sequence[xr.DataArray],
    model: SRModel,
    *,
    predictors: PredictorsLike | None,
    static: StaticLike | None,
    execution: Execution,
    check_range: CheckRange,
) -> bool:
    """Refuse, or warn of, what `downscale` does before it computes; return whether all these data are in memory.

    Parameters
    ----------
    fields : sequence of DataArray
        On (a crop of) the model's cells, or those that it takes as they are.
    """
    coarse = grid_of(fields[0])
    bound, location = bind(model, fields[0], coarse, static)
    shown = _predictors(predictors, model, coarse, fields[0])
    if any(is_lazy(da) for da in (*fields, *shown)):
        return False
    check_missing([*fields, *shown], bound)
    execution.chosen()
    check_now(check_range, bound, Layout.of(fields, shown, bound, coarse, None).each, location)
    return True


def check_missing(fields: Sequence[xr.DataArray], model: SRModel) -> None:
    """Refuse missing values in memory where the training had none; lazy data are looked at when they are computed."""
    for da, part in zip(fields, model.inputs, strict=True):
        if part.variable.had_missing or is_lazy(da) or np.isfinite(da.data).all():
            continue
        share = 100 * float(np.mean(~np.isfinite(da.data)))
        raise DataError(
            f"{part.coarse.name or 'The data'!r} is NaN in {share:.3g} % of the cells, but the model was trained on "
            "complete fields and has no mask channel; fill them, or train on data with the same gaps."
        )


def _labelled(
    da: xr.DataArray,
    data: Any,
    dims: tuple[Any, ...],
    coarse: Grid,
    fine: Grid,
    model: SRModel,
    location: Location,
) -> xr.DataArray:
    index = {model.grid.y.dim: location.rows, model.grid.x.dim: location.columns}
    static = model.static.isel(index, missing_dims="ignore")  # there may be no static field at all
    planes = {n: (fine.dims, v.values, v.attrs) for n, v in static.data_vars.items() if n not in fine.coords}
    target = replace(fine, coords=fine.coords.assign_coords(planes))
    note = f"super-resolution, scale {model.scale}, model {model.identity[:16]}"
    out = attach(da, data, dims, coarse, target, note=note)
    return out.assign_attrs(xsuperres_model=model.identity, xsuperres_scale=model.scale)
