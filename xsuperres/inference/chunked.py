"""`downscale`: the lazy whole from `apply` on tiles.

Labelled arrays in and out. On dask input nothing is computed; in-memory input runs through the same tiles at once.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, DataError, GridError, StaticFieldError, XSuperResWarning
from xsuperres.fields.checks import check_units, check_values, check_variable, is_lazy
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.labels import attach, named_like
from xsuperres.fields.resample import fine_index, fine_like, plane_plans
from xsuperres.fields.static import StaticLike, find_static, given_fields
from xsuperres.inference.apply import Mask, Prepared, apply, sub_batch
from xsuperres.inference.workers import ModelReference, admitted, choose_device, prepared_model, refer
from xsuperres.model.artefact import SRModel
from xsuperres.options import current_options
from xsuperres.tiles import AxisPlan, map_tiles, split

__all__ = ["Tile", "bind", "downscale"]


@dataclass(frozen=True)
class Tile:
    """The function of one task: small, picklable, deterministic to tokenize.

    `first` is the model's coarse cell (row, column) where the data begin, `period` how many columns make a turn.
    """

    reference: ModelReference
    first: tuple[int, int]
    period: int
    device: str
    batch_size: int | None
    mask: Mask
    memory_budget: int

    def __call__(self, block: np.ndarray, origin: tuple[int, ...]) -> np.ndarray:
        """Return the fine block (..., Y, X) of a coarse block (..., y, x) that starts at `origin`.

        A block too large for the memory budget goes through the network in tiles of its own; their halo ends at the
        block's edges, whose outermost cells are either the domain's or trimmed.
        """
        fields = block.reshape(-1, *block.shape[-2:])
        corner = self.first[0] + origin[-2], self.first[1] + origin[-1]
        with admitted():
            prepared = prepared_model(self.reference, choose_device(self.device))  # the worker's own
            plan = AxisPlan(halo=(prepared.halo,) * 2, scale=prepared.scale)
            fine = map_tiles(
                partial(self._apply, prepared, corner),
                fields,
                (AxisPlan(), plan, plan),
                dtype=block.dtype,
                chunks=[(len(fields),), *plane_tiles(fields.shape[-2:], prepared, self.memory_budget)],
            )
        return fine.reshape(*block.shape[:-2], *fine.shape[-2:])

    def _apply(
        self, prepared: Prepared, corner: tuple[int, int], fields: np.ndarray, origin: tuple[int, ...]
    ) -> np.ndarray:
        rows, columns = (
            start + at + np.arange(size) for start, at, size in zip(corner, origin[1:], fields.shape[1:], strict=True)
        )
        size = self.batch_size or sub_batch(prepared, rows.size * columns.size)
        return apply(prepared, fields, rows, columns % self.period, batch_size=size, mask=self.mask)


def downscale(
    da: xr.DataArray,
    model: SRModel,
    *,
    static: StaticLike | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    mask: Mask = "model",
) -> xr.DataArray:
    """Apply `model` to `da`; see `SuperResolutionAccessor.downscale`."""
    if mask not in ("input", "model", None):
        raise ConfigError(f"mask must be 'input', 'model' or None, got {mask!r}.")
    if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    choose_device(device)
    check_values(da)
    check_units(da, model.variable.units, what="downscale")
    check_variable(da, model.variable.name, model.variable.standard_name)
    coarse = grid_of(da)
    bound, location = bind(model, da, coarse, static)
    values = coarse.canonical(da)
    _check_missing(values, model)
    lazy = is_lazy(values)
    tile = Tile(
        reference=refer(bound, to_file=lazy),
        first=(int(location.rows[0]), int(location.columns[0])),
        period=bound.coarse_grid.x.size,
        device=device,
        batch_size=batch_size,
        mask=mask,
        memory_budget=current_options().memory_budget,
    )
    data = _mapped(tile, values, bound, coarse)
    fine_location = Location(*(fine_index(i, model.scale) for i in (location.rows, location.columns)))
    fine = named_like(bound.grid.crop(fine_location), coarse, bound.coarse_grid.crop(location))
    return _labelled(da, data, values.dims, coarse, fine, bound, fine_location)


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


def _check_missing(values: xr.DataArray, model: SRModel) -> None:
    if model.variable.had_missing:
        return
    if is_lazy(values):
        return
    if not np.isfinite(values.data).all():
        share = 100 * float(np.mean(~np.isfinite(values.data)))
        raise DataError(
            f"The data are NaN in {share:.2g} % of the cells, but the model was trained on complete fields and has no "
            "mask channel; fill them, or train on data with the same gaps."
        )


def _mapped(tile: Tile, values: xr.DataArray, model: SRModel, coarse: Grid) -> Any:
    plans = plane_plans(values.ndim, coarse, model.halo, model.scale)
    if is_lazy(values):
        return map_tiles(tile, _merged(values.data, plans), plans, dtype=values.dtype, name="downscale", token=tile)
    lead = _lead_tiles(values.shape, model.scale, values.dtype.itemsize, tile.memory_budget)
    chunks = [*lead, (coarse.y.size,), (coarse.x.size,)]
    return map_tiles(tile, values.data, plans, dtype=values.dtype, chunks=chunks)


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


def _lead_tiles(shape: tuple[int, ...], scale: int, itemsize: int, budget: int) -> list[tuple[int, ...]]:
    """Return chunks of the leading axes of in-memory data, so that a block's result is a part of the budget."""
    fields = max(1, budget // 4 // max(1, shape[-2] * shape[-1] * scale**2 * itemsize))
    chunks: list[tuple[int, ...]] = []
    for size in reversed(shape[:-2]):
        chunks.insert(0, split(size, fields) if size else (0,))
        fields = max(1, fields // max(1, size))
    return chunks


def plane_tiles(shape: tuple[int, int], prepared: Prepared, budget: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return tiles of one field such that the network's activations for a tile and its halo fit the budget."""
    cells, margin = max(1, budget // prepared.bytes_per_cell), 2 * prepared.halo
    if (shape[0] + margin) * (shape[1] + margin) <= cells:
        return (shape[0],), (shape[1],)
    least = max(1, 4 * prepared.halo)  # else most of the work is done on halos
    wide = min(shape[1], max(least, math.isqrt(cells) - margin))
    tall = min(shape[0], max(least, cells // (wide + margin) - margin))
    return split(shape[0], tall), split(shape[1], wide)


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
