"""`score`: a field with its baselines, metric by metric, region by region.

Labelled arrays in, one small Dataset out. What an array is, is read at the door; dask-backed fields are computed once,
at the end.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.errors import ConfigError, unknown_name, warn
from xsuperres.fields.axes import Axis, check_divisible
from xsuperres.fields.checks import check_units
from xsuperres.fields.field import Field
from xsuperres.fields.grid import check_scale
from xsuperres.fields.pairs import ratio
from xsuperres.model.artefact import SRModel
from xsuperres.model.table import known_model
from xsuperres.verify.alignment import at_times_of, check_same_times, loaded_coords, on_grid, times_of
from xsuperres.verify.baselines import BaselineInputs, defined_baselines
from xsuperres.verify.coarse_cells import CoarseCells, on_coarse_cells
from xsuperres.verify.metrics import METRICS, Metric
from xsuperres.verify.sums import Domain, Summation
from xsuperres.verify.surface import region_areas

__all__ = ["score", "training_overlap"]

Names = str | Iterable[str] | None

_MARK = "xsuperres_regridded"  # attribute of results of data on other cells than the model's
_TRUTH_INSTEAD = "baselines are of the coarsened truth, the field is of regridded data: pass coarse= for theirs"


def score(
    fine: Field,
    truth: Field,
    *,
    coarse: Field | None = None,
    model: SRModel | None = None,
    baselines: Names = None,
    metrics: Names = None,
    dim: Hashable | Iterable[Hashable] | None = None,
) -> xr.Dataset:
    """Score a field against the truth with the baselines; see `SuperResolutionAccessor.score`.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> truth = xsr.testing.toy_field(time=2, y=8, x=12)
    >>> coarse = truth.sr.coarsen(2)
    >>> fields = (Field(da) for da in (coarse.sr.interpolate(2, like=truth), truth, coarse))
    >>> table = score(next(fields), next(fields), coarse=next(fields), metrics=["rmse", "bias"])
    >>> table["product"].values.tolist(), table.rmse.attrs["units"]
    (['prediction', 'bilinear', 'bicubic', 'lapse'], 'K')
    >>> bool(table.rmse[3, 0] < table.rmse[2, 0])
    True
    """
    fine = loaded_coords(fine)
    truth = at_times_of(fine, loaded_coords(truth))
    check_same_times(fine, truth, what="truth")
    check_units(truth.array, fine.units, what="truth", like="the scored field")
    model, why_no_model = _model_of(fine, model)
    left = _left(fine, dim)
    if model is not None:
        trained = xr.DataArray(0.0, attrs={"units": model.target(fine.name).variable.units})
        check_units(trained, fine.units, what="model")
        _warn_of_overlap(model, truth)
    if coarse is not None:
        coarse = loaded_coords(coarse)
        check_same_times(fine, coarse, what="coarse")
        check_units(coarse.array, fine.units, what="coarse", like="the scored field")
    truth_cells = on_grid(truth, fine.grid, what="truth")
    scale, coarse_cells, notes = _coarse_cells_of(fine, coarse, model)
    inputs, unusable = BaselineInputs.of(coarse or truth, [fine, truth], scale, model=model, why_no_model=why_no_model)
    products, absent = defined_baselines(inputs, baselines)
    for reason in dict.fromkeys(absent.values()):
        unusable.append(f"no {', '.join(name for name in absent if absent[name] == reason)}: {reason}")
    chosen = _chosen(metrics)
    regions = region_areas(fine.grid, inputs.surface)
    summation = Summation(
        domain=Domain.of(fine, scale, regions.values(), left),
        baselines=tuple(products.values()),
        partials=tuple(dict.fromkeys(partial for metric in chosen.values() for partial in metric.partials)),
        periodic=coarse_cells.periodic,
        minimum_valid_fraction=(DataConfig() if model is None else model.data).minimum_valid_fraction,
    )
    totals = summation.totals(fine.canonical(), truth_cells, coarse_cells.values)
    values = {name: summation.by_region(metric(totals)) for name, metric in chosen.items()}
    described = {"variable": str(fine.name), "scale": scale}
    if model is not None:
        described["model"] = model.identity
    if notes or unusable:
        described["note"] = "; ".join([*notes, *unusable])
    table = _labelled(values, fine, [_name_of(fine), *products], list(regions), left)
    return _with_units(table, fine.units if truth.units is None else truth.units).assign_attrs(described)


def _name_of(fine: Field) -> str:
    return "network" if "xsuperres_model" in fine.array.attrs else "prediction"


def _model_of(fine: Field, model: SRModel | None) -> tuple[SRModel | None, str]:
    """Return the model behind `fine` (`model`, else by the digest in the attributes), and why there is none."""
    digest = fine.array.attrs.get("xsuperres_model")
    if model is not None:
        if digest is not None and digest != model.identity:
            warn(
                f"The field was made by model {str(digest)[:12]}, the model given is {model.identity[:12]}: the "
                "trained baselines are those of the model given."
            )
        return model, ""
    if digest is None:
        return None, "the field bears no model digest (attribute xsuperres_model); pass model="
    known = known_model(str(digest))
    why = f"model {str(digest)[:12]} is not loaded in this process; load_model(path) or pass model="
    return known, "" if known else why


def _left(field: Field, dim: Hashable | Iterable[Hashable] | None) -> list[Hashable]:
    """Return the dims that are not reduced over; an unknown name is an error, and so is one that the table needs."""
    dims = field.array.dims
    clash = sorted({"product", "region"} & set(map(str, dims)))
    if clash:
        raise ConfigError(f"The table has dims of its own called product and region; rename the field's {clash} first.")
    if dim is None:
        return []
    asked = [dim] if isinstance(dim, str) or not isinstance(dim, Iterable) else list(dim)
    for name in asked:
        if name not in dims:
            raise unknown_name("dimension", name, map(str, dims))
    return [name for name in dims if name not in asked]


def _chosen(metrics: Names) -> dict[str, Metric]:
    """Return metrics by their registered names."""
    asked = [metrics] if isinstance(metrics, str) else metrics
    names = list(METRICS) if asked is None else [METRICS.canonical(name) for name in asked]
    if not names:
        raise ConfigError(f"metrics must name at least one of {', '.join(METRICS)}, got none.")
    return {name: METRICS.get(name) for name in names}


def _coarse_cells_of(field: Field, coarse: Field | None, model: SRModel | None) -> tuple[int, CoarseCells, list[str]]:
    """Return the scale, the coarse cells behind the field, and notes for the table."""
    regridded = _MARK in field.array.attrs
    scale = None if model is None else model.scale
    if "xsuperres_scale" in field.array.attrs:
        scale = check_scale(field.array.attrs["xsuperres_scale"])
    if coarse is not None:
        scale = ratio(coarse.grid, field.grid) if scale is None else scale
        return scale, *on_coarse_cells(coarse, field.grid, scale, model, regridded=regridded)
    if model is not None and model.paired:
        raise ConfigError(
            "The model was trained on explicit pairs: pass coarse=, the coarse data that the field was made from; "
            "the coarsened truth is not what it was given."
        )
    if scale is None:
        raise ConfigError(
            "The scale is not known: the field bears no attribute xsuperres_scale and there is no model. Pass "
            "coarse=, the field it was made from."
        )
    for axis in (field.grid.y, field.grid.x):
        check_divisible(axis, scale)
    return scale, CoarseCells(None, field.grid.x.periodic), [_TRUTH_INSTEAD] if regridded else []


def _labelled(
    values: Mapping[str, np.ndarray], field: Field, products: list[str], regions: list[str], left: list[Hashable]
) -> xr.Dataset:
    """Return metrics (product, region, *left in canonical order) with the dims and coordinates of the field.

    Regions without a valid cell are left out.
    """
    dims = ("product", "region", *(dim for dim in (*field.lead, *field.grid.dims) if dim in left))
    table = xr.Dataset({name: (dims, array) for name, array in values.items()})
    table = table.assign_coords(product=products, region=regions)
    grid = field.grid
    outside = {n: c for n, c in field.array.coords.items() if not set(c.dims) & set(grid.dims)}
    coords: dict[Any, Any] = {**outside, **grid.coords}
    table = table.assign_coords({n: c for n, c in coords.items() if set(c.dims) <= set(left)})
    flips = {axis.dim: slice(None, None, -1) for axis in (grid.y, grid.x) if axis.flipped and axis.dim in left}
    known = np.any([~np.isnan(array).all(axis=(0, *range(2, array.ndim))) for array in values.values()], axis=0)
    known[regions.index("all")] = True
    return table.isel(flips | {"region": known}).transpose("product", "region", *left)


def _with_units(table: xr.Dataset, units: str | None) -> xr.Dataset:
    """Return the table with the labels of each metric."""
    for name, variable in table.data_vars.items():
        metric = METRICS.get(str(name))
        known = units if metric.has_units else "1"
        variable.attrs = {"long_name": metric.long_name} | ({} if known is None else {"units": known})
    return table


def _warn_of_overlap(model: SRModel, truth: Field) -> None:
    steps, share = training_overlap(model, truth)
    if steps and share and model.training.period:
        first, last = model.training.period
        warn(
            f"{steps} time step(s) of the truth lie in the model's training period ({first} to {last}), and "
            f"{share:.0%} of its cells in the training domain: the scores flatter the network and the trained "
            "baselines. Score a period or a domain that was held out."
        )


def training_overlap(model: SRModel, truth: Field) -> tuple[int, float]:
    """Return how many times of `truth` were trained on, and which share of its cells.

    Parameters
    ----------
    model : SRModel
        Without a training period, or where `truth` has no times, the number of steps is 0.
    truth : Field
        On any grid; only coordinates are read. Times of any calendar are compared as text, year first.

    Returns
    -------
    int, float
        Steps within the training period but for what was held out to validate, and the share of cells whose centres lie
        in cells that were trained on.
    """
    period, steps = model.training.period, 0
    if period is not None and all(re.match(r"\d{4}-\d\d", end) for end in period):
        spans = [[end.replace("T", " ") for end in ends] for ends in (period, *model.training.held_out)]
        for when in _as_text(times_of(truth)):
            trained, *held_out = (first <= when <= last for first, last in spans)
            steps += trained and not any(held_out)
    return steps, _inside(model.grid.y, truth.grid.y) * _inside(model.grid.x, truth.grid.x)


def _as_text(times: np.ndarray) -> list[str]:
    texts = np.datetime_as_string(times, unit="s") if times.dtype.kind == "M" else times
    return [str(text)[:19].replace("T", " ") for text in texts]


def _inside(trained: Axis, axis: Axis) -> float:
    """Return the share of an axis' centres that lie in cells of a trained one."""
    if trained.kind != axis.kind:
        return 0.0
    offset = axis.centres[:, None] - trained.centres[None, :]
    if axis.kind == "longitude":
        offset = (offset + 180.0) % 360.0 - 180.0
    below, above = trained.lower - trained.centres, trained.upper - trained.centres
    return float(((offset >= below) & (offset < above)).any(axis=1).mean())
