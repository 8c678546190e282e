"""`fit`: the data's way, top to bottom.

fine field -> grid and checks -> blocks of (coarse, skip, target) -> moments and baselines -> network -> training
loop with a validation built on inference -> SRModel.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from xsuperres.config import (
    DataConfig,
    NetworkConfig,
    OptimizationConfig,
    SamplingConfig,
    check_choice,
    resolve,
)
from xsuperres.errors import ConfigError, DataError, GridError
from xsuperres.fields.baselines import LinearBaselines, Scaling, TrainingMoments
from xsuperres.fields.channels import channel_counts
from xsuperres.fields.checks import check_units, check_values
from xsuperres.fields.grid import Grid, check_scale, grid_of
from xsuperres.fields.static import StaticLike, anomalies, find_static, fit_static_scaling
from xsuperres.inference.validation import Validator
from xsuperres.inference.workers import choose_device
from xsuperres.model.artefact import SRModel, TrainingRecord, Variable
from xsuperres.model.table import activate as activate_model
from xsuperres.model.table import remember
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.samples.blocks import FieldBlocks
from xsuperres.samples.holdout import Holdout, hold_out
from xsuperres.samples.plan import WindowPlan
from xsuperres.samples.readers import Planes, Reader
from xsuperres.training.budget import Clock
from xsuperres.training.loop import Trained, Validate, train
from xsuperres.training.supervised import SupervisedStep

__all__ = ["FitSettings", "fit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """All settings of one `fit`, resolved and checked."""

    scale: int
    backbone: str
    upsampling: str
    network: NetworkConfig
    data: DataConfig
    sampling: SamplingConfig
    optimization: OptimizationConfig
    validation: Any
    seed: int

    @classmethod
    def of(
        cls,
        *,
        scale: Any,
        training: str,
        backbone: str,
        upsampling: str,
        network: NetworkConfig | Mapping[str, Any] | None,
        data: DataConfig | Mapping[str, Any] | None,
        sampling: SamplingConfig | Mapping[str, Any] | None,
        optimization: OptimizationConfig | Mapping[str, Any] | None,
        validation: Any,
        seed: int,
    ) -> FitSettings:
        """Resolve names and dicts, and check what only shows across settings."""
        check_choice("training", training, ("supervised",))
        settings = cls(
            scale=check_scale(scale),
            backbone=BACKBONES.canonical(backbone),
            upsampling=UPSAMPLERS.canonical(upsampling),
            network=resolve(NetworkConfig, network),
            data=resolve(DataConfig, data),
            sampling=resolve(SamplingConfig, sampling),
            optimization=resolve(OptimizationConfig, optimization),
            validation=validation,
            seed=seed,
        )
        domain = settings.data.domain
        if domain == "auto":
            domain = "open" if isinstance(validation, str) and validation == "space" else "fixed"
            settings = replace(settings, data=replace(settings.data, domain=domain))
        if settings.network.location_features and (domain == "open" or settings.sampling.flip):
            raise ConfigError(
                "location_features learn fields of a fixed domain: they go with data={'domain': 'fixed'} and "
                f"without flips, got domain={domain!r}, flip={settings.sampling.flip}."
            )
        return settings


def fit(
    da: xr.DataArray,
    settings: FitSettings,
    *,
    static: StaticLike | None = None,
    init: SRModel | None = None,
    activate: bool = True,
    progress: bool = True,
) -> SRModel:
    """Train a model on `da`, which is fine and coarsened inside; see `SuperResolutionAccessor.fit`."""
    clock = Clock()
    check_values(da)
    _check_vector(da, settings.sampling)
    grid = grid_of(da, gaps=True)
    planes = find_static(da, grid, static)
    anomaly = anomalies(planes, grid, settings.scale)
    blocks = FieldBlocks(da, grid, settings.scale, settings.data, settings.sampling.memory_budget)
    spec_halo = _halo(settings, len(planes.data_vars))
    holdout = hold_out(da, grid, settings.validation, scale=settings.scale, halo=spec_halo)
    scaling, baselines, had_missing = _moments(blocks, holdout, anomaly, da.name, settings)
    model = _untrained(da, settings, grid, planes, anomaly, scaling, baselines, had_missing, init)
    trained = _train(model, blocks, holdout, settings, clock, progress)
    model = _finished(model, trained, da, grid, settings, holdout, clock, blocks)
    logger.info("Trained %s", model)
    return activate_model(model) if activate else remember(model)


def _check_vector(da: xr.DataArray, sampling: SamplingConfig) -> None:
    """Refuse flips of vector components unless their sign is flipped along their own axis."""
    name = str(da.attrs.get("standard_name", ""))
    along = {
        "x": "eastward" in name or name.startswith("x_"),
        "y": "northward" in name or name.startswith("y_"),
    }
    for axis in sampling.flip:
        if along[axis] and axis not in sampling.flip_sign:
            raise ConfigError(
                f"{name!r} is a vector component along {axis}: mirroring must change its sign; add "
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
    with torch.device("meta"):
        return build_network(_spec(settings, statics, False, (1, 1))).halo


def _moments(
    blocks: FieldBlocks, holdout: Holdout, anomaly: np.ndarray, name: object, settings: FitSettings
) -> tuple[Scaling, LinearBaselines, bool]:
    """Return scaling, baselines and whether inputs have gaps, from one pass over the training samples."""
    area = blocks.grid.area * holdout.weight
    moments = TrainingMoments(area, anomaly, contrast_radius=settings.data.contrast_radius)
    missing = False
    for index in range(len(blocks)):
        fields = blocks.load(index)
        chosen = holdout.training[blocks.fields(index)]
        if chosen.any():
            moments.add(fields.target[chosen], fields.bicubic[chosen], fields.coarse[chosen])
        missing = missing or not np.isfinite(fields.coarse).all()
    scaling, baselines = moments.fit(name)
    if settings.sampling.flip_sign:  # mirroring changes the sign of scaled values only if their mean is 0
        scaling = Scaling(0.0, float(np.hypot(scaling.sd, scaling.mean)))
    return scaling, baselines, missing


def _untrained(
    da: xr.DataArray,
    settings: FitSettings,
    grid: Grid,
    planes: xr.Dataset,
    anomaly: np.ndarray,
    scaling: Scaling,
    baselines: LinearBaselines,
    had_missing: bool,
    init: SRModel | None,
) -> SRModel:
    spec = _spec(settings, len(planes.data_vars), had_missing, grid.shape)
    static_scaling = fit_static_scaling(planes, anomaly, grid.area)
    variable = Variable(
        name=None if da.name is None else str(da.name),
        units=da.attrs.get("units"),
        standard_name=da.attrs.get("standard_name"),
        long_name=da.attrs.get("long_name"),
        had_missing=had_missing,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(spec)
    seen = np.isfinite(baselines.delta)
    model = SRModel(
        spec=spec,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        variable=variable,
        scaling=scaling,
        baselines=baselines,
        static_scaling=static_scaling,
        data=settings.data,
        grid=grid,
        static=planes,
        training=TrainingRecord(
            period=None, samples=0, seed=settings.seed, steps=0, cpu_seconds=0.0, validation_kind="none"
        ),
        fine_mask=None if seen.all() else seen,
    )
    return model if init is None else _started_from(model, init)


def _started_from(model: SRModel, init: SRModel) -> SRModel:
    """Return the untrained model with the weights and input scaling of `init`."""
    check_units(xr.DataArray(0.0, attrs={"units": model.variable.units}), init.variable.units, what="init")
    ours, theirs = (replace(m.spec, domain=None) for m in (model, init))
    if ours != theirs:
        differing = [n for n in asdict(ours) if asdict(ours)[n] != asdict(theirs)[n]]
        raise ConfigError(
            f"init= has another network: {', '.join(differing)} differ; fit with the same settings, static fields "
            "and scale to fine-tune."
        )
    if model.static_scaling.names != init.static_scaling.names:
        raise ConfigError(
            f"init= was trained with static fields {init.static_scaling.names}, these are {model.static_scaling.names}."
        )
    if model.spec.config.location_features and model.spec.domain != init.spec.domain:
        raise ConfigError("init= has location features of another domain; they cannot be moved.")
    model.network.load_state_dict(init.network.state_dict())
    return replace(model, scaling=init.scaling, static_scaling=init.static_scaling)


def _train(
    model: SRModel,
    blocks: FieldBlocks,
    holdout: Holdout,
    settings: FitSettings,
    clock: Clock,
    progress: bool,
) -> Trained:
    config, sampling = settings.optimization, settings.sampling
    device = torch.device(choose_device(config.device))
    plan = WindowPlan(
        rows=model.coarse_grid.y.size,
        parts=model.coarse_grid.parts(),
        periodic=model.grid.x.periodic,
        patch=sampling.patch_size,
        margin=model.halo if model.grid.x.periodic and sampling.patch_size is None else 0,
    )
    training = blocks.chosen(holdout.training)
    counts = [int(chosen.sum()) for _, chosen in training]
    _check_count(sum(counts) * plan.per_field, sampling.batch_size)
    weight = (model.grid.area * holdout.weight).astype(np.float32)
    reader = Reader(
        lambda index: blocks.scaled(*training[index], model.channels),
        counts,
        Planes(model.channels.fine, weight),
        plan,
        scale=model.scale,
        batch_size=sampling.batch_size,
        seed=settings.seed,
        flip=sampling.flip,
        flip_sign=sampling.flip_sign,
    )
    network = model.network.to(device)
    step = SupervisedStep(network, model.residual_sd / model.scaling.sd, config)
    validate = _validator(model, blocks, holdout, settings, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return train(network, reader, step, validate, config, clock=clock, device=device, progress=progress)


def _check_count(samples: int, batch_size: int) -> None:
    if samples < batch_size:
        raise DataError(
            f"There are {samples} training samples, fewer than batch_size={batch_size}; use a smaller "
            "sampling={'batch_size': ...}, patches (patch_size), or more data."
        )


def _validator(
    model: SRModel, blocks: FieldBlocks, holdout: Holdout, settings: FitSettings, device: torch.device
) -> Validate | None:
    """Return the function that scores a network on what was held out, through the code of inference."""
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


def _finished(
    model: SRModel,
    trained: Trained,
    da: xr.DataArray,
    grid: Grid,
    settings: FitSettings,
    holdout: Holdout,
    clock: Clock,
    blocks: FieldBlocks,
) -> SRModel:
    network = trained.network.to("cpu").eval()
    record = TrainingRecord(
        period=_period(da, grid),
        samples=int(holdout.training.sum()),
        seed=settings.seed,
        steps=trained.steps,
        cpu_seconds=round(clock.cpu_seconds(), 2),
        validation_kind=holdout.kind,
        validation=trained.score,
        history=trained.history,
        settings={"sampling": asdict(settings.sampling), "optimization": asdict(settings.optimization)},
        versions=_versions(),
    )
    return replace(model, network=network, training=record)


def _period(da: xr.DataArray, grid: Grid) -> tuple[str, str] | None:
    if grid.time is None or grid.time not in da.coords or da.sizes[grid.time] == 0:
        return None
    times = da.coords[grid.time].values
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
