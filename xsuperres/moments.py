"""From one pass over the training samples to targets and predictors: transforms, scaling, baselines.

Numpy in and out, by way of `FieldBlocks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.config import of_variable
from xsuperres.errors import ConfigError, DataError
from xsuperres.fields.baselines import InputMoments, Scaling, TrainingMoments, coarse_area
from xsuperres.fields.checks import check_decoded
from xsuperres.fields.components import mirror_signs
from xsuperres.fields.ranges import Extremes, InputRange
from xsuperres.fields.stages import Departures, Transforms
from xsuperres.fields.transform import Transform
from xsuperres.material import Material
from xsuperres.model.artefact import Predictor, Target, Variable
from xsuperres.settings import FitSettings

__all__ = ["Fitted", "fitted_parts"]

_TOLD = ("units", "standard_name", "long_name")
_NEVER_NEGATIVE = (  # CF standard names
    "cloud_area_fraction",
    "convective_precipitation_flux",
    "lwe_precipitation_rate",
    "lwe_thickness_of_precipitation_amount",
    "precipitation_amount",
    "precipitation_flux",
    "relative_humidity",
    "snowfall_flux",
    "specific_humidity",
    "surface_downwelling_shortwave_flux_in_air",
    "wind_speed",
)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is fitted in closed form: targets, predictors, and the range of the inputs of both.

    `seen` is (targets, Y, X): the fine cells that were trained on at least once, where some never were.
    """

    targets: tuple[Target, ...]
    predictors: tuple[Predictor, ...]
    ranges: tuple[InputRange, ...]
    seen: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Sums:
    """What one pass gathers: moments of targets and of all inputs, the lowest values of targets, extremes of inputs."""

    moments: list[TrainingMoments]
    inputs: list[InputMoments]
    lowest: list[float]
    extremes: Extremes


def fitted_parts(material: Material, settings: FitSettings, given: Sequence[Transform] | None = None) -> Fitted:
    """Return the targets and predictors with all that is fitted in closed form on the training samples.

    Transforms are those `given`, of the same kinds as in the settings (fine-tuning).

    Raises
    ------
    DataError
        If a variable is constant, has no valid value or fill values that were not decoded, or there are too few fields
        for a fixed domain.
    """
    sources, fixed = material.sources, settings.data.domain == "fixed"
    if fixed and material.holdout.training.sum() < 2:
        raise DataError(
            "There is 1 training field: a model for a fixed domain learns the mean error of every cell, and would know "
            "this field by heart. Use validation='space' or data={'domain': 'open'}, or more fields."
        )
    transforms, climatologies = _transforms(material, settings, given)
    sums = _gathered(material, settings, transforms, climatologies)
    moments, inputs = sums.moments, sums.inputs
    flipped = {index for along in mirror_signs(sources.fields, settings.sampling).values() for index in along}
    targets = []
    for index, da in enumerate(field.array for field in sources.targets):
        scaling, baselines = moments[index].fit(da.name)
        targets.append(
            Target(
                variable=_variable(da, inputs[index].missing),
                scaling=_about_zero(scaling) if index in flipped else scaling,
                baselines=baselines if fixed else baselines.pooled(),
                transform=transforms[index],
                climatology=climatologies[index],
                bounds=_bounds(da, sums.lowest[index], settings),
                source=_variable(sources.coarse[index].array, inputs[index].missing) if sources.coarse else None,
            )
        )
    predictors = []
    for index, da in enumerate((field.array for field in sources.predictors), start=len(targets)):
        moment = inputs[index]
        scaling = moment.scaling(da.name)
        predictors.append(
            Predictor(
                variable=_variable(da, moment.missing),
                scaling=_about_zero(scaling) if index in flipped else scaling,
                contrast_sd=moment.contrast_sd or 1.0,
            )
        )
    seen = np.stack([moment.count > 0 for moment in moments])
    return Fitted(tuple(targets), tuple(predictors), sums.extremes.ranges(), None if seen.all() else seen)


def _about_zero(scaling: Scaling) -> Scaling:
    """Return the scaling about 0: only then does mirroring change the sign of scaled values too."""
    return Scaling(0.0, float(np.hypot(scaling.sd, scaling.mean)))


def _variable(da: xr.DataArray, had_missing: bool) -> Variable:
    told = {name: None if da.attrs.get(name) is None else str(da.attrs[name]) for name in _TOLD}
    return Variable(name=None if da.name is None else str(da.name), had_missing=had_missing, **told)


def _bounds(da: xr.DataArray, lowest: float, settings: FitSettings) -> tuple[float | None, float | None]:
    """Return the physical bounds: those asked for; else 0 below what cannot be negative, and never is in training."""
    given = settings.data.valid_min, settings.data.valid_max
    low, high = (of_variable(bound, da.name) for bound in given)
    asked = da.name in given[0] if isinstance(given[0], Mapping) else low is not None
    if not asked and da.attrs.get("standard_name") in _NEVER_NEGATIVE and lowest >= 0:
        low = 0.0
    return low, high


def _transforms(
    material: Material, settings: FitSettings, given: Sequence[Transform] | None
) -> tuple[list[Transform], list[Any]]:
    """Return the transform of each target, `given` or its own, and the climatologies that anomalies are taken about."""
    names = [da.name for da in material.sources.targets]
    kinds = [of_variable(settings.data.transform, name) for name in names]
    climatologies: list[Any] = [None] * len(kinds)
    if not any(kinds):
        return [Transform()] * len(kinds), climatologies
    if "anomaly" in kinds and settings.data.domain != "fixed":
        raise ConfigError("transform='anomaly' is taken about each cell's training mean: it needs a fixed domain.")
    means, size = _means(material)
    transforms = []
    for index, kind in enumerate(kinds):
        if kind == "anomaly":
            climatologies[index] = _filled(means[0][index], means[1][index], material)
        unit = float(size[index]) if kind == "log1p" and size[index] > 0 else 1.0
        transforms.append(Transform(None if kind == "anomaly" else kind, unit))
    return transforms if given is None else list(given), climatologies


def _filled(coarse: np.ndarray, fine: np.ndarray, material: Material) -> tuple[np.ndarray, np.ndarray]:
    """Return climatologies of all cells: where the target never is, the coarse one interpolated, else its mean."""
    if not np.isfinite(coarse).any():
        return coarse, fine
    mean = float(np.nanmean(coarse))
    fine = np.where(np.isfinite(fine), fine, material.blocks.bicubic(coarse))
    return np.nan_to_num(coarse, nan=mean), np.nan_to_num(fine, nan=mean)


def _means(material: Material) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the training means of coarse and fine fields (targets, y, x), and the mean size of each target."""
    blocks, holdout = material.blocks, material.holdout
    sums: list[Any] = [0.0, 0.0]
    counts: list[Any] = [0, 0]
    size, seen = 0.0, 0.0
    for index, chosen in blocks.chosen(holdout.training):
        fields = blocks.load(index).take(chosen)
        for which, values in enumerate((fields.coarse, fields.target)):
            valid = np.isfinite(values)
            sums[which] = sums[which] + np.where(valid, values, 0.0).sum(axis=0, dtype=np.float64)
            counts[which] = counts[which] + valid.sum(axis=0)
        weight = material.grid.area * holdout.weight * np.isfinite(fields.target)
        size = size + (np.abs(np.nan_to_num(fields.target)) * weight).sum(axis=(0, 2, 3))
        seen = seen + weight.sum(axis=(0, 2, 3))
    means = [s / np.where(c > 0, c, np.nan) for s, c in zip(sums, counts, strict=True)]
    return (means[0], means[1]), np.asarray(size) / np.maximum(seen, 1e-300)


def _gathered(
    material: Material, settings: FitSettings, transforms: list[Transform], climatologies: list[Any]
) -> _Sums:
    """Return the sums from one pass; extremes are those of held-out fields too, on which its skill is known."""
    blocks, holdout, radius = material.blocks, material.holdout, settings.data.contrast_radius
    area, count = material.grid.area * holdout.weight, len(transforms)
    moments = [TrainingMoments(area, material.anomaly, contrast_radius=radius) for _ in transforms]
    inputs = [m.inputs for m in moments] + [InputMoments(radius) for _ in material.sources.predictors]
    coarse_grid = material.grid.coarsen(settings.scale)
    extremes = Extremes(coarse_grid, fixed=settings.data.domain == "fixed")
    departures = Departures.of(climatologies)
    stages = (Transforms(transforms=tuple(transforms)), *([] if departures is None else [departures]))
    names = [da.name for da in material.sources.fields]
    lowest = [np.inf] * count
    for index in range(len(blocks)):
        fields = blocks.load(index)
        for which, name in enumerate(names[:count]):
            check_decoded(fields.target[:, which], name)
        for which, found in enumerate(inputs):
            check_decoded(fields.inputs[:, which], names[which])
            found.missing = found.missing or not bool(np.isfinite(fields.inputs[:, which]).all())
        extremes.add(fields.shown)
        chosen = holdout.training[blocks.fields(index)]
        if not chosen.any():
            continue
        part = fields.take(chosen)
        target, coarse, bicubic = blocks.transformed(part, stages)
        for which, moment in enumerate(moments):
            values = part.target[:, which]
            lowest[which] = float(np.min(values, initial=lowest[which], where=np.isfinite(values)))
            moment.add(target[:, which], bicubic[:, which], coarse[:, which])
        for which in range(count, len(inputs)):
            inputs[which].add(part.inputs[:, which], coarse_area(area, coarse_grid.shape))
    return _Sums(moments, inputs, lowest, extremes)
