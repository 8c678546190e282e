"""Coarse fields laid out as one array for the tiles, and how its axes are tiled.

Labelled arrays in, a lazy or eager array out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, warn
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid
from xsuperres.fields.stack import stack
from xsuperres.fields.times import alike
from xsuperres.inference.tile import Tile
from xsuperres.model.artefact import SRModel
from xsuperres.tiles import AxisPlan, map_tiles, plane_plans, split

__all__ = ["MEMBER", "Layout"]

MEMBER = "member"


@dataclass(frozen=True, eq=False)
class Layout:
    """The coarse data as one array for the tiles: (others..., [inits], [time], [variables], y, x), in canonical order.

    Time, or the lead of forecasts, comes last among the leading dims where the network sees it, after the dims of
    initial times if it depends on them; variables are an axis where there are several, members are the first axis.
    """

    values: xr.DataArray
    dims: tuple[str, ...]
    dtypes: tuple[np.dtype, ...]
    stacked: bool
    steps: tuple[tuple[int, ...], np.ndarray] | None
    model: SRModel
    grid: Grid
    members: int | None

    @classmethod
    def of(cls, fields: Sequence[Field], predictors: Sequence[Field], model: SRModel, members: int | None) -> Layout:
        """Return the layout of coarse fields, and predictors on the same cells."""
        first, grid, everything = fields[0], fields[0].grid, [*fields, *predictors]
        lead, features = first.lead, _step_features(first, model)
        if features is not None:
            lead = [*(dim for dim in lead if dim not in features.dims), *map(str, features.dims[:-1])]
        stacked = len(everything) > 1
        if stacked:
            values = stack(everything, grid, lead, {dim: first.array.sizes[dim] for dim in lead})
        else:
            values = xr.DataArray(first.canonical().transpose(*lead, *grid.dims))
        if members is not None:
            if MEMBER in lead or MEMBER in first.array.coords:
                kind = "dimension" if MEMBER in lead else "coordinate"
                raise ConfigError(f"The data have a {kind} {MEMBER!r} already; rename it before members={members}.")
            values = values.expand_dims(MEMBER)
            lead = [MEMBER, *lead]
        axes = () if features is None else tuple(range(len(lead) - features.ndim + 1, len(lead)))
        steps = None if features is None else (axes, features.values)
        dtypes = tuple(field.array.dtype.newbyteorder("=") for field in fields)
        return cls(values, (*lead, *grid.dims), dtypes, stacked, steps, model, grid, members)

    @property
    def order(self) -> tuple[int, ...]:
        """The leading axes, variables apart, by the names of their dims."""
        lead = self.dims[:-2]
        return tuple(sorted(range(len(lead)), key=lambda axis: lead[axis]))

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
        plans = plane_plans(len(self.dims), (self.grid.y.periodic, self.grid.x.periodic), model.reach, model.scale)
        if model.spec.time_window is not None:
            plans[-3] = AxisPlan(halo=model.time_halo, consumed=True)
        if self.members is not None:
            plans[0] = AxisPlan(copies=self.members)
        if self.stacked:
            plans.insert(len(plans) - 2, AxisPlan(count=len(model.targets)))
        return plans

    @property
    def each(self) -> Any:
        """The coarse data (..., variables, y, x), also of a single variable."""
        data = self.values.data
        return data if self.stacked else data[..., None, :, :]

    def parts(self, data: Any) -> list[Any]:
        """Return the fine data of each target, in the dtype of its own field."""
        if not self.stacked:
            return [data]
        return [data[..., index, :, :].astype(dtype, copy=False) for index, dtype in enumerate(self.dtypes)]

    def like(self, da: xr.DataArray) -> xr.DataArray:
        """Return what the result is labelled like: `da`, with members."""
        return da if self.members is None else da.expand_dims({MEMBER: np.arange(self.members)})


def _step_features(field: Field, model: SRModel) -> xr.Variable | None:
    """Return segment and calendar of every step (..., steps, 1 + features), if the network sees them."""
    window, calendar = model.spec.time_window is not None, model.data.calendar
    if not window and not calendar:
        return None
    times, usual = field.times, model.training.step
    features = times.columns(field.array, window=window, calendar=calendar, usual=usual)
    if window and usual is not None and times.step is not None and not alike(usual, times.step):
        warn(
            f"Steps along {times.along!r} are of {times.step:g} hours, those that the model was trained on of "
            f"{usual:g}: its time window sees changes of another speed. Select or average steps like those of the "
            "training."
        )
    return features


def _whole(data: Any, model: SRModel, dtype: np.dtype) -> Any:
    """Return dask data in one chunk along y and x, where the network looks at the whole domain."""
    if not model.network.global_context or all(len(data.chunks[axis]) == 1 for axis in (-2, -1)):
        return data
    whole = data.rechunk({data.ndim - 2: -1, data.ndim - 1: -1})
    size = math.prod(max(sizes) for sizes in whole.chunks) * dtype.itemsize * model.scale**2
    warn(
        "The network looks at the whole domain (attention='channel'), which cannot be tiled in y and x: chunks are "
        f"merged there, and one block of the result takes {size / 2**20:.3g} MiB. Chunk in time instead."
    )
    return whole


def _merged(data: Any, plans: list[AxisPlan]) -> Any:
    """Return dask data whose chunks are no smaller than the halo, but maybe the last: Zarr wants the others equal."""
    sizes = {}
    for axis, plan in enumerate(plans):
        chunks, least = data.chunks[axis], max(plan.halo)
        if min(chunks[:-1], default=least) < least:
            unit = chunks[0] if len(set(chunks[:-1])) == 1 and chunks[-1] <= chunks[0] else 1
            sizes[axis] = unit * -(-max(2 * least, *chunks) // max(1, unit))  # whole chunks, as they are stored
    if not sizes:
        return data
    warn(
        f"Chunks of {[min(data.chunks[a][:-1]) for a in sizes]} cells are smaller than the model's halo of "
        f"{[max(plans[a].halo) for a in sizes]}; they are merged. Larger chunks are faster there."
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
