"""`fit`: the data's way, top to bottom.

fine fields -> grid and checks -> blocks of (coarse, skip, target) -> moments and baselines -> network -> training
loop with a validation built on inference -> SRModel.
"""

from __future__ import annotations

import logging
import platform
import warnings
from dataclasses import asdict, replace

import numpy as np
import torch
import xarray as xr

from xsuperres.config import SamplingConfig
from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields.components import mirror_signs
from xsuperres.fields.static import StaticLike, fit_static_scaling, static_channels
from xsuperres.inference.devices import choose_device
from xsuperres.inference.validation import Validator
from xsuperres.material import Material, Sources, gathered, network_spec, other_blocks
from xsuperres.model.artefact import SRModel, TrainingRecord
from xsuperres.model.datasets import plain
from xsuperres.model.features import channels_of
from xsuperres.model.table import activate as activate_model
from xsuperres.model.table import remember
from xsuperres.moments import fitted_parts
from xsuperres.nn.network import build_network
from xsuperres.samples.plan import WindowPlan
from xsuperres.samples.readers import Mirror, Planes, Reader
from xsuperres.settings import FitSettings
from xsuperres.training.budget import Clock
from xsuperres.training.loop import Loop, Trained, Validate
from xsuperres.tuning import check_start, started_from

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
    mirror_signs(sources.fields, settings.sampling)  # refuses before anything is read
    if init is not None:
        sources = check_start(init, sources, settings)
    material = gathered(sources, settings, static)
    model = _untrained(material, settings, init)
    if init is not None:
        model = started_from(model, init, material.sources, settings)
    model, trained = _train(model, material, settings, init, clock, progress)
    model = _finished(model, trained, material, settings, clock)
    logger.info("Trained %s", model)
    return activate_model(model) if activate else remember(model)


def _untrained(material: Material, settings: FitSettings, init: SRModel | None) -> SRModel:
    """Return the model with baselines, fitted in the transformed units of `init`, and new weights."""
    transforms = None if init is None else [target.transform for target in init.targets]
    fitted = fitted_parts(material, settings, transforms)
    scaling = fit_static_scaling(material.static, material.anomaly, material.grid.area)
    channels = channels_of(
        fitted.targets,
        fitted.predictors,
        data=settings.data,
        network=settings.network,
        static=static_channels(material.static, material.anomaly, scaling),
        correction=None,  # no channel depends on it
    )
    spec = network_spec(settings, channels, material.grid.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(spec)
    return SRModel(
        spec=spec,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        targets=fitted.targets,
        predictors=fitted.predictors,
        ranges=fitted.ranges,
        static_scaling=scaling,
        data=settings.data,
        grid=material.grid,
        static=material.static,
        training=TrainingRecord(
            period=None, samples=0, seed=settings.seed, steps=0, cpu_seconds=0.0, validation_kind="none"
        ),
        fine_mask=fitted.seen,
        margin=material.sources.margin,
        paired=material.sources.coarse is not None,
    )


def _train(
    model: SRModel, material: Material, settings: FitSettings, init: SRModel | None, clock: Clock, progress: bool
) -> tuple[SRModel, Trained]:
    """Return the model with its opponent, if it has one, and what training gave."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model, loop = _loop(model, material, settings, init, clock)
        loop.run(progress=progress)
        return model, loop.result()


def _loop(
    model: SRModel, material: Material, settings: FitSettings, init: SRModel | None, clock: Clock
) -> tuple[SRModel, Loop]:
    """Return the model with its opponent, if it has one, and the loop that trains them."""
    config, kind = settings.optimization, settings.kind
    device = torch.device(choose_device(config.device))
    network = model.network.to(device)
    opponent = kind.opponent(model.spec, settings.training_config, None if init is None else init.discriminator)
    if opponent is not None:
        model = replace(model, discriminator=opponent.to(device).train())
    step = kind.step(network, opponent, model.channels, config, settings.training_config)
    reader, validate = _reader(model, material, settings), _validator(model, material, settings, device)
    return model, Loop(network, reader, step, validate, config, keep=kind.keep, clock=clock, device=device)


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
    _warn_of_patches(model, plan)
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


def _warn_of_patches(model: SRModel, plan: WindowPlan) -> None:
    """Warn when a network that looks at the whole domain is trained on a part of it."""
    whole = plan.rows, plan.columns
    if model.network.global_context and plan.patch is not None and plan.shape != whole:
        (height, width), (rows, columns) = plan.shape, whole
        warnings.warn(
            f"This network looks at all it is shown: in training that is patches of {height} x {width} coarse cells, "
            f"afterwards the whole domain of {rows} x {columns}, whose means differ. Train on full fields with "
            "sampling={'patch_size': None}, or use a part that looks at neighbourhoods, such as attention='local'.",
            XSuperResWarning,
            stacklevel=4,
        )


def _mirror(model: SRModel, material: Material, sampling: SamplingConfig) -> Mirror:
    """Return the flips with the coarse channels, and the targets, whose sign they change."""
    signs = {}
    for axis, variables in mirror_signs(material.sources.fields, sampling).items():
        channels = [channel for variable in variables for channel in model.channels.channels_of(variable)]
        signs[axis] = (channels, [variable for variable in variables if variable < len(model.targets)])
    return Mirror(sampling.flip, signs)


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
    ways = {"sampling": asdict(settings.sampling), "optimization": asdict(settings.optimization)}
    ways |= settings.kind.recorded(settings.training_config)
    record = TrainingRecord(
        period=period,
        held_out=held_out,
        samples=int(material.holdout.training.sum()),
        seed=settings.seed,
        steps=trained.steps,
        cpu_seconds=round(clock.cpu_seconds(), 2),
        validation_kind=material.holdout.kind,
        kind=settings.training,
        step=material.sources.like.times.step,
        validation=trained.score,
        history=trained.history,
        settings=plain(ways),
        versions=_versions(),
    )
    against = None if model.discriminator is None else model.discriminator.to("cpu").eval()
    return replace(model, network=trained.network.to("cpu").eval(), training=record, discriminator=against)


def _times(material: Material) -> tuple[tuple[str, str] | None, tuple[tuple[str, str], ...]]:
    """Return the first and last time that was trained on, and those of each stretch that was held out."""
    like, blocks = material.sources.like, material.blocks
    da, time = like.array, like.axes.time
    if time is None or time != like.sample_dim or time not in da.coords:
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
