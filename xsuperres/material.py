"""What a model is made from: fields, grid, static fields, predictors, time steps, blocks of samples, what is held out.

Labelled arrays in; values are read block by block later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from xsuperres.errors import ConfigError, GridError, unknown_name
from xsuperres.fields.channels import channel_counts, masked_channels
from xsuperres.fields.checks import check_units, check_values
from xsuperres.fields.forecasts import TimeAxes
from xsuperres.fields.grid import Grid, find_axes, grid_of
from xsuperres.fields.pairs import paired, ratio
from xsuperres.fields.predictors import PredictorsLike, named_predictors, on_coarse
from xsuperres.fields.stack import check_together, stacked
from xsuperres.fields.static import StaticLike, anomalies, find_static, without_statics
from xsuperres.fields.steps import flattened
from xsuperres.fields.times import calendar_features, offsets
from xsuperres.model.artefact import SRModel, reach_of
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.samples.blocks import FieldBlocks, Steps
from xsuperres.samples.holdout import Holdout, hold_out, leading_dim
from xsuperres.settings import FitSettings

__all__ = ["Material", "Sources", "gathered", "network_spec", "other_blocks"]

_SAMPLE = "xsuperres_sample"  # leading dim of a single field


@dataclass(frozen=True, eq=False)
class Sources:
    """What was given to ``fit``: fine targets, what they are made from (None: their own coarsening), predictors.

    `margin` counts the coarse cells of context around pairs, see `Paired`.
    """

    targets: tuple[xr.DataArray, ...]
    coarse: tuple[xr.DataArray, ...] | None = None
    predictors: tuple[xr.DataArray, ...] = ()
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def of(
        cls, fields: Sequence[xr.DataArray], targets: Sequence[xr.DataArray] | None, predictors: PredictorsLike | None
    ) -> Sources:
        """Return the sources of ``fields.sr.fit(target=targets, predictors=predictors)``."""
        others = tuple(named_predictors(predictors).values())
        if targets is None:
            return cls(tuple(fields), None, others)
        return cls(tuple(targets), tuple(fields), others)

    def scale(self, given: int | None) -> Any:
        """Return the scale: given, or that of the pair."""
        if self.coarse is None:
            if given is None:
                raise ConfigError("Pass the scale, fine cells per coarse cell: .sr.fit(scale=4), or target=.")
            return given
        found = ratio(self.coarse[0], self.targets[0])
        if given not in (None, found):
            raise ConfigError(f"scale={given} differs from the {found} fine cells per coarse cell of these data.")
        return found

    def as_samples(self) -> Sources:
        """Return the sources with forecasts laid out along one dim of samples, initialisation after initialisation."""

        def flat(fields: Sequence[xr.DataArray]) -> tuple[xr.DataArray, ...]:
            return tuple(flattened(da, find_axes(da).time) for da in fields)

        coarse = None if self.coarse is None else flat(self.coarse)
        return replace(self, targets=flat(self.targets), coarse=coarse, predictors=flat(self.predictors))

    @property
    def fields(self) -> tuple[xr.DataArray, ...]:
        """Targets, then predictors."""
        return (*self.targets, *self.predictors)

    @property
    def like(self) -> xr.DataArray:
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
    for da in (*sources.targets, *(sources.coarse or ()), *sources.predictors):
        check_values(da)
    check_together(sources.targets)
    _check_variable_names(sources, settings)
    sources = sources.as_samples()
    if sources.coarse is not None:
        _check_validation_of_pairs(settings.validation)
        sources = _paired(sources, settings, static)
    first = sources.targets[0]
    grid = grid_of(first, gaps=True)
    grid.coarsen(settings.scale)  # says what to crop if it does not divide
    planes = find_static(first, grid, static)
    grid = without_statics(grid)
    coarse = grid.coarsen(settings.scale)
    least = settings.data.minimum_valid_fraction
    predictors = tuple(on_coarse(da, coarse, sources.like, least) for da in sources.predictors)
    sources = replace(sources, predictors=predictors)
    reach = _reach(settings, len(planes.data_vars), len(sources.targets), len(predictors))
    holdout = hold_out(sources.like, grid, settings.validation, scale=settings.scale, halo=reach)
    blocks = _blocks(sources, grid, settings)
    return Material(sources, grid, planes, anomalies(planes, grid, settings.scale), blocks, holdout)


def _check_variable_names(sources: Sources, settings: FitSettings) -> None:
    """Refuse settings by variable that name none of the targets."""
    names = [str(da.name) for da in sources.targets]
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
        check_units(made, true.attrs.get("units"), what="fit", like="the target")
    reach = _reach(settings, 4, len(sources.targets), len(sources.predictors))
    reach = 0 if isinstance(static, (xr.Dataset, xr.DataArray)) else reach
    least = settings.data.minimum_valid_fraction
    pair = paired(sources.coarse, sources.targets, settings.scale, reach=reach, minimum_valid_fraction=least)
    return replace(sources, targets=pair.fine, coarse=pair.coarse, margin=pair.margin)


def _blocks(sources: Sources, grid: Grid, settings: FitSettings) -> FieldBlocks:
    like = sources.like
    lead = leading_dim(like, grid)
    others = [str(dim) for dim in like.dims if dim not in (*grid.dims, lead)]
    sizes = {dim: like.sizes[dim] for dim in [*([lead] if lead else []), *others]}
    dims = [lead or _SAMPLE, *others]
    coarse_grid = grid.coarsen(settings.scale)

    def stack(fields: Sequence[xr.DataArray], on: Grid) -> xr.DataArray | None:
        if not fields:
            return None
        return stacked([f if lead else f.expand_dims(_SAMPLE) for f in fields], on, dims, sizes)

    fine = stack(sources.targets, grid)
    assert fine is not None
    return FieldBlocks(
        fine,
        stack(sources.coarse or (), coarse_grid),
        stack(sources.predictors, coarse_grid),
        grid=grid,
        scale=settings.scale,
        config=settings.data,
        steps=steps_of(like, lead, grid, settings),
        memory_budget=settings.sampling.memory_budget,
    )


def steps_of(da: xr.DataArray, lead: str | None, grid: Grid, settings: FitSettings) -> Steps:
    """Return what is known of the steps along the leading dim."""
    count = da.sizes[lead] if lead else 1
    axes = TimeAxes.of(da, grid.time)
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


def network_spec(
    settings: FitSettings,
    *,
    statics: int,
    targets: int = 1,
    predictors: int = 0,
    masked: Sequence[int] = (),
    shape: tuple[int, int] | None = None,
) -> NetworkSpec:
    """Return the spec of the network that the settings ask for, on given fields, those `masked` with missing cells."""
    fixed, window = settings.data.domain == "fixed", settings.time_window
    inputs, fine = channel_counts(
        statics,
        fixed=fixed,
        targets=targets,
        predictors=predictors,
        masks=len(masked),
        calendar=settings.data.calendar,
    )
    return NetworkSpec(
        backbone=settings.backbone,
        upsampling=settings.upsampling,
        scale=settings.scale,
        inputs=inputs,
        statics=fine,
        outputs=targets,
        masks=masked_channels(masked, fixed=fixed, targets=targets, predictors=predictors),
        noise=settings.kind.noise(settings.training_config),
        time_window=window,
        output_frame=0 if window is None else offsets(window, settings.data.time_alignment)[0],
        domain=shape,
        config=settings.network,
    )


def _reach(settings: FitSettings, statics: int, targets: int, predictors: int) -> int:
    """Return the reach of the model that is to be trained, from a network without weights."""
    with torch.device("meta"):
        network = build_network(
            network_spec(settings, statics=statics, targets=targets, predictors=predictors, shape=(1, 1))
        )
    return reach_of(network, settings.data)


def other_blocks(data: xr.DataArray | xr.Dataset, model: SRModel, settings: FitSettings) -> FieldBlocks:
    """Return the fields of ``validation=data``, which must lie on the training grid.

    A Dataset holds all variables of the model, and its predictors; a DataArray is enough for one variable without.
    """
    sources = _validation_sources(data, model)
    for da, part in zip((*sources.targets, *sources.predictors), model.inputs, strict=True):
        check_values(da)
        check_units(da, part.variable.units, what="validation")
    check_together(sources.targets)
    sources = sources.as_samples()
    grid = grid_of(sources.targets[0], gaps=True)
    location = model.grid.locate(grid) if grid.shape == model.grid.shape else None
    if location is None or location.rows[0] or location.columns[0]:
        raise GridError(f"validation= lies on {grid.describe()}; expected the training grid {model.grid.describe()}.")
    coarse = grid.coarsen(settings.scale)
    least = settings.data.minimum_valid_fraction
    predictors = tuple(on_coarse(da, coarse, sources.like, least) for da in sources.predictors)
    return _blocks(replace(sources, predictors=predictors), grid, settings)


def _validation_sources(data: xr.DataArray | xr.Dataset, model: SRModel) -> Sources:
    names = [part.variable.name for part in model.inputs]
    if isinstance(data, xr.DataArray):
        if len(names) > 1:
            raise ConfigError(f"validation= must be a Dataset of {names}, or a fraction or a period; got a DataArray.")
        return Sources((data,))
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError(f"validation= lacks {missing}; it holds {list(map(str, data.data_vars))}.")
    count = len(model.targets)
    fields = [data[name] for name in names]
    return Sources(tuple(fields[:count]), None, tuple(fields[count:]))
