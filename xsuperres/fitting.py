"""`fit`: the data's way, top to bottom.

fine fields -> grid and checks -> blocks of (coarse, skip, target) -> moments and baselines -> network -> training
loop with a validation built on inference -> SRModel.
"""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict, replace

import numpy as np
import torch
import xarray as xr

from xsuperres.config import SamplingConfig
from xsuperres.errors import ConfigError, DataError
from xsuperres.fields.checks import check_units
from xsuperres.fields.forecasts import TimeAxes
from xsuperres.fields.static import StaticLike, fit_static_scaling
from xsuperres.inference.validation import Validator
from xsuperres.inference.workers import choose_device
from xsuperres.material import Material, Sources, gathered, network_spec, other_blocks
from xsuperres.model.artefact import Input, SRModel, TrainingRecord
from xsuperres.model.datasets import plain
from xsuperres.model.table import activate as activate_model
from xsuperres.model.table import remember
from xsuperres.moments import fitted_parts
from xsuperres.nn.discriminator import Discriminator, DiscriminatorSpec, build_discriminator
from xsuperres.nn.network import build_network
from xsuperres.samples.holdout import leading_dim
from xsuperres.samples.plan import WindowPlan
from xsuperres.samples.readers import Mirror, Planes, Reader
from xsuperres.settings import FitSettings
from xsuperres.training.adversarial import AdversarialStep
from xsuperres.training.budget import Clock
from xsuperres.training.loop import Step, Trained, Validate, train
from xsuperres.training.supervised import SupervisedStep

__all__ = ["fit"]

logger = logging.getLogger(__name__)


def fit(
    sources: Sources,
    settings: FitSettings,
    *,
    static: StaticLike | None = None,
    init: SRModel | None = None,
    activate: bool = True,
    progress: bool = True,
    clock: Clock | None = None,
) -> SRModel:
    """Train a model; see `SuperResolutionAccessor.fit`."""
    clock = clock or Clock()
    mirror_signs(sources, settings.sampling)  # refuses before anything is read
    material = gathered(sources, settings, static)
    model = _untrained(material, settings)
    if init is not None:
        model = _started_from(model, init, settings.sampling)
    model, trained = _train(model, material, settings, clock, progress)
    model = _finished(model, trained, material, settings, clock)
    logger.info("Trained %s", model)
    return activate_model(model) if activate else remember(model)


def mirror_signs(sources: Sources, sampling: SamplingConfig) -> dict[str, list[int]]:
    """Return the variables (targets first) whose sign mirroring changes, along each axis.

    Raises
    ------
    ConfigError
        If a vector component would be mirrored without.
    """
    signs: dict[str, list[int]] = {}
    fields = [*sources.targets, *sources.predictors]
    for axis in sampling.flip:
        along = [index for index, da in enumerate(fields) if _is_component(da, axis)]
        if along and axis not in sampling.flip_sign:
            name = fields[along[0]].attrs.get("standard_name", fields[along[0]].name)
            raise ConfigError(
                f"{name!r} is a vector component along {axis}: mirroring must change its sign; add "
                f"flip_sign=({axis!r},) to sampling, or leave flips off."
            )
        if axis in sampling.flip_sign:
            signs[axis] = along or [0]  # of a single variable, as asked
    return signs


def _is_component(da: xr.DataArray, axis: str) -> bool:
    name, short = str(da.attrs.get("standard_name", "")), str(da.name).lower()
    word, grid, names = {
        "x": ("eastward", "x_", ("u", "ua", "uas", "u10", "u10m")),
        "y": ("northward", "y_", ("v", "va", "vas", "v10", "v10m")),
    }[axis]
    return word in name or name.startswith(grid) or short in names


def _untrained(material: Material, settings: FitSettings) -> SRModel:
    """Return the model with fitted baselines and new weights."""
    targets, predictors, seen = fitted_parts(material, settings)
    inputs: tuple[Input, ...] = (*targets, *predictors)
    spec = network_spec(
        settings,
        statics=len(material.static.data_vars),
        targets=len(targets),
        predictors=len(predictors),
        masks=sum(part.variable.had_missing for part in inputs),
        shape=material.grid.shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(spec)
    return SRModel(
        spec=spec,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        targets=targets,
        predictors=predictors,
        static_scaling=fit_static_scaling(material.static, material.anomaly, material.grid.area),
        data=settings.data,
        grid=material.grid,
        static=material.static,
        training=TrainingRecord(
            period=None, samples=0, seed=settings.seed, steps=0, cpu_seconds=0.0, validation_kind="none"
        ),
        fine_mask=seen,
        margin=material.sources.margin,
        paired=material.sources.coarse is not None,
    )


def _started_from(model: SRModel, init: SRModel, sampling: SamplingConfig) -> SRModel:
    """Return the untrained model with the weights and input scaling of `init`."""
    if not isinstance(init, SRModel):
        raise ConfigError(f"init must be an SRModel or the path of one, got {type(init).__name__}.")
    if len(model.targets) != len(init.targets) or len(model.predictors) != len(init.predictors):
        raise ConfigError(f"init= was trained on {init.names}, this fit is of {model.names}; use the same variables.")
    for ours, theirs in zip(model.inputs, init.inputs, strict=True):
        check_units(xr.DataArray(0.0, attrs={"units": ours.variable.units}), theirs.variable.units, what="init")
    mine, its = (asdict(replace(m.spec, domain=None)) for m in (model, init))
    if mine != its:
        differing = [name for name in mine if mine[name] != its[name]]
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
    for name, field in init.static.data_vars.items():
        check_units(model.static[name], field.attrs.get("units"), what=f"static field {name!r}", like="init")
    model.network.load_state_dict(init.network.state_dict())
    targets = [
        replace(  # the units of inputs and output
            ours,
            scaling=theirs.scaling,
            transform=theirs.transform,
            baselines=replace(ours.baselines, residual_sd=theirs.baselines.residual_sd),
        )
        for ours, theirs in zip(model.targets, init.targets, strict=True)
    ]
    return replace(
        model,
        targets=tuple(targets),
        predictors=init.predictors,
        static_scaling=init.static_scaling,
        discriminator=init.discriminator,
    )


def _train(
    model: SRModel, material: Material, settings: FitSettings, clock: Clock, progress: bool
) -> tuple[SRModel, Trained]:
    """Return the model with what it was trained against, and what training gave."""
    config = settings.optimization
    device = torch.device(choose_device(config.device))
    reader = _reader(model, material, settings)
    network = model.network.to(device)
    validate = _validator(model, material, settings, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        step: Step = SupervisedStep(network, model.channels, config)
        if settings.training == "adversarial":
            model = replace(model, discriminator=model.discriminator or _discriminator(model, settings))
            assert model.discriminator is not None
            against = model.discriminator.to(device).train()
            step = AdversarialStep(network, against, model.channels, config, settings.adversarial)
        trained = train(network, reader, step, validate, config, clock=clock, device=device, progress=progress)
    return model, trained


def _discriminator(model: SRModel, settings: FitSettings) -> Discriminator:
    spec, game = model.spec, settings.adversarial
    return build_discriminator(
        DiscriminatorSpec(
            name=game.discriminator,
            scale=spec.scale,
            outputs=spec.outputs,
            inputs=spec.inputs * (spec.time_window or 1),
            statics=spec.statics,
            width=game.width,
            depth=game.depth,
        )
    )


def _reader(model: SRModel, material: Material, settings: FitSettings) -> Reader:
    """Return the reader of training samples."""
    sampling, blocks, periodic = settings.sampling, material.blocks, model.grid.x.periodic
    plan = WindowPlan(
        rows=model.coarse_grid.y.size,
        parts=model.coarse_grid.parts(),
        periodic=periodic,
        patch=sampling.patch_size,
        margin=model.reach if periodic and sampling.patch_size is None else 0,
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
        mirror=_mirror(model, material, sampling),
    )


def _mirror(model: SRModel, material: Material, sampling: SamplingConfig) -> Mirror:
    """Return the flips with the channels whose sign they change; flips with a sign are of open domains."""
    signs = mirror_signs(material.sources, sampling)
    count = len(model.targets)
    return Mirror(sampling.flip, {a: (chosen, [i for i in chosen if i < count]) for a, chosen in signs.items()})


def _check_count(samples: int, batch_size: int) -> None:
    if samples < batch_size:
        raise DataError(
            f"There are {samples} training samples, fewer than batch_size={batch_size}; use a smaller "
            "sampling={'batch_size': ...}, patches (patch_size), or more data."
        )


def _validator(model: SRModel, material: Material, settings: FitSettings, device: torch.device) -> Validate | None:
    """Return the function that scores a network on what was held out, through the code of inference."""
    blocks, holdout = material.blocks, material.holdout
    chosen = holdout.validation
    if isinstance(settings.validation, (xr.DataArray, xr.Dataset)):
        blocks = other_blocks(settings.validation, model, settings)
        chosen = np.ones(blocks.count, bool)
    if not chosen.any():
        return None
    weight = model.grid.area * holdout.validation_weight
    return Validator(model, blocks, chosen, weight, device=device, keep=settings.sampling.memory_budget // 4)


def _finished(model: SRModel, trained: Trained, material: Material, settings: FitSettings, clock: Clock) -> SRModel:
    period, held_out = _times(material)
    record = TrainingRecord(
        period=period,
        held_out=held_out,
        samples=int(material.holdout.training.sum()),
        seed=settings.seed,
        steps=trained.steps,
        cpu_seconds=round(clock.cpu_seconds(), 2),
        validation_kind=material.holdout.kind,
        adversarial=settings.training == "adversarial",
        step=TimeAxes.of(material.sources.like, material.grid.time).step,
        validation=trained.score,
        history=trained.history,
        settings=plain({"sampling": asdict(settings.sampling), "optimization": asdict(settings.optimization)}),
        versions=_versions(),
    )
    against = None if model.discriminator is None else model.discriminator.to("cpu").eval()
    return replace(model, network=trained.network.to("cpu").eval(), training=record, discriminator=against)


def _times(material: Material) -> tuple[tuple[str, str] | None, tuple[tuple[str, str], ...]]:
    """Return the first and last time that was trained on, and those of each stretch that was held out."""
    da, blocks, time = material.sources.like, material.blocks, material.grid.time
    if time is None or time != leading_dim(da, material.grid) or time not in da.coords:
        return None, ()
    order = np.argsort(da.coords[time].values, kind="stable")
    times = [str(value)[:19] for value in da.coords[time].values[order]]
    trained = material.holdout.training[:: blocks.per_step][order]
    at = np.flatnonzero(trained)
    edges = np.flatnonzero(np.diff(trained, prepend=True, append=True))  # where stretches begin, and the next ones do
    held_out = [(times[start], times[stop - 1]) for start, stop in edges.reshape(-1, 2)]
    return (times[at[0]], times[at[-1]]), tuple(held_out)


def _versions() -> dict[str, str]:
    from xsuperres._version import __version__

    return {
        "xsuperres": __version__,
        "torch": str(torch.__version__),
        "xarray": xr.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
