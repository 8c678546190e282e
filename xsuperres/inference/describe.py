"""What `downscale` would do with a field: axes, cells, static fields, halo, memory, time; nothing is computed.

Labelled arrays in, text out.
"""

from __future__ import annotations

import math
import time

import numpy as np
import xarray as xr

from xsuperres.errors import XSuperResError
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.grid import Grid, check_scale, grid_of
from xsuperres.fields.static import riding_statics
from xsuperres.fields.times import CALENDAR_FEATURES
from xsuperres.inference.apply import Frames, apply, bytes_per_cell, prepare
from xsuperres.inference.chunked import bind
from xsuperres.model.artefact import SRModel

__all__ = ["describe"]

_TRIAL = 12  # side of the block that is timed, in coarse cells


def describe(da: xr.DataArray, scale: int | None, model: SRModel | None) -> str:
    """Return a few lines on `da` and what downscaling it means; see `SuperResolutionAccessor.describe`."""
    grid = grid_of(da)
    lead = [f"{dim} {da.sizes[dim]}" for dim in da.dims if dim not in grid.dims]
    rows = [
        ("field", f"{da.name or 'unnamed'} [{da.attrs.get('units', 'no units')}], {da.dtype}"),
        ("grid", grid.describe()),
        ("samples", " x ".join(lead) or "a single field"),
        ("in memory", f"chunks {da.chunks}" if is_lazy(da) else f"{_bytes(da.nbytes)}"),
    ]
    factor = model.scale if model is not None else scale
    if factor is not None:
        fine = grid.refine(check_scale(factor))
        rows.append(("fine grid", fine.describe()))
        rows.append(("result", f"{_bytes(da.nbytes * factor**2)}"))
    if model is not None:
        rows += _with_model(da, grid, model)
    else:
        rows.append(("static fields", ", ".join(riding_statics(da, grid)) or "none ride along"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _with_model(da: xr.DataArray, grid: Grid, model: SRModel) -> list[tuple[str, str]]:
    try:
        bind(model, da, grid, None)
        where = "on the model's grid: its static fields are used"
    except XSuperResError as error:
        where = str(error)
    fields = int(np.prod([da.sizes[d] for d in da.dims if d not in grid.dims], dtype=int))
    cells = grid.y.size * grid.x.size
    seconds = fields * cells * _seconds_per_cell(model)
    return [
        ("model", f"{model.spec.backbone} + {model.spec.upsampling}, digest {model.identity[:12]}"),
        ("static fields", ", ".join(model.static_scaling.names) or "none"),
        ("domain", where),
        ("halo", "the whole domain" if model.halo is None else f"{model.halo} coarse cells"),
        ("memory", f"about {_bytes(cells * bytes_per_cell(model))} of activations per field"),
        ("time", f"about {seconds:.3g} s on one device like this CPU"),
    ]


def _seconds_per_cell(model: SRModel) -> float:
    """Return measured seconds per coarse cell of one field, from one small block."""
    shape = tuple(min(_TRIAL, size) for size in model.coarse_grid.shape)
    window = model.spec.time_window
    count = len(model.targets) + len(model.predictors)
    frames = Frames(
        values=np.zeros((window or 1, count, *shape), np.float32),
        rows=np.arange(shape[0]),
        columns=np.arange(shape[1]),
        calendar=np.zeros((window or 1, CALENDAR_FEATURES)) if model.data.calendar else None,
        windows=None if window is None else np.arange(window)[None],
    )
    prepared = prepare(model)
    apply(prepared, frames)
    start = time.perf_counter()
    apply(prepared, frames)
    return (time.perf_counter() - start) / math.prod(shape)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return ""
