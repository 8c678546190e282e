"""What a model is made from: fields, grid, static fields, predictors, time steps, blocks of samples, what is held out.

Fields in; values are read block by block later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from xsuperres.errors import ConfigError, GridError, unknown_name
from xsuperres.fields.channels import Channels
from xsuperres.fields.checks import check_units, check_values
from xsuperres.fields.field import Field, check_together
from xsuperres.fields.grid import Grid
from xsuperres.fields.pairs import paired, ratio
from xsuperres.fields.predictors import PredictorsLike, named_predictors, on_coarse
from xsuperres.fields.stack import stack
from xsuperres.fields.static import StaticLike, anomalies, find_static, without_statics
from xsuperres.fields.steps import flattened
from xsuperres.fields.times import calendar_features, offsets
from xsuperres.model.artefact import SRModel
from xsuperres.model.features import plain_channels
from xsuperres.nn.heads import HEADS
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.samples.blocks import FieldBlocks, Steps
from xsuperres.samples.holdout import Holdout, hold_out
from xsuperres.settings import FitSettings

__all__ = ["Material", "Sources", "gathered", "network_spec", "other_blocks"]

_SAMPLE = "xsuperres_sample"  # leading dim of a single field


@dataclass(frozen=True, eq=False)
class Sources:
    """What ``fit`` is called with: fine targets, what they are made from (None: their own coarsening), predictors.

    `margin` counts the coarse cells of context around pairs, see `Paired`.
    """

    targets: tuple[Field, ...]
    coarse: tuple[Field, ...] | None = None
    predictors: tuple[Field, ...] = ()
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def of(
        cls, fields: Sequence[Field], targets: Sequence[xr.DataArray] | None, predictors: PredictorsLike | None
    ) -> Sources:
        """Return the sources of ``fields.sr.fit(target=targets, predictors=predictors)``."""
        others = tuple(named_predictors(predictors).values())
        if targets is None:
            return cls(tuple(fields), None, others)
        return cls(tuple(map(Field, targets)), tuple(fields), others)

    def scale(self, given: int | None) -> Any:
        """Return the scale: given, or that of the pair."""
        if self.coarse is None:
            if given is None:
                raise ConfigError("Pass the scale, fine cells per coarse cell: .sr.fit(scale=4), or target=.")
            return given
        found = ratio(self.coarse[0].grid, self.targets[0].grid)
        if given not in (None, found):
            raise ConfigError(f"scale={given} differs from the {found} fine cells per coarse cell of these data.")
        return found

    def as_samples(self) -> Sources:
        """Return the sources with forecasts laid out along one dim of samples, initialisation after initialisation."""
        coarse = None if self.coarse is None else tuple(map(flattened, self.coarse))
        targets, predictors = tuple(map(flattened, self.targets)), tuple(map(flattened, self.predictors))
        return replace(self, targets=targets, coarse=coarse, predictors=predictors)

    def with_predictors_on(self, coarse: Grid, settings: FitSettings) -> Sources:
        """Return the sources with their predictors on the coarse grid, at the times of the samples."""
        least = settings.data.minimum_valid_fraction
        return replace(self, predictors=tuple(on_coarse(f, coarse, self.like, least) for f in self.predictors))

    @property
    def fields(self) -> tuple[Field, ...]:
        """Targets, then predictors."""
        return (*self.targets, *self.predictors)

    @property
    def like(self) -> Field:
        """The field whose leading dims count samples."""
        return self.targets[0] if self.coarse is None else self.coarse[0]


@dataclass(frozen=True, eq=False)
class Material:
    """What a model is made from, laid out and checked."""

    sources: Sources
    grid: Grid
    static: xr.Dataset
    anomaly: np.ndarray
    blocks: FieldBlocks
    holdout: Holdout


def gathered(sources: Sources, settings: FitSettings, static: StaticLike | None) -> Material:
    """Check the data and lay them out.

    Raises
    ------
    XSuperResError
        If dtypes, grids, static fields, times or the validation do not fit.
    """
    for field in (*sources.targets, *(sources.coarse or ()), *sources.predictors):
        check_values(field.array)
    check_together(sources.targets)
    _check_variable_names(sources, settings)
    sources = sources.as_samples()
    if sources.coarse is not None:
        _check_validation_of_pairs(settings.validation)
        sources = _paired(sources, settings, static)
    first = sources.targets[0]
    grid = first.grid
    grid.y.coarsen(settings.scale), grid.x.coarsen(settings.scale)  # say what to crop if it does not divide
    planes = find_static(first.array, grid, static)
    grid = without_statics(grid)
    sources = sources.with_predictors_on(grid.coarsen(settings.scale), settings)
    holdout = hold_out(sources.like, grid, settings.validation, scale=settings.scale, halo=_reach(settings))
    blocks = _blocks(sources, grid, settings)
    return Material(sources, grid, planes, anomalies(planes, grid, settings.scale), blocks, holdout)


def _check_variable_names(sources: Sources, settings: FitSettings) -> None:
    """Refuse settings by variable that name none of the targets."""
    names = [str(field.name) for field in sources.targets]
    for setting in (settings.data.transform, settings.data.valid_min, settings.data.valid_max):
        for name in setting if isinstance(setting, Mapping) else ():
            if name not in names:
                raise unknown_name("variable", name, names)


def _check_validation_of_pairs(validation: Any) -> None:
    """Refuse other data, which have no coarse side of their own."""
    if isinstance(validation, (xr.DataArray, xr.Dataset)):
        raise ConfigError(
            "validation= takes other data without target= only: they would be coarsened, and these pairs are not made "
            "that way. Put them among the pairs and hold their times out: validation=slice('2018', '2019'), or a "
            "fraction, validation=0.2."
        )


def _paired(sources: Sources, settings: FitSettings, static: StaticLike | None) -> Sources:
    """Return the sources on the same times, and on grids that fit."""
    assert sources.coarse is not None
    check_together(sources.coarse)
    for made, true in zip(sources.coarse, sources.targets, strict=True):
        check_units(made.array, true.units, what="fit", like="the target")
    reach = 0 if isinstance(static, (xr.Dataset, xr.DataArray)) else _reach(settings)
    least = settings.data.minimum_valid_fraction
    pair = paired(sources.coarse, sources.targets, settings.scale, reach=reach, minimum_valid_fraction=least)
    return replace(sources, targets=pair.fine, coarse=pair.coarse, margin=pair.margin)


def _blocks(sources: Sources, grid: Grid, settings: FitSettings) -> FieldBlocks:
    like, lead = sources.like, sources.like.sample_dim
    others = [dim for dim in like.lead if dim != lead]
    sizes = {dim: like.array.sizes[dim] for dim in [*([lead] if lead else []), *others]}
    dims = [lead or _SAMPLE, *others]
    coarse_grid = grid.coarsen(settings.scale)

    def stacked(fields: Sequence[Field], on: Grid) -> xr.DataArray:
        several = [f if lead else f.with_array(f.array.expand_dims(_SAMPLE)) for f in fields]
        return stack(several, on, dims, sizes)

    return FieldBlocks(
        stacked(sources.targets, grid),
        stacked(sources.coarse, coarse_grid) if sources.coarse else None,
        stacked(sources.predictors, coarse_grid) if sources.predictors else None,
        grid=grid,
        scale=settings.scale,
        config=settings.data,
        steps=_steps_of(like, settings),
        memory_budget=settings.sampling.memory_budget,
    )


def _steps_of(field: Field, settings: FitSettings) -> Steps:
    """Return what is known of the steps along the dim of samples."""
    da, lead, axes = field.array, field.sample_dim, field.times
    count = da.sizes[lead] if lead else 1
    dated = axes.valid if axes.valid is not None and axes.valid.dims == (lead,) else None
    calendar = calendar_features(dated) if settings.data.calendar else None
    if settings.time_window is None:
        return Steps(np.arange(count), calendar)
    if lead is None or lead != axes.along:
        raise ConfigError(
            f"time_window={settings.time_window} needs a time dimension, the data have {tuple(map(str, da.dims))}."
        )
    stretches = axes.columns(da, window=True, calendar=False).values[:, 0].astype(np.int64)
    return Steps(stretches, calendar, *offsets(settings.time_window, settings.data.time_alignment))


def network_spec(settings: FitSettings, channels: Channels, shape: tuple[int, int]) -> NetworkSpec:
    """Return the spec of the network that the settings ask for, on a fine grid of `shape`."""
    window = settings.time_window
    inputs, statics = channels.counts
    return NetworkSpec(
        backbone=settings.backbone,
        upsampling=settings.upsampling,
        scale=settings.scale,
        inputs=inputs,
        statics=statics,
        outputs=channels.targets * HEADS.get(NetworkSpec.head).channels,
        masks=channels.masks,
        noise=settings.kind.noise(settings.training_config),
        time_window=window,
        output_frame=0 if window is None else offsets(window, settings.data.time_alignment)[0],
        domain=shape,
        config=settings.network,
    )


def _reach(settings: FitSettings) -> int:
    """Return the reach of the model that is to be trained, from a network without weights."""
    channels = plain_channels(settings.data, settings.network)
    with torch.device("meta"):
        network = build_network(network_spec(settings, channels, (1, 1)))
    return channels.reach(network.reach)


def other_blocks(data: xr.DataArray | xr.Dataset, model: SRModel, settings: FitSettings) -> FieldBlocks:
    """Return the fields of ``validation=data``, which must lie on the training grid.

    A Dataset holds all variables of the model, and its predictors; a DataArray is enough for one variable without.
    """
    sources = _validation_sources(data, model)
    for field, part in zip(sources.fields, model.inputs, strict=True):
        check_values(field.array)
        check_units(field.array, part.variable.units, what="validation")
    check_together(sources.targets)
    sources = sources.as_samples()
    grid = sources.targets[0].grid
    location = model.grid.locate(grid) if grid.shape == model.grid.shape else None
    if location is None or location.rows[0] or location.columns[0]:
        raise GridError(f"validation= lies on {grid.describe()}; expected the training grid {model.grid.describe()}.")
    return _blocks(sources.with_predictors_on(grid.coarsen(settings.scale), settings), grid, settings)


def _validation_sources(data: xr.DataArray | xr.Dataset, model: SRModel) -> Sources:
    names = [part.variable.name for part in model.inputs]
    if isinstance(data, xr.DataArray):
        if len(names) > 1:
            raise ConfigError(f"validation= must be a Dataset of {names}, or a fraction or a period; got a DataArray.")
        return Sources((Field(data, gaps=True),))
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError(f"validation= lacks {missing}; it holds {list(map(str, data.data_vars))}.")
    count = len(model.targets)
    fields = [Field(data[name], gaps=index < count) for index, name in enumerate(names)]
    return Sources(tuple(fields[:count]), None, tuple(fields[count:]))
