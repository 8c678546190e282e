"""`score`: a field beside its baselines, metric by metric, region by region.

Labelled arrays in, one small Dataset out; dask-backed fields are computed once, at the end.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, XSuperResWarning, unknown_name
from xsuperres.fields.checks import check_units, check_values
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, check_scale, grid_of
from xsuperres.fields.pairs import ratio
from xsuperres.fields.resample import coarsen
from xsuperres.model.artefact import SRModel
from xsuperres.model.table import known_model
from xsuperres.verify.alignment import (
    at_times_of,
    bare,
    check_same_times,
    loaded_coords,
    on_grid,
    times_of,
    with_dims_of,
)
from xsuperres.verify.baselines import Ground, evaluated, model_location
from xsuperres.verify.blocks import on_blocks
from xsuperres.verify.metrics import METRICS, Pair
from xsuperres.verify.regions import region_weights, surface_of

__all__ = ["score", "training_overlap"]

Names = str | Iterable[str] | None

_MARK = "xsuperres_regridded"  # attribute of results that were made from data on other cells than the model's
_TRUTH_INSTEAD = "baselines are of the coarsened truth, the field is of regridded data: pass coarse= for theirs"


def score(
    fine: xr.DataArray,
    truth: xr.DataArray,
    *,
    coarse: xr.DataArray | None = None,
    model: SRModel | None = None,
    baselines: Names = None,
    metrics: Names = None,
    dim: Hashable | Iterable[Hashable] | None = None,
) -> xr.Dataset:
    """Score a field against the truth beside the baselines; see `SuperResolutionAccessor.score`.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> truth = xsr.testing.toy_field(time=2, y=8, x=12)
    >>> coarse = truth.sr.coarsen(2)
    >>> table = score(coarse.sr.interpolate(2, like=truth), truth, coarse=coarse, metrics=["rmse", "bias"])
    >>> table["product"].values.tolist(), table.rmse.attrs["units"]
    (['prediction', 'bilinear', 'bicubic', 'lapse'], 'K')
    >>> bool(table.rmse[3, 0] < table.rmse[2, 0])
    True
    """
    for field in (fine, truth) if coarse is None else (fine, truth, coarse):
        check_values(field)
    fine, truth = loaded_coords(fine), loaded_coords(truth)
    grid = grid_of(fine)
    truth = at_times_of(fine, truth, grid)
    check_same_times(fine, with_dims_of(truth, grid), grid, what="truth")
    check_units(truth, fine.attrs.get("units"), what="truth", like="the scored field")
    model, why_no_model = _model_of(fine, model)
    case = _Case(fine, truth, grid, model, _reduced(fine, grid, dim))
    if model is not None:
        units = model.target(fine.name).variable.units
        check_units(xr.DataArray(0.0, attrs={"units": units}), fine.attrs.get("units"), what="model")
        _warn_of_overlap(model, truth, grid)
    ground, notes = _ground(case, coarse, why_no_model)
    fields, absent = evaluated(ground, baselines)
    methods = {_name_of(fine): bare(fine, grid), **fields}
    table = _measured(case, ground, methods, _metric_names(metrics))
    for reason in dict.fromkeys(absent.values()):
        notes.append(f"no {', '.join(name for name in absent if absent[name] == reason)}: {reason}")
    return _described(table, case, ground.scale, notes)


@dataclass(frozen=True, eq=False)
class _Case:
    """What is scored, checked: the field, the truth, the fine grid, the model behind it, the dims to reduce."""

    fine: xr.DataArray
    truth: xr.DataArray
    grid: Grid
    model: SRModel | None
    dims: tuple[Hashable, ...]

    @cached_property
    def placed(self) -> xr.DataArray:
        """The truth by position: (..., y, x) in canonical order, without coordinates; lazy."""
        return on_grid(self.truth, self.grid, what="truth")

    def truth_here(self) -> xr.DataArray:
        """Return the truth with the horizontal coordinates of the scored field, whose coarse cells it is to have."""
        lines = [name for name, c in self.grid.coords.variables.items() if c.ndim == 1]
        kept = {n: c for n, c in self.truth.coords.items() if set(c.dims) <= set(self.placed.dims[:-2])}
        here = self.placed.assign_coords(kept).assign_coords(self.grid.coords[lines].coords)
        return here.assign_attrs(self.truth.attrs).rename(self.truth.name)


def _name_of(fine: xr.DataArray) -> str:
    return "network" if "xsuperres_model" in fine.attrs else "prediction"


def _model_of(fine: xr.DataArray, model: SRModel | None) -> tuple[SRModel | None, str]:
    """Return the model behind `fine` (given, else by the digest in the attributes), and why there is none."""
    digest = fine.attrs.get("xsuperres_model")
    if model is not None:
        if digest is not None and digest != model.identity:
            warnings.warn(
                f"The field was made by model {str(digest)[:12]}, the model given is {model.identity[:12]}: the "
                "trained baselines are those of the model given.",
                XSuperResWarning,
                stacklevel=4,
            )
        return model, ""
    if digest is None:
        return None, "the field bears no model digest (attribute xsuperres_model); pass model="
    found = known_model(str(digest))
    why = f"model {str(digest)[:12]} is not loaded in this process; load_model(path) or pass model="
    return found, "" if found else why


def _reduced(fine: xr.DataArray, grid: Grid, dim: Hashable | Iterable[Hashable] | None) -> tuple[Hashable, ...]:
    """Return the dims to reduce over; an unknown name is an error, and so is one that the table needs."""
    taken = sorted({"product", "region"} & set(map(str, fine.dims)))
    if taken:
        raise ConfigError(f"The table has dims of its own called product and region; rename the field's {taken} first.")
    if dim is None:
        return fine.dims
    asked = [dim] if isinstance(dim, str) or not isinstance(dim, Iterable) else list(dim)
    for name in asked:
        if name not in fine.dims:
            raise unknown_name("dimension", name, map(str, fine.dims))
    return tuple(name for name in fine.dims if name in asked)


def _metric_names(metrics: Names) -> list[str]:
    asked = [metrics] if isinstance(metrics, str) else metrics
    names = list(METRICS) if asked is None else [METRICS.canonical(name) for name in asked]
    if not names:
        raise ConfigError(f"metrics must name at least one of {', '.join(METRICS)}, got none.")
    return list(dict.fromkeys(names))


def _ground(case: _Case, coarse: xr.DataArray | None, why_no_model: str) -> tuple[Ground, list[str]]:
    """Return what baselines are made of: the coarse field, checked or made from the truth, and the static fields."""
    scale = _known_scale(case)
    if coarse is None:
        if case.model is not None and case.model.paired:
            raise ConfigError(
                "The model was trained on explicit pairs: pass coarse=, the coarse data that the field was made from; "
                "the coarsened truth is not what it was given."
            )
        if scale is None:
            raise ConfigError(
                "The scale is not known: the field bears no attribute xsuperres_scale and there is no model. Pass "
                "coarse=, the field it was made from."
            )
        kept = {"minimum_valid_fraction": case.model.data.minimum_valid_fraction} if case.model else {}
        coarse = coarsen(Field(case.truth_here()), scale, **kept).array
        notes = [_TRUTH_INSTEAD] if _MARK in case.fine.attrs else []
    else:
        coarse = with_dims_of(loaded_coords(coarse), case.grid)
        check_same_times(case.fine, coarse, case.grid, what="coarse")
        check_units(coarse, case.fine.attrs.get("units"), what="coarse", like="the scored field")
        scale = ratio(grid_of(coarse), case.grid) if scale is None else scale
        coarse, notes = on_blocks(coarse, case.grid, scale, case.model, regridded=_MARK in case.fine.attrs)
    location = model_location(case.model, case.grid, scale) if case.model else None
    surface, unusable = surface_of([case.fine, case.truth], case.grid, case.model, location)
    ground = Ground(coarse, case.fine, case.grid, scale, surface, case.model, why_no_model)
    return ground, [*notes, *unusable]


def _known_scale(case: _Case) -> int | None:
    if "xsuperres_scale" in case.fine.attrs:
        return check_scale(case.fine.attrs["xsuperres_scale"])
    return case.model.scale if case.model else None


def _measured(case: _Case, ground: Ground, methods: dict[str, xr.DataArray], names: list[str]) -> xr.Dataset:
    """Return the metrics of all methods over the cells that are valid in all of them."""
    truth = case.placed
    valid = truth.notnull()
    for values in methods.values():
        valid = valid & values.notnull()
    order = (*(d for d in case.fine.dims if d not in case.grid.dims), *case.grid.dims)
    valid = valid.transpose(*order)
    repeated = ground.interpolated("nearest").astype(np.float64) if "consistency" in names else None
    truth = truth.astype(np.float64).where(valid)
    weights = region_weights(case.grid, ground.surface)
    rows = []
    for values in methods.values():
        prediction = values.astype(np.float64).where(valid)
        pair = Pair(prediction, truth, weights, case.grid, case.dims, ground.scale, repeated)
        rows.append(xr.Dataset({name: METRICS.get(name)(pair) for name in names}))
    table = xr.concat(rows, "product", join="exact").assign_coords(product=list(methods)).compute()
    filled = table.to_array().notnull().any([d for d in ("variable", *table.dims) if d != "region"])
    return table.isel(region=(filled | (table.region == "all")).values)


def _described(table: xr.Dataset, case: _Case, scale: int, notes: list[str]) -> xr.Dataset:
    """Return the table with the dims, coordinates and attributes that tell what it is."""
    grid, units = case.grid, case.truth.attrs.get("units", case.fine.attrs.get("units"))
    left = [dim for dim in case.fine.dims if dim not in case.dims]
    lead = {n: c for n, c in case.fine.coords.items() if not set(c.dims) & set(grid.dims) and set(c.dims) <= set(left)}
    plane = {n: c for n, c in grid.coords.coords.items() if set(c.dims) <= set(left)}
    flips = {axis.dim: slice(None, None, -1) for axis in (grid.y, grid.x) if axis.flipped and axis.dim in left}
    table = table.assign_coords(lead).assign_coords(plane).isel(flips).transpose("product", "region", *left)
    for name, variable in table.data_vars.items():
        metric = METRICS.get(str(name))
        variable.attrs = {"long_name": metric.long_name}
        known = units if metric.has_units else "1"
        if known is not None:
            variable.attrs["units"] = known
    attrs: dict[str, Any] = {"variable": str(case.fine.name), "scale": scale}
    if case.model is not None:
        attrs["model"] = case.model.identity
    if notes:
        attrs["note"] = "; ".join(notes)
    return table.assign_attrs(attrs)


def _warn_of_overlap(model: SRModel, truth: xr.DataArray, grid: Grid) -> None:
    steps, share = training_overlap(model, truth)
    if steps and share and model.training.period:
        first, last = model.training.period
        warnings.warn(
            f"{steps} time step(s) of the truth lie in the model's training period ({first} to {last}), and "
            f"{share:.0%} of its cells in the training domain: the scores flatter the network and the trained "
            "baselines. Score a period or a domain that was held out.",
            XSuperResWarning,
            stacklevel=4,
        )


def training_overlap(model: SRModel, truth: xr.DataArray) -> tuple[int, float]:
    """Return how many times of `truth` were trained on, and which share of its cells.

    Parameters
    ----------
    model : SRModel
        Without a training period, or where `truth` has no times, the number of steps is 0.
    truth : DataArray
        On any grid; only coordinates are read. Times of any calendar are compared as text, year first.

    Returns
    -------
    int, float
        Steps within the training period but for what was held out to validate, and the share of cells whose centres lie
        in cells that were trained on.
    """
    grid, period = grid_of(truth), model.training.period
    steps = 0
    if period is not None and all(re.match(r"\d{4}-\d\d", end) for end in period):
        spans = [[end.replace("T", " ") for end in ends] for ends in (period, *model.training.held_out)]
        for time in _times_as_text(times_of(truth, grid)):
            trained, *held_out = (first <= time <= last for first, last in spans)
            steps += trained and not any(held_out)
    return steps, _inside(model.grid.y, grid.y) * _inside(model.grid.x, grid.x)


def _times_as_text(values: np.ndarray) -> list[str]:
    texts = np.datetime_as_string(values, unit="s") if values.dtype.kind == "M" else values
    return [str(text)[:19].replace("T", " ") for text in texts]


def _inside(trained: Any, axis: Any) -> float:
    """Return the share of an axis' centres that lie in cells of a trained one."""
    if trained.kind != axis.kind:
        return 0.0
    offset = axis.centres[:, None] - trained.centres[None, :]
    if axis.kind == "longitude":
        offset = (offset + 180.0) % 360.0 - 180.0
    below, above = trained.lower - trained.centres, trained.upper - trained.centres
    return float(((offset >= below) & (offset < above)).any(axis=1).mean())
