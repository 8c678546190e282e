"""What `downscale` would do with a field: axes, cells, static fields, halo, memory, time; nothing is computed.

Fields in, text out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import xarray as xr

from xsuperres.errors import GridError
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location, check_scale
from xsuperres.fields.static import riding_statics
from xsuperres.fields.times import CALENDAR_FEATURES
from xsuperres.inference.apply import apply
from xsuperres.inference.domain import Placement, misfit, placement, resolution
from xsuperres.inference.frames import Frames
from xsuperres.inference.prepared import bytes_per_cell, prepare
from xsuperres.inference.tally import tallied
from xsuperres.model.artefact import SRModel

__all__ = ["describe"]

_TRIAL = 12  # side of the block that is timed, in coarse cells
_TRIALS = 3  # the best counts: other processes only slow one down


def describe(fields: Sequence[Field], scale: int | None, model: SRModel | None) -> str:
    """Return a few lines on fields and what downscaling them means; see `SuperResolutionAccessor.describe`."""
    first, grid, size = fields[0], fields[0].grid, sum(field.array.nbytes for field in fields)
    lead = [f"{dim} {first.array.sizes[dim]}" for dim in first.lead]
    rows = [
        *(("field", f"{f.name or 'unnamed'} [{f.units or 'no units'}], {f.array.dtype}") for f in fields),
        ("grid", grid.describe() + _flat(grid)),
        ("samples", " x ".join(lead) or "a single field"),
        ("data", _chunks(first.array) if first.lazy else f"in memory, {_bytes(size)}"),
    ]
    factor = model.scale if model is not None else scale
    place = None if model is None else placement(model, grid)
    target = grid if place is None else place.target
    if factor is not None:
        fine = target.refine(check_scale(factor))
        share = target.y.size * target.x.size / (grid.y.size * grid.x.size)
        rows.append(("fine grid", fine.describe()))
        rows.append(("result", f"{_bytes(size * share * factor**2)}"))
    if model is not None and place is not None:
        rows += _with_model(fields, model, place)
    if factor is not None and (place is None or place.kind != "same"):
        rows.append(("as training data", _as_training(grid, factor)))
    if model is None:
        rows.append(("static fields", ", ".join(riding_statics(first.array, grid)) or "none ride along"))
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


def _with_model(fields: Sequence[Field], model: SRModel, place: Placement) -> list[tuple[str, str]]:
    """Return what there is to say of a model, with static fields where it needs them."""
    named = ("model", f"{model.spec.backbone} + {model.spec.upsampling}, digest {model.identity[:12]}")
    domain = ("domain", _domain(model, place))
    if place.kind == "refused" and model.fixed_domain:
        return [named, domain]
    cells = place.target.y.size * place.target.x.size
    samples = fields[0].array.size / (place.source.y.size * place.source.x.size)
    seconds = samples * cells * _seconds_per_cell(model)
    return [
        named,
        ("static fields", ", ".join(model.static_scaling.names) or "none"),
        domain,
        *_range(fields, model, place),
        ("halo", "the whole domain" if model.halo is None else f"{model.halo} coarse cells"),
        ("memory", f"about {_bytes(cells * bytes_per_cell(model))} of activations per field"),
        ("time", f"about {seconds:.2g} s on one device like this CPU"),
    ]


def _domain(model: SRModel, place: Placement) -> str:
    """Return where the data lie on the model's domain, and what it needs to go where they are."""
    names = ", ".join(model.static_scaling.names)
    needed = f"pass static= with {names}, fine" if names and not model.fixed_domain else ""
    if place.kind == "same":
        return "on the model's grid: its static fields are used"
    if place.kind == "open":
        return f"elsewhere ({resolution(model, place.source) or misfit(model, place.source)})"
    if place.kind == "refused":
        reason = misfit(model, place.source)
        return f"elsewhere ({reason}): {needed}" if needed else f"not on (a crop of) the model's coarse grid: {reason}"
    return place.note + (f" For all of the data {needed}." if needed else "")


def _range(fields: Sequence[Field], model: SRModel, place: Placement) -> list[tuple[str, str]]:
    """Return how much of the model's variables, where they go, lies outside its training's range, if in memory."""
    if not all(isinstance(field.array.variable._data, np.ndarray) for field in fields):
        return []
    moved = [place.moved(field, model.data.minimum_valid_fraction) for field in fields]
    named = {f.name: f for f in moved} if len(model.targets) > 1 else {model.targets[0].coarse.name: moved[0]}
    if not set(model.input_names) <= set(named):
        return []
    grid = place.target
    location = model.coarse_grid.locate(grid)
    shares = []
    for target, part in zip(model.targets, model.ranges, strict=False):
        part = part if location is not None else part.on(model.coarse_grid, grid)
        values = grid.canonical(named[target.coarse.name].array).values[..., None, :, :]
        tally = tallied([part.limits()], values, location or Location.whole(grid))
        shares.append(f"{100 * tally.share[0]:.3g} %" + (f" ({target.coarse.name})" if len(model.targets) > 1 else ""))
    return [("range", f"{', '.join(shares)} of the cells outside that of the training")]


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
