"""`downscale`: the lazy whole from `apply` on tiles.

Labelled arrays in and out. On dask input nothing is computed; in-memory input runs through the same tiles at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, DataError, GridError, StaticFieldError, XSuperResWarning
from xsuperres.fields.checks import check_units, check_values, check_variable, is_lazy
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.labels import attach, named_like
from xsuperres.fields.resample import fine_index, fine_like, plane_plans
from xsuperres.fields.stack import check_together, stacked
from xsuperres.fields.static import StaticLike, find_static, given_fields
from xsuperres.fields.times import calendar_features, segments
from xsuperres.inference.apply import Mask
from xsuperres.inference.tile import Tile
from xsuperres.inference.workers import choose_device, refer
from xsuperres.model.artefact import SRModel
from xsuperres.options import current_options
from xsuperres.tiles import AxisPlan, map_tiles, split

__all__ = ["MEMBER", "bind", "downscale"]

MEMBER = "member"


def downscale(
    fields: Sequence[xr.DataArray],
    model: SRModel,
    *,
    predictors: Sequence[xr.DataArray] = (),
    static: StaticLike | None = None,
    members: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    mask: Mask = "model",
) -> list[xr.DataArray]:
    """Apply `model` to coarse fields, one per target; see `SuperResolutionAccessor.downscale`."""
    _check_settings(model, members, batch_size, device, mask)
    for da, target in zip(fields, model.targets, strict=True):
        check_values(da)
        check_units(da, target.variable.units, what="downscale")
        check_variable(da, target.variable.name, target.variable.standard_name)
    check_together(fields)
    first = fields[0]
    coarse = grid_of(first)
    bound, location = bind(model, first, coarse, static)
    _check_missing([*fields, *predictors], bound)
    layout = _Layout.of(fields, predictors, bound, coarse, members)
    lazy = is_lazy(layout.values)
    tile = Tile(
        reference=refer(bound, to_file=lazy),
        first=(int(location.rows[0]), int(location.columns[0])),
        period=bound.coarse_grid.x.size,
        width=coarse.x.size,
        stacked=layout.stacked,
        seed=None if members is None else seed,
        device=device,
        batch_size=batch_size,
        mask=mask,
        memory_budget=current_options().memory_budget,
    )
    data = layout.mapped(tile)
    fine_location = Location(*(fine_index(i, model.scale) for i in (location.rows, location.columns)))
    fine = named_like(bound.grid.crop(fine_location), coarse, bound.coarse_grid.crop(location))
    return [
        _labelled(layout.like(da), part, layout.dims, coarse, fine, bound, fine_location)
        for da, part in zip(fields, layout.parts(data), strict=True)
    ]


def _check_settings(model: SRModel, members: int | None, batch_size: int | None, device: str, mask: Mask) -> None:
    if mask not in ("input", "model", None):
        raise ConfigError(f"mask must be 'input', 'model' or None, got {mask!r}.")
    for name, value in (("batch_size", batch_size), ("members", members)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if members is not None and not model.network.is_random:
        raise ConfigError(
            f"members={members} needs a network with randomness: trained with dropout (network={{'dropout': ...}}) or "
            "noise (adversarial={'noise': ...}); this one has neither."
        )
    choose_device(device)


@dataclass(frozen=True, eq=False)
class _Layout:
    """The coarse data as one array for the tiles: (others..., [time], [variables], y, x), in canonical order.

    Time comes last among the leading dims where the network is told of it, variables are an axis where there are
    several, members are the first axis.
    """

    values: xr.DataArray
    dims: tuple[str, ...]
    stacked: bool
    steps: tuple[int, np.ndarray] | None
    model: SRModel
    coarse: Grid
    members: int | None

    @classmethod
    def of(
        cls,
        fields: Sequence[xr.DataArray],
        predictors: Sequence[xr.DataArray],
        model: SRModel,
        coarse: Grid,
        members: int | None,
    ) -> _Layout:
        first = fields[0]
        lead = [str(dim) for dim in first.dims if dim not in coarse.dims]
        told = model.data.calendar or model.spec.time_window is not None
        if told:
            if coarse.time not in lead:
                raise DataError(f"The model needs a time dimension; the data have {tuple(map(str, first.dims))}.")
            lead = [*(dim for dim in lead if dim != coarse.time), str(coarse.time)]
        everything = [*fields, *predictors]
        stacked_fields = len(everything) > 1
        values = (
            stacked(everything, coarse, lead)
            if stacked_fields
            else coarse.canonical(first).transpose(*lead, *coarse.dims)
        )
        if members is not None:
            if MEMBER in lead:
                raise ConfigError(f"The data have a dimension {MEMBER!r} already; rename it before members={members}.")
            values = values.expand_dims({MEMBER: members})
            lead = [MEMBER, *lead]
        steps = (len(lead) - 1, _steps_of(first, str(coarse.time), model)) if told else None
        return cls(values, (*lead, *coarse.dims), stacked_fields, steps, model, coarse, members)

    def mapped(self, tile: Tile) -> Any:
        """Return the fine data."""
        plans, data = self.plans(), self.values.data
        if is_lazy(self.values):
            data = _merged(_whole(data, self.model, self.values.dtype), plans)
            return map_tiles(tile, data, plans, dtype=self.values.dtype, name="downscale", token=tile, along=self.steps)
        lead = _lead_tiles(self.values.shape, len(self.dims) - 2, self.model, tile.memory_budget)
        chunks = [*lead, *((size,) for size in self.values.shape[len(lead) :])]
        return map_tiles(tile, data, plans, dtype=self.values.dtype, chunks=chunks, along=self.steps)

    def plans(self) -> list[AxisPlan]:
        """Return how the axes are tiled."""
        model = self.model
        plans = plane_plans(len(self.dims), self.coarse, model.reach, model.scale)
        if model.spec.time_window is not None:
            plans[-3] = AxisPlan(halo=model.time_halo, consumed=True)
        if self.stacked:
            plans.insert(len(plans) - 2, AxisPlan(count=len(model.targets)))
        return plans

    def parts(self, data: Any) -> list[Any]:
        """Return the fine data of each target."""
        return [data[..., index, :, :] for index in range(len(self.model.targets))] if self.stacked else [data]

    def like(self, da: xr.DataArray) -> xr.DataArray:
        """Return what the result is labelled like: `da`, with members."""
        return da if self.members is None else da.expand_dims({MEMBER: np.arange(self.members)})


def _steps_of(da: xr.DataArray, time: str, model: SRModel) -> np.ndarray:
    """Return segment and calendar of every step, (steps, 1 + features)."""
    columns = [np.zeros(da.sizes[time]) if model.spec.time_window is None else segments(da, time)]
    if model.data.calendar:
        columns.extend(calendar_features(da, time).T)
    return np.stack(columns, axis=1).astype(np.float64)


def bind(model: SRModel, da: xr.DataArray, coarse: Grid, static: StaticLike | None) -> tuple[SRModel, Location]:
    """Return the model on the domain of `coarse`, and where `coarse` lies on the model's coarse grid."""
    location = model.coarse_grid.locate(coarse)
    if static is None:
        if location is not None:
            return model, location
        if model.fixed_domain or model.static_scaling.names:
            raise _elsewhere(model, coarse)
        fine = coarse.refine(model.scale)
        return model.on(fine, xr.Dataset()), _everywhere(coarse)
    if not isinstance(static, (xr.Dataset, xr.DataArray)):
        raise StaticFieldError(
            "static= takes a Dataset or DataArray with the fine fields of the data's domain; names alone do not say "
            f"where they are, got {static!r}."
        )
    if model.fixed_domain and location is None:
        raise _elsewhere(model, coarse)
    fields = given_fields(static, model.static_scaling.names)
    bare = xr.Dataset({name: field.reset_coords(drop=True) for name, field in fields.items()})
    if not fields:
        fine = coarse.refine(model.scale)
    else:
        fine = fine_like(bare, coarse, model.scale, what=f"static={list(fields)}", error=StaticFieldError)
    planes = find_static(da, fine, bare)
    if model.fixed_domain and location is not None:
        _check_same_static(model, location, planes)
        return model, location
    return model.on(fine, planes), _everywhere(coarse)


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


def _everywhere(coarse: Grid) -> Location:
    return Location(np.arange(coarse.y.size), np.arange(coarse.x.size))


def _elsewhere(model: SRModel, coarse: Grid) -> Exception:
    """Return the error for a domain that is not (all) the model's."""
    where = (
        f"The data ({coarse.describe()}) are not on (a crop of) the model's coarse grid "
        f"({model.coarse_grid.describe()})"
    )
    if model.fixed_domain:
        return GridError(
            f"{where}, and the model is bound to its domain. Train one for other domains with "
            "fit(validation='space') or fit(data={'domain': 'open'})."
        )
    names = ", ".join(map(repr, model.static_scaling.names))
    return StaticFieldError(
        f"{where}, so its static fields are needed there: pass static=Dataset with {names} on the fine grid of "
        "the data."
    )


def _check_missing(fields: Sequence[xr.DataArray], model: SRModel) -> None:
    """Refuse missing values in memory where the training had none; lazy data are looked at when they are computed."""
    for da, part in zip(fields, model.inputs, strict=True):
        if part.variable.had_missing or is_lazy(da) or np.isfinite(da.data).all():
            continue
        share = 100 * float(np.mean(~np.isfinite(da.data)))
        raise DataError(
            f"{part.variable.name or 'The data'!r} is NaN in {share:.2g} % of the cells, but the model was trained on "
            "complete fields and has no mask channel; fill them, or train on data with the same gaps."
        )


def _whole(data: Any, model: SRModel, dtype: np.dtype) -> Any:
    """Return dask data in one chunk along y and x, where the network looks at the whole domain."""
    if not model.network.global_context or all(len(data.chunks[axis]) == 1 for axis in (-2, -1)):
        return data
    whole = data.rechunk({data.ndim - 2: -1, data.ndim - 1: -1})
    size = math.prod(max(sizes) for sizes in whole.chunks) * dtype.itemsize * model.scale**2
    warnings.warn(
        "The network looks at the whole domain (attention='channel'), which cannot be tiled in y and x: chunks are "
        f"merged there, and one block of the result takes {size / 2**20:.3g} MiB. Chunk in time instead.",
        XSuperResWarning,
        stacklevel=6,
    )
    return whole


def _merged(data: Any, plans: list[AxisPlan]) -> Any:
    """Return dask data whose chunks are no smaller than the halo."""
    sizes = {}
    for axis, plan in enumerate(plans):
        chunks, least = data.chunks[axis], max(plan.halo)
        if len(chunks) > 1 and min(chunks) < least:
            count = max(1, sum(chunks) // max(2 * least, max(chunks)))
            sizes[axis] = split(sum(chunks), -(-sum(chunks) // count))
    if not sizes:
        return data
    warnings.warn(
        f"Chunks of {[min(data.chunks[a]) for a in sizes]} cells are smaller than the model's halo of "
        f"{[max(plans[a].halo) for a in sizes]}; they are merged. Larger chunks in y and x are faster.",
        XSuperResWarning,
        stacklevel=5,
    )
    return data.rechunk(sizes)


def _lead_tiles(shape: tuple[int, ...], count: int, model: SRModel, budget: int) -> list[tuple[int, ...]]:
    """Return chunks of the leading axes of in-memory data, so that a block's result is a part of the budget."""
    fields = max(1, budget // 4 // max(1, math.prod(shape[count:]) * model.scale**2 * 8))
    least = 8 * sum(model.time_halo)  # else many frames are encoded twice
    chunks: list[tuple[int, ...]] = []
    for size in reversed(shape[:count]):
        largest, least = max(fields, least), 0
        chunks.insert(0, split(size, largest) if size else (0,))
        fields = max(1, fields // max(1, size))
    return chunks


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
    note = f"xsuperres: super-resolution, scale {model.scale}, model {model.identity[:16]}"
    out = attach(da, data, dims, coarse, target, note=note)
    return out.assign_attrs(xsuperres_model=model.identity, xsuperres_scale=model.scale)
