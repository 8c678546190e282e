"""`downscale`: the lazy whole from `apply` on tiles.

Labelled arrays in and out. On dask input nothing is computed; in-memory input runs through the same tiles at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, DataError, GridError, StaticFieldError, XSuperResWarning
from xsuperres.fields.checks import check_units, check_values, check_variable, is_lazy
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.labels import attach, named_like
from xsuperres.fields.resample import fine_index, fine_like, plane_plans
from xsuperres.fields.static import StaticLike, find_static, given_fields
from xsuperres.inference.apply import apply, bytes_per_cell, sub_batch
from xsuperres.inference.workers import ModelReference, admitted, choose_device, prepared_model, refer
from xsuperres.model.artefact import SRModel
from xsuperres.options import current_options
from xsuperres.tiles import AxisPlan, map_tiles, split

__all__ = ["Tile", "bind", "downscale"]

Mask = Literal["input", "model"] | None


@dataclass(frozen=True)
class Tile:
    """The function of one task: small, picklable, deterministic to tokenize."""

    reference: ModelReference
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    device: str
    batch_size: int | None
    restore: bool

    def __call__(self, block: np.ndarray, origin: tuple[int, ...]) -> np.ndarray:
        """Return the fine block (..., Y, X) of a coarse block (..., y, x) that starts at `origin`."""
        *lead, ny, nx = block.shape
        rows = np.asarray(self.rows)[origin[-2] + np.arange(ny)]
        columns = np.asarray(self.columns)[(origin[-1] + np.arange(nx)) % len(self.columns)]
        with admitted():
            prepared = prepared_model(self.reference, choose_device(self.device))  # the worker's own
            fine = apply(
                prepared,
                block.reshape(-1, ny, nx),
                rows,
                columns,
                batch_size=self.batch_size or sub_batch(prepared, ny * nx),
                restore=self.restore,
            )
        return fine.reshape(*lead, *fine.shape[-2:])


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
        refer(bound, to_file=lazy),
        tuple(location.rows.tolist()),
        tuple(location.columns.tolist()),
        device,
        batch_size,
        mask is not None,
    )
    data = _mapped(tile, values, bound, coarse)
    fine_location = Location(*(fine_index(i, model.scale) for i in (location.rows, location.columns)))
    fine = named_like(bound.grid.crop(fine_location), coarse, bound.coarse_grid.crop(location))
    if mask == "model" and bound.fine_mask is not None:
        keep = bound.fine_mask[np.ix_(fine_location.rows, fine_location.columns)]
        data = _where(data, keep)
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
    chunks = None if is_lazy(values) else _tiles_in_memory(values.shape, model)
    data = _merged(values.data, plans) if is_lazy(values) else values.data
    return map_tiles(tile, data, plans, dtype=values.dtype, chunks=chunks, name="downscale", token=tile)


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


def _tiles_in_memory(shape: tuple[int, ...], model: SRModel) -> list[tuple[int, ...]]:
    """Return tiles of in-memory data: whole fields unless one alone exceeds the memory budget."""
    cells = max(1, current_options().memory_budget // bytes_per_cell(model))
    *lead, ny, nx = shape
    tall = max(4 * model.halo, 1, cells // (nx + 2 * model.halo) - 2 * model.halo)
    return [*((size,) for size in lead), split(ny, tall) if ny * nx > cells else (ny,), (nx,)]


def _where(data: Any, keep: np.ndarray) -> Any:
    if not hasattr(data, "dask"):
        return np.where(keep, data, np.nan).astype(data.dtype)
    import dask.array

    plane = dask.array.from_array(keep, chunks=data.chunks[-2:])
    return dask.array.where(plane, data, np.array(np.nan, data.dtype))


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
