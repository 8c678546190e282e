"""`fit`: the data's way, top to bottom.

fine field -> grid and checks -> blocks of (coarse, skip, target) -> moments and baselines -> network -> training
loop with a validation built on inference -> SRModel.
"""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import xarray as xr

from xsuperres.config import SamplingConfig
from xsuperres.errors import ConfigError, DataError, GridError
from xsuperres.fields.baselines import LinearBaselines, Scaling, TrainingMoments
from xsuperres.fields.channels import channel_counts
from xsuperres.fields.checks import check_units, check_values
from xsuperres.fields.grid import Grid, grid_of
from xsuperres.fields.static import StaticLike, anomalies, find_static, fit_static_scaling, without_statics
from xsuperres.inference.validation import Validator
from xsuperres.inference.workers import choose_device
from xsuperres.model.artefact import SRModel, TrainingRecord, Variable, halo_with
from xsuperres.model.datasets import plain
from xsuperres.model.table import activate as activate_model
from xsuperres.model.table import remember
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.samples.blocks import FieldBlocks
from xsuperres.samples.holdout import Holdout, hold_out
from xsuperres.samples.plan import WindowPlan
from xsuperres.samples.readers import Mirror, Planes, Reader
from xsuperres.settings import FitSettings
from xsuperres.training.budget import Clock
from xsuperres.training.loop import Trained, Validate, train
from xsuperres.training.supervised import SupervisedStep

__all__ = ["fit"]

logger = logging.getLogger(__name__)
_TOLD = ("units", "standard_name", "long_name")


@dataclass(frozen=True, eq=False)
class _Material:
    """What a model is made from: the data and their grid, static fields and anomalies, blocks, what is held out."""

    da: xr.DataArray
    grid: Grid
    static: xr.Dataset
    anomaly: np.ndarray
    blocks: FieldBlocks
    holdout: Holdout


def fit(
    da: xr.DataArray,
    settings: FitSettings,
    *,
    static: StaticLike | None = None,
    init: SRModel | None = None,
    activate: bool = True,
    progress: bool = True,
    clock: Clock | None = None,
) -> SRModel:
    """Train a model on `da`, which is fine and coarsened inside; see `SuperResolutionAccessor.fit`."""
    clock = clock or Clock()
    material = _material(da, settings, static)
    model = _untrained(material, settings)
    if init is not None:
        model = _started_from(model, init, settings.sampling)
    trained = _train(model, material, settings, clock, progress)
    model = _finished(model, trained, material, settings, clock)
    logger.info("Trained %s", model)
    return activate_model(model) if activate else remember(model)


def _material(da: xr.DataArray, settings: FitSettings, static: StaticLike | None) -> _Material:
    """Check the data and lay them out; values are read block by block later."""
    check_values(da)
    _check_vector(da, settings.sampling)
    grid = grid_of(da, gaps=True)
    grid.coarsen(settings.scale)  # says what to crop if it does not divide
    planes = find_static(da, grid, static)
    grid = without_statics(grid)
    halo = _halo(settings, len(planes.data_vars))
    holdout = hold_out(da, grid, settings.validation, scale=settings.scale, halo=halo)
    blocks = FieldBlocks(da, grid, settings.scale, settings.data, settings.sampling.memory_budget)
    return _Material(da, grid, planes, anomalies(planes, grid, settings.scale), blocks, holdout)


def _check_vector(da: xr.DataArray, sampling: SamplingConfig) -> None:
    """Refuse flips of vector components unless their sign is flipped along their own axis."""
    name, short = str(da.attrs.get("standard_name", "")), str(da.name).lower()
    along = {
        "x": "eastward" in name or name.startswith("x_") or short in ("u", "ua", "uas", "u10", "u10m"),
        "y": "northward" in name or name.startswith("y_") or short in ("v", "va", "vas", "v10", "v10m"),
    }
    for axis in sampling.flip:
        if along[axis] and axis not in sampling.flip_sign:
            raise ConfigError(
                f"{name or short!r} is a vector component along {axis}: mirroring must change its sign; add "
                f"flip_sign=({axis!r},) to sampling, or leave flips off."
            )


def _spec(settings: FitSettings, statics: int, had_missing: bool, shape: tuple[int, int] | None) -> NetworkSpec:
    fixed = settings.data.domain == "fixed"
    inputs, fine = channel_counts(statics, fixed=fixed, with_mask=had_missing)
    return NetworkSpec(
        backbone=settings.backbone,
        upsampling=settings.upsampling,
        scale=settings.scale,
        inputs=inputs,
        statics=fine,
        masked=had_missing,
        domain=shape,
        config=settings.network,
    )


def _halo(settings: FitSettings, statics: int) -> int:
    """Return the halo of the model that is to be trained, from a network without weights."""
    with torch.device("meta"):
        network = build_network(_spec(settings, statics, False, (1, 1)))
    return halo_with(network, settings.data)


def _moments(material: _Material, settings: FitSettings) -> tuple[Scaling, LinearBaselines, bool]:
    """Return scaling, baselines and whether inputs have gaps, from one pass over the training samples."""
    blocks, holdout = material.blocks, material.holdout
    area = material.grid.area * holdout.weight
    moments = TrainingMoments(area, material.anomaly, contrast_radius=settings.data.contrast_radius)
    missing = False
    for index in range(len(blocks)):
        fields = blocks.load(index)
        chosen = holdout.training[blocks.fields(index)]
        if chosen.any():
            moments.add(fields.target[chosen], fields.bicubic[chosen], fields.coarse[chosen])
        missing = missing or not np.isfinite(fields.coarse).all()
    scaling, baselines = moments.fit(material.da.name)
    if settings.data.domain == "fixed" and holdout.training.sum() < 2:
        raise DataError(
            "There is 1 training field: a model for a fixed domain learns the mean error of every cell, and would know "
            "this field by heart. Use validation='space' or data={'domain': 'open'}, or more fields."
        )
    if settings.sampling.flip_sign:  # mirroring changes the sign of scaled values only if their mean is 0
        scaling = Scaling(0.0, float(np.hypot(scaling.sd, scaling.mean)))
    return scaling, baselines, missing


def _untrained(material: _Material, settings: FitSettings) -> SRModel:
    """Return the model with fitted baselines and new weights."""
    scaling, baselines, had_missing = _moments(material, settings)
    spec = _spec(settings, len(material.static.data_vars), had_missing, material.grid.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(spec)
    seen = np.isfinite(baselines.delta)
    if settings.data.domain == "open":
        baselines = baselines.pooled()
    return SRModel(
        spec=spec,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        variable=_variable(material.da, had_missing),
        scaling=scaling,
        baselines=baselines,
        static_scaling=fit_static_scaling(material.static, material.anomaly, material.grid.area),
        data=settings.data,
        grid=material.grid,
        static=material.static,
        training=TrainingRecord(
            period=None, samples=0, seed=settings.seed, steps=0, cpu_seconds=0.0, validation_kind="none"
        ),
        fine_mask=None if seen.all() else seen,
    )


def _variable(da: xr.DataArray, had_missing: bool) -> Variable:
    told = {key: None if da.attrs.get(key) is None else str(da.attrs[key]) for key in _TOLD}
    return Variable(name=None if da.name is None else str(da.name), had_missing=had_missing, **told)


def _started_from(model: SRModel, init: SRModel, sampling: SamplingConfig) -> SRModel:
    """Return the untrained model with the weights and input scaling of `init`."""
    if not isinstance(init, SRModel):
        raise ConfigError(f"init must be an SRModel or the path of one, got {type(init).__name__}.")
    check_units(xr.DataArray(0.0, attrs={"units": model.variable.units}), init.variable.units, what="init")
    ours, theirs = (replace(m.spec, domain=None) for m in (model, init))
    if ours != theirs:
        differing = [n for n in asdict(ours) if asdict(ours)[n] != asdict(theirs)[n]]
        raise ConfigError(
            f"init= has another network: {', '.join(differing)} differ; fit with the same settings, static fields "
            "and scale to fine-tune."
        )
    if (model.data.domain, model.data.reach) != (init.data.domain, init.data.reach):
        raise ConfigError(
            f"init= was trained with data={{'domain': {init.data.domain!r}, 'contrast_radius': "
            f"{init.data.contrast_radius}}}, this fit has {model.data.domain!r} and {model.data.contrast_radius}: its "
            "weights belong to other input channels; use the same."
        )
    if model.static_scaling.names != init.static_scaling.names:
        raise ConfigError(
            f"init= was trained with static fields {init.static_scaling.names}, these are {model.static_scaling.names}."
        )
    if model.spec.config.location_features and model.spec.domain != init.spec.domain:
        raise ConfigError("init= has location features of another domain; they cannot be moved.")
    if sampling.flip_sign and init.scaling.mean != 0:
        raise ConfigError(
            "init= was scaled about a mean other than 0, so mirroring cannot change the sign; fine-tune without "
            "flip_sign, or train anew."
        )
    model.network.load_state_dict(init.network.state_dict())
    baselines = replace(model.baselines, residual_sd=init.baselines.residual_sd)  # units of inputs and output
    return replace(model, scaling=init.scaling, static_scaling=init.static_scaling, baselines=baselines)


def _train(model: SRModel, material: _Material, settings: FitSettings, clock: Clock, progress: bool) -> Trained:
    config = settings.optimization
    device = torch.device(choose_device(config.device))
    reader = _reader(model, material, settings)
    network = model.network.to(device)
    step = SupervisedStep(network, model.residual_sd / model.scaling.sd, config)
    validate = _validator(model, material, settings, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return train(network, reader, step, validate, config, clock=clock, device=device, progress=progress)


def _reader(model: SRModel, material: _Material, settings: FitSettings) -> Reader:
    """Return the reader of training samples."""
    sampling, blocks, periodic = settings.sampling, material.blocks, model.grid.x.periodic
    plan = WindowPlan(
        rows=model.coarse_grid.y.size,
        parts=model.coarse_grid.parts(),
        periodic=periodic,
        patch=sampling.patch_size,
        margin=model.halo if periodic and sampling.patch_size is None else 0,
    )
    training = blocks.chosen(material.holdout.training)
    counts = [int(chosen.sum()) for _, chosen in training]
    _check_count(sum(counts) * plan.per_field, sampling.batch_size)
    weight = (model.grid.area * material.holdout.weight).astype(np.float32)
    return Reader(
        lambda index: blocks.scaled(*training[index], model.channels),
        counts,
        Planes(model.channels.fine, weight),
        plan,
        scale=model.scale,
        batch_size=sampling.batch_size,
        seed=settings.seed,
        mirror=Mirror(sampling.flip, sampling.flip_sign, model.spec.inputs - model.spec.masked),
    )


def _check_count(samples: int, batch_size: int) -> None:
    if samples < batch_size:
        raise DataError(
            f"There are {samples} training samples, fewer than batch_size={batch_size}; use a smaller "
            "sampling={'batch_size': ...}, patches (patch_size), or more data."
        )


def _validator(model: SRModel, material: _Material, settings: FitSettings, device: torch.device) -> Validate | None:
    """Return the function that scores a network on what was held out, through the code of inference."""
    blocks, holdout = material.blocks, material.holdout
    chosen = holdout.validation
    if isinstance(settings.validation, xr.DataArray):
        blocks = _other_blocks(settings.validation, model, settings)
        chosen = np.ones(blocks.count, bool)
    if not chosen.any():
        return None
    weight = model.grid.area * holdout.validation_weight
    return Validator(model, blocks, chosen, weight, device=device, keep=settings.sampling.memory_budget // 4)


def _other_blocks(da: xr.DataArray, model: SRModel, settings: FitSettings) -> FieldBlocks:
    """Return the fields of ``validation=DataArray``, which must lie on the training grid."""
    check_values(da)
    check_units(da, model.variable.units, what="validation")
    grid = grid_of(da, gaps=True)
    location = model.grid.locate(grid) if grid.shape == model.grid.shape else None
    if location is None or location.rows[0] or location.columns[0]:
        raise GridError(f"validation= lies on {grid.describe()}; expected the training grid {model.grid.describe()}.")
    return FieldBlocks(da, grid, model.scale, settings.data, settings.sampling.memory_budget)


def _finished(model: SRModel, trained: Trained, material: _Material, settings: FitSettings, clock: Clock) -> SRModel:
    record = TrainingRecord(
        period=_period(material),
        samples=int(material.holdout.training.sum()),
        seed=settings.seed,
        steps=trained.steps,
        cpu_seconds=round(clock.cpu_seconds(), 2),
        validation_kind=material.holdout.kind,
        validation=trained.score,
        history=trained.history,
        settings=plain({"sampling": asdict(settings.sampling), "optimization": asdict(settings.optimization)}),
        versions=_versions(),
    )
    return replace(model, network=trained.network.to("cpu").eval(), training=record)


def _period(material: _Material) -> tuple[str, str] | None:
    """Return the first and last time that was trained on."""
    da, blocks, time = material.da, material.blocks, material.grid.time
    if time is None or time != blocks.lead or time not in da.coords:
        return None
    times = da.coords[time].values[material.holdout.training[:: blocks.per_step]]
    return str(times.min())[:19], str(times.max())[:19]


def _versions() -> dict[str, str]:
    from xsuperres._version import __version__

    return {
        "xsuperres": __version__,
        "torch": str(torch.__version__),
        "xarray": xr.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
