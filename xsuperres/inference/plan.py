"""`Plan`: what `downscale` will do with some fields and a model, made once; its result, its identity, its text.

Labelled arrays in and out. On dask-backed data nothing is computed; data in memory run through the same tiles at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.config import check_choice
from xsuperres.errors import ConfigError, DataError, GridError
from xsuperres.fields.checks import check_units, check_values, check_variable
from xsuperres.fields.field import Field, check_together
from xsuperres.fields.grid import Location, named_like
from xsuperres.fields.predictors import PredictorsLike, named_predictors, on_coarse
from xsuperres.fields.static import StaticLike
from xsuperres.inference.apply import Mask
from xsuperres.inference.describe import describe
from xsuperres.inference.devices import Execution
from xsuperres.inference.domain import elsewhere, on_domain, placement, warn_of_resolution
from xsuperres.inference.guard import CHECKS, CheckRange, Guard, check_now
from xsuperres.inference.identity import encoding_text, identify
from xsuperres.inference.layout import Layout
from xsuperres.inference.regions import in_blocks
from xsuperres.inference.template import Encoding
from xsuperres.inference.tile import Tile
from xsuperres.inference.workers import refer
from xsuperres.model.artefact import SRModel, Target
from xsuperres.options import current_options

__all__ = ["Options", "Plan"]

logger = logging.getLogger(__name__)
_AUTO = Execution()


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is applied; see `SuperResolutionAccessor.downscale` for what each means."""

    members: int | None = None
    seed: int = 0
    batch_size: int | None = None
    execution: Execution = _AUTO
    mask: Mask = "model"
    check_range: CheckRange = "warn"

    def __post_init__(self) -> None:
        if self.mask not in ("input", "model", None):
            raise ConfigError(f"mask must be 'input', 'model' or None, got {self.mask!r}.")
        check_choice("check_range", self.check_range, CHECKS)
        numbers = {"seed": (self.seed, 0), "batch_size": (self.batch_size, 1), "members": (self.members, 1)}
        for name, (value, least) in numbers.items():
            if value is None and name != "seed":
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}.")


@dataclass(frozen=True, eq=False)
class Plan:
    """A model and the fields that it is applied to, on the model's cells.

    Parameters
    ----------
    sources, predictors : tuple of Field
        What the user passed: coarse fields in the order of the model's targets, and the model's predictors.
    fields, inputs : tuple of Field
        The same on the cells that the model reads; fields bear the labels of what they become.
    model : SRModel
        On the domain of the data.
    location : Location
        Where the fields lie on the model's coarse grid.
    attrs : mapping
        Attributes of the results that say how the data got onto these cells.
    options : Options
        How the model is applied.
    """

    sources: tuple[Field, ...]
    predictors: tuple[Field, ...]
    fields: tuple[Field, ...]
    inputs: tuple[Field, ...]
    model: SRModel
    location: Location
    attrs: Mapping[str, str]
    options: Options

    @classmethod
    def of(
        cls,
        fields: Sequence[Field],
        model: SRModel,
        *,
        static: StaticLike | None = None,
        predictors: PredictorsLike | None = None,
        options: Options | None = None,
    ) -> Plan:
        """Return the plan for coarse fields, one per target of the model.

        Raises
        ------
        XSuperResError
            If dtypes, units, grids, static fields, predictors or options do not fit the model.
        """
        options = options or Options()
        _check_random(model, options)
        for field, target in zip(fields, model.targets, strict=True):
            check_values(field.array)
            check_units(field.array, target.coarse.units, what="downscale")
            check_variable(field.array, target.coarse.name, target.coarse.standard_name)
        if len(fields) > 1:
            check_together(fields)
        place = placement(model, fields[0].grid, static=static is not None)
        if place.kind == "refused":
            raise elsewhere(model, place.source)
        if place.kind in ("crop", "regrid"):
            logger.info(place.note)
        else:
            warn_of_resolution(model, place.source)
        model, location = on_domain(model, place.target, static)
        labelled = [_as_target(field, target) for field, target in zip(fields, model.targets, strict=True)]
        moved = tuple(place.moved(field, model.data.minimum_valid_fraction) for field in labelled)
        named = _named_predictors(predictors, model)
        inputs = (on_coarse(p, place.target, moved[0], model.data.minimum_valid_fraction) for p in named)
        attrs = {"xsuperres_regridded": place.source.describe()} if place.kind == "regrid" else {}
        return cls(tuple(fields), named, moved, tuple(inputs), model, location, attrs, options)

    @property
    def lazy(self) -> bool:
        """Whether something of the data is dask-backed, and so is the result."""
        return any(field.lazy for field in (*self.fields, *self.inputs))

    @cached_property
    def layout(self) -> Layout:
        """The data as one array for the tiles."""
        return Layout.of(self.fields, self.inputs, self.model, self.options.members)

    def check(self) -> None:
        """Refuse, or warn of, what can be known before anything is computed: values in memory, and the device."""
        _check_missing((*self.fields, *self.inputs), self.model)
        if not self.lazy:
            self.options.execution.chosen()  # a lazy result may be computed where there are other devices
            check_now(self.options.check_range, self.model, self.layout.each, self.location)

    def result(self, request: str | None = None) -> list[xr.DataArray]:
        """Return the fine fields: lazy if something of the data is."""
        self.check()
        layout, options = self.layout, self.options
        grid = self.fields[0].grid
        guard = None
        if self.lazy:
            shape = (*layout.values.shape[: len(layout.dims) - 2], *grid.shape)
            guard = Guard.of(options.check_range, self.model, shape, request)
        tile = Tile(
            reference=refer(self.model, to_file=self.lazy),
            first=(int(self.location.rows[0]), int(self.location.columns[0])),
            period=self.model.coarse_grid.x.size,
            width=grid.x.size,
            stacked=layout.stacked,
            order=layout.order,
            seed=None if options.members is None else options.seed,
            execution=options.execution,
            batch_size=options.batch_size,
            mask=options.mask,
            memory_budget=current_options().memory_budget,
            guard=guard,
        )
        return self._labelled(layout.mapped(tile))

    def in_blocks(self, budget: int) -> Plan:
        """Return the same plan with dask-backed fields, cut so that blocks of the result are of a good size to write.

        Data in memory are checked here, once, and not again block by block.

        Parameters
        ----------
        budget : int
            Bytes of the result that are written as one region.
        """
        options = self.options
        if not self.lazy:
            self.check()
            options = replace(options, check_range="ignore")
        return replace(self, fields=tuple(in_blocks(self.fields, self.model, budget=budget)), options=options)

    def identity(self, fine: xr.Dataset, encoding: Encoding | None = None) -> dict[str, Any]:
        """Return what tells this run from others, ready for JSON.

        Parameters
        ----------
        fine : Dataset
            The lazy results, and what is stored with them.
        encoding : mapping, optional
            How they are stored.
        """
        options, members = self.options, self.options.members
        settings: dict[str, Any] = {"scale": self.model.scale, "mask": options.mask}
        settings |= {"precision": options.execution.precision, "encoding": encoding_text(encoding)}
        settings |= {} if members is None else {"members": int(members), "seed": int(options.seed)}
        return identify(fine, self.sources, self.predictors, settings)

    def describe(self) -> str:
        """Return a few lines on the fields, the model and what downscaling means; see `inference.describe`."""
        return describe(self.sources, self.model.scale, self.model)

    def _labelled(self, data: Any) -> list[xr.DataArray]:
        """Return fine data as DataArrays, with all that goes with them."""
        model, coarse, layout = self.model, self.fields[0].grid, self.layout
        location, cut = _without_margin(model, self.location.refined(model.scale))
        fine = named_like(model.grid.crop(location), coarse, model.coarse_grid.crop(self.location))
        index = {model.grid.y.dim: location.rows, model.grid.x.dim: location.columns}
        static = {n: v.variable for n, v in model.static.data_vars.items()}
        planes = {str(n): xr.Variable(fine.dims, v.isel(index).values, v.attrs) for n, v in static.items()}
        note = f"super-resolution, scale {model.scale}, model {model.identity[:16]}"
        attrs = {"xsuperres_model": model.identity, "xsuperres_scale": model.scale, **self.attrs}
        results = []
        for field, part in zip(self.fields, layout.parts(data), strict=True):
            like = field.with_array(layout.like(field.array))
            made = like.labelled(_cropped(part, cut), fine, dims=layout.dims, planes=planes, note=note)
            results.append(made.array.assign_attrs(attrs))
        return results


def _check_random(model: SRModel, options: Options) -> None:
    if options.members is not None and not model.network.is_random:
        raise ConfigError(
            f"members={options.members} needs a network with randomness: trained with dropout (network={{'dropout': "
            "...}) or noise (adversarial={'noise': ...}); this one has neither."
        )


def _as_target(field: Field, target: Target) -> Field:
    """Return a coarse field with the labels of what it becomes: of explicit pairs those of the target."""
    if target.source is None:
        return field
    labels = {name: getattr(target.variable, name) for name in ("units", "standard_name", "long_name")}
    named = field.array.rename(target.variable.name or field.name)
    return field.with_array(named.assign_attrs({name: value for name, value in labels.items() if value is not None}))


def _named_predictors(predictors: PredictorsLike | None, model: SRModel) -> tuple[Field, ...]:
    """Return the predictors that the model was trained with, in its order, as the user passed them."""
    names = [str(predictor.variable.name) for predictor in model.predictors]
    fields = {} if predictors is None else named_predictors(predictors)
    missing = [name for name in names if name not in fields]
    if missing:
        raise DataError(
            f"The model was trained with predictors {names}; {missing} are missing: pass predictors= with variables of "
            "these names."
        )
    for predictor, name in zip(model.predictors, names, strict=True):
        check_units(fields[name].array, predictor.variable.units, what=f"predictor {name!r}")
    return tuple(fields[name] for name in names)


def _check_missing(fields: Sequence[Field], model: SRModel) -> None:
    """Refuse missing values in memory where the training had none; lazy data are looked at when they are computed."""
    for field, part in zip(fields, model.inputs, strict=True):
        if part.variable.had_missing or field.lazy or np.isfinite(field.array.data).all():
            continue
        share = 100 * float(np.mean(~np.isfinite(field.array.data)))
        raise DataError(
            f"{part.coarse.name or 'The data'!r} is NaN in {share:.3g} % of the cells, but the model was trained on "
            "complete fields and has no mask channel; fill them, or train on data with the same gaps."
        )


def _without_margin(model: SRModel, location: Location) -> tuple[Location, tuple[slice, ...]]:
    """Return the fine cells outside the training margin, and their slices in the data."""
    if not any(model.margin):
        return location, ()
    south, north, west, east = (count * model.scale for count in model.margin)
    lines, cut = [], []
    for index, size, before, after in (
        (location.rows, model.grid.y.size, south, north),
        (location.columns, model.grid.x.size, west, east),
    ):
        inner = np.flatnonzero((index >= before) & (index < size - after))
        if not len(inner):
            raise GridError(
                "The data lie in the margin of the model's domain, of which there was no target to train on."
            )
        cut.append(slice(int(inner[0]), int(inner[-1]) + 1))
        lines.append(index[cut[-1]])
    return Location(lines[0], lines[1]), (cut[0], cut[1])


def _cropped(data: Any, cut: tuple[slice, ...]) -> Any:
    """Return the cells of `cut` along the last axes, of dask data in equal chunks but for the last, as Zarr wants."""
    if not cut:
        return data
    part = data[(..., *cut)]
    if not hasattr(part, "dask"):
        return part
    axes = range(part.ndim - len(cut), part.ndim)
    return part.rechunk({axis: max(part.chunks[axis]) for axis in axes})
