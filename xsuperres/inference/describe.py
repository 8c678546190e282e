"""What `downscale` would do with a field: axes, cells, static fields, halo, memory, time; nothing is computed.

Labelled arrays in, text out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from xsuperres.errors import GridError, StaticFieldError
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.grid import Grid, check_scale, grid_of
from xsuperres.fields.static import riding_statics
from xsuperres.fields.times import CALENDAR_FEATURES
from xsuperres.inference.apply import apply
from xsuperres.inference.domain import everywhere, misfit, resolution
from xsuperres.inference.frames import Frames
from xsuperres.inference.placement import Placement, placement
from xsuperres.inference.prepared import bytes_per_cell, prepare
from xsuperres.inference.tally import tallied
from xsuperres.model.artefact import SRModel

__all__ = ["describe"]

_TRIAL = 12  # side of the block that is timed, in coarse cells
_TRIALS = 3  # the best counts: other processes only slow one down


def describe(fields: Sequence[xr.DataArray], scale: int | None, model: SRModel | None) -> str:
    """Return a few lines on fields and what downscaling them means; see `SuperResolutionAccessor.describe`."""
    da, size = fields[0], sum(da.nbytes for da in fields)
    grid = grid_of(da)
    lead = [f"{dim} {da.sizes[dim]}" for dim in da.dims if dim not in grid.dims]
    rows = [
        *(("field", f"{f.name or 'unnamed'} [{f.attrs.get('units', 'no units')}], {f.dtype}") for f in fields),
        ("grid", grid.describe() + _flat(grid)),
        ("samples", " x ".join(lead) or "a single field"),
        ("data", _chunks(da) if is_lazy(da) else f"in memory, {_bytes(size)}"),
    ]
    factor = model.scale if model is not None else scale
    moved = None if model is None else _moved(model, grid)
    used = grid if moved is None or moved.target is None else moved.target
    if factor is not None:
        fine = used.refine(check_scale(factor))
        share = used.y.size * used.x.size / (grid.y.size * grid.x.size)
        rows.append(("fine grid", fine.describe()))
        rows.append(("result", f"{_bytes(size * share * factor**2)}"))
    fits = model is not None and model.coarse_grid.locate(grid) is not None
    if model is not None and moved is not None:
        refused = moved.target is None and model.fixed_domain
        rows += [_named(model), ("domain", moved.note)] if refused else _with_model(fields, grid, used, model, moved)
    if factor is not None and not fits:
        rows.append(("as training data", _as_training(grid, factor)))
    if model is None:
        rows.append(("static fields", ", ".join(riding_statics(da, grid)) or "none ride along"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _flat(grid: Grid) -> str:
    """Return what is said of cell areas where axes are no angles on the sphere."""
    if (grid.y.kind, grid.x.kind) != ("other", "other"):
        return ""
    even = float(np.ptp(grid.area)) <= 1e-3
    return "; neither latitude nor longitude, areas taken as " + ("equal" if even else "the product of spacings")


def _chunks(da: xr.DataArray) -> str:
    sizes = " x ".join(str(max(chunks, default=0)) for chunks in da.chunks or ())
    blocks = math.prod(len(chunks) for chunks in da.chunks or ())
    return f"lazy, chunks {sizes}, {blocks} block{'s' if blocks != 1 else ''}"


def _as_training(grid: Grid, scale: int) -> str:
    """Return the coarse grid that ``fit(scale)`` would make of these data, or what to crop."""
    try:
        return f"coarsened to {grid.coarsen(scale).describe()}"
    except GridError as error:
        return str(error)


def _named(model: SRModel) -> tuple[str, str]:
    return "model", f"{model.spec.backbone} + {model.spec.upsampling}, digest {model.identity[:12]}"


@dataclass(frozen=True)
class _Moved:
    """Where data go without static fields (None: nowhere), how they get there, and what is said of it."""

    target: Grid | None
    note: str
    way: Placement | None = None

    def of(self, fields: Sequence[xr.DataArray], model: SRModel) -> Sequence[xr.DataArray]:
        """Return the fields there."""
        if self.way is None:
            return fields
        return [self.way.moved(da, model.data.minimum_valid_fraction) for da in fields]


def _moved(model: SRModel, grid: Grid) -> _Moved:
    names = ", ".join(model.static_scaling.names)
    given = f"pass static= with {names}, fine" if names and not model.fixed_domain else ""
    if model.coarse_grid.locate(grid) is not None:
        return _Moved(grid, "on the model's grid: its static fields are used")
    try:
        found = placement(model, grid)
    except (GridError, StaticFieldError):
        told = f"not on (a crop of) the model's coarse grid: {misfit(model, grid)}"
        return _Moved(None, f"elsewhere ({misfit(model, grid)}): {given}" if given else told)
    if found is None:
        return _Moved(grid, f"elsewhere ({resolution(model, grid) or misfit(model, grid)})")
    return _Moved(found.target, found.note + (f" For all of the data {given}." if given else ""), found)


def _with_model(
    fields: Sequence[xr.DataArray], grid: Grid, used: Grid, model: SRModel, moved: _Moved
) -> list[tuple[str, str]]:
    """Return what there is to say of a model that can be applied here, with static fields where it needs them."""
    names = ", ".join(model.static_scaling.names)
    cells = used.y.size * used.x.size
    samples = fields[0].size / (grid.y.size * grid.x.size)
    seconds = samples * cells * _seconds_per_cell(model)
    return [
        _named(model),
        ("static fields", names or "none"),
        ("domain", moved.note),
        *_range(fields, model, moved),
        ("halo", "the whole domain" if model.halo is None else f"{model.halo} coarse cells"),
        ("memory", f"about {_bytes(cells * bytes_per_cell(model))} of activations per field"),
        ("time", f"about {seconds:.2g} s on one device like this CPU"),
    ]


def _range(fields: Sequence[xr.DataArray], model: SRModel, moved: _Moved) -> list[tuple[str, str]]:
    """Return how much of the model's variables, where they go, lies outside its training's range, if in memory."""
    if not all(isinstance(da.variable._data, np.ndarray) for da in fields):
        return []
    fields = moved.of(fields, model)
    grid = grid_of(fields[0])
    named = {da.name: da for da in fields} if len(model.targets) > 1 else {model.targets[0].coarse.name: fields[0]}
    if not set(model.input_names) <= set(named):
        return []
    location = model.coarse_grid.locate(grid)
    told = []
    for target, part in zip(model.targets, model.ranges, strict=False):
        part = part if location is not None else part.on(model.coarse_grid, grid)
        values = grid.canonical(named[target.coarse.name]).values[..., None, :, :]
        tally = tallied([part.limits()], values, location or everywhere(grid))
        told.append(f"{100 * tally.share[0]:.3g} %" + (f" ({target.coarse.name})" if len(model.targets) > 1 else ""))
    return [("range", f"{', '.join(told)} of the cells outside that of the training")]


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
    best = math.inf
    for _ in range(_TRIALS):
        start = time.perf_counter()
        apply(prepared, frames)
        best = min(best, time.perf_counter() - start)
    return best / math.prod(shape)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return ""
