"""Coarsening and interpolation of fields, labelled and bare, with cell areas and missing cells.

Labelled arrays in and out; the arithmetic of interpolation is `xsuperres.nn.resample`'s, tiled by
`xsuperres.tiles`. Torch and dask are imported when first needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.errors import GridError
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, check_scale, grid_of, named_like
from xsuperres.tiles import Window, map_tiles, plane_plans

__all__ = [
    "coarsen",
    "coarsen_array",
    "fine_like",
    "fine_part",
    "interpolate",
    "interpolate_array",
]


def coarsen_array(
    values: np.ndarray, area: np.ndarray, scale: int, *, minimum_valid_fraction: float = 0.5
) -> np.ndarray:
    """Return area-weighted means of scale x scale groups of cells, NaN where too little area is valid.

    Parameters
    ----------
    values : ndarray (..., y, x)
        In canonical order; the result keeps its dtype, sums are float64.
    area : ndarray (y, x)
        Cell areas.
    minimum_valid_fraction : float
        Least valid fraction of a group's area.
    """
    valid = np.isfinite(values)
    weight = np.where(valid, area, 0.0)
    total = _group_sum(np.broadcast_to(area, values.shape[-2:]), scale)
    covered = _group_sum(weight, scale)
    sums = _group_sum(np.where(valid, values, 0.0) * weight, scale)
    enough = (covered > 0) & (covered >= minimum_valid_fraction * total * (1 - 1e-9))
    means = np.divide(sums, covered, out=np.full(sums.shape, np.nan), where=enough)
    return means.astype(values.dtype)


def _group_sum(values: np.ndarray, scale: int) -> np.ndarray:
    """Add up the cells of each group in a fixed order, so that memory layout and chunks do not change a bit."""
    total = values[..., ::scale, ::scale].copy()
    for row, column in list(np.ndindex(scale, scale))[1:]:
        total += values[..., row::scale, column::scale]
    return total


def interpolate_array(values: np.ndarray, scale: int, method: str = "bicubic", *, periodic: bool = False) -> np.ndarray:
    """Refine `values` (..., y, x), one connected part, NaN-aware; computed in float64, dtype kept.

    NaN cells stay NaN over all their fine cells.
    """
    from xsuperres.nn.resample import radius

    wrap = radius(method) if periodic else 0
    index = np.arange(-wrap, values.shape[-1] + wrap) % values.shape[-1]
    fine = _interpolate_block(values[..., index] if wrap else values, scale, method)
    return fine[..., wrap * scale : fine.shape[-1] - wrap * scale]


def _interpolate_block(block: np.ndarray, scale: int, method: str) -> np.ndarray:
    import torch

    from xsuperres.nn.resample import interpolate as refine
    from xsuperres.nn.resample import interpolate_valid, repeat_cells

    *lead, ny, nx = block.shape
    planes = torch.from_numpy(np.ascontiguousarray(block, dtype=np.float64).reshape(-1, 1, ny, nx))
    valid = torch.isfinite(planes)
    if bool(valid.all()):
        fine = refine(planes, scale, method)
    else:
        fine = interpolate_valid(torch.nan_to_num(planes), valid, scale, method)
        fine = torch.where(repeat_cells(valid.double(), scale) > 0.5, fine, torch.nan)
    return fine.reshape(*lead, ny * scale, nx * scale).numpy().astype(block.dtype)


def interpolate(
    field: Field, scale: int, *, method: str = "bicubic", like: xr.DataArray | xr.Dataset | None = None
) -> Field:
    """Refine a field by interpolation; see `SuperResolutionAccessor.interpolate`."""
    from xsuperres.nn.resample import radius

    scale, reach = check_scale(scale), radius(method)
    coarse, values = field.grid, field.canonical()
    fine = coarse.refine(scale) if like is None else named_like(fine_like(like, coarse, scale), coarse)

    def refine(block: np.ndarray, parts: tuple[Window, ...]) -> np.ndarray:
        return _interpolate_block(block, scale, method)

    data = map_tiles(
        refine,
        values.data,
        plane_plans(values.ndim, (coarse.y.periodic, coarse.x.periodic), reach, scale),
        dtype=values.dtype,
        name="interpolate",
        token=(method, scale),
    )
    return field.labelled(data, fine, note=f"{method} interpolation, scale {scale}")


def fine_like(
    like: xr.DataArray | xr.Dataset,
    coarse: Grid,
    scale: int,
    *,
    what: str = "`like`",
    error: type[Exception] = GridError,
) -> Grid:
    """Return the part of the grid of `like` that `coarse` refines to, or raise `error` about `what`."""
    fine = grid_of(like) if isinstance(like, xr.DataArray) else grid_of(_first_plane(like), bounds=like)
    return fine_part(fine, coarse, scale, what=what, error=error)


def fine_part(
    fine: Grid, coarse: Grid, scale: int, *, what: str = "`like`", error: type[Exception] = GridError
) -> Grid:
    """Return the part of a fine grid that `coarse` refines to, or raise `error` about `what`."""
    location = fine.locate(coarse, scale) or fine.locate(coarse.refine(scale))
    if location is None:
        why = coarse.mismatch(fine)
        raise error(
            f"{what} lies on another grid, or covers only a part: expected cells of "
            f"{coarse.refine(scale).describe()} (scale={scale}), or more of the same, got {fine.describe()}"
            f"{'' if why is None else ': ' + why}."
        )
    return fine.crop(location)


def _first_plane(ds: xr.Dataset) -> xr.DataArray:
    planes = [v for v in ds.data_vars.values() if v.ndim >= 2]
    if not planes:
        raise GridError("Expected a Dataset with a field on the fine grid, got none of 2 or more dims.")
    return planes[0]


def coarsen(field: Field, scale: int, *, minimum_valid_fraction: float = 0.5) -> Field:
    """Coarsen a field by area-weighted means; see `SuperResolutionAccessor.coarsen`."""
    scale = check_scale(scale)
    minimum_valid_fraction = DataConfig(minimum_valid_fraction=minimum_valid_fraction).minimum_valid_fraction
    grid, coarse, values = field.grid, field.grid.coarsen(scale), field.canonical()
    data = _coarsen_data(values.data, grid.area, scale, minimum_valid_fraction, lazy=field.lazy)
    out = field.labelled(data, coarse, note=f"area-weighted coarsening, scale {scale}")
    planes = {
        name: _coarsen_plane(coordinate, grid, scale, minimum_valid_fraction)
        for name, coordinate in field.array.coords.items()
        if set(coordinate.dims) == set(grid.dims) and coordinate.dtype.kind in "fbiu" and name not in out.array.coords
    }
    return out.with_array(out.array.assign_coords(planes)) if planes else out


def _coarsen_plane(coordinate: xr.DataArray, grid: Grid, scale: int, fraction: float) -> xr.DataArray:
    """Return the area-weighted coarsening of a 2-D coordinate, float, in its own order of dims."""
    dtype = coordinate.dtype if coordinate.dtype.kind == "f" else np.dtype(np.float32)
    values = grid.canonical(coordinate).astype(np.float64)
    mean = _coarsen_data(values.data, grid.area, scale, fraction, lazy=is_lazy(coordinate)).astype(dtype)
    return grid.restored(xr.DataArray(mean, dims=grid.dims, attrs=coordinate.attrs), coordinate.dims)


def _coarsen_data(data: Any, area: np.ndarray, scale: int, fraction: float, *, lazy: bool) -> Any:
    if not lazy:
        return coarsen_array(np.asarray(data), area, scale, minimum_valid_fraction=fraction)
    import dask.array

    whole = {axis: tuple(_multiples(data.chunks[axis], scale)) for axis in (data.ndim - 2, data.ndim - 1)}
    data = data.rechunk(whole)
    weights = dask.array.from_array(area, chunks=data.chunks[-2:])
    sizes = [tuple(c // scale for c in chunks) for chunks in data.chunks[-2:]]
    return dask.array.map_blocks(
        coarsen_array,
        data,
        weights,
        scale,
        minimum_valid_fraction=fraction,
        chunks=(*data.chunks[:-2], *sizes),
        dtype=data.dtype,
        meta=np.empty((0,) * data.ndim, data.dtype),
        name=None,
    )


def _multiples(chunks: tuple[int, ...], scale: int) -> list[int]:
    """Return chunk sizes with every boundary moved down to a multiple of `scale`."""
    edges = np.unique(np.concatenate([[0], np.cumsum(chunks) // scale * scale]))
    edges[-1] = sum(chunks)
    return np.diff(edges).tolist()
