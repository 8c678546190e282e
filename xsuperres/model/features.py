"""From what a model holds to the chain of stages: what its network is shown, and what its output is added to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xsuperres.config import DataConfig, NetworkConfig
from xsuperres.fields.channels import Channels
from xsuperres.fields.stages import (
    Activation,
    Anomaly,
    Bounds,
    Calendar,
    Contrast,
    Departures,
    Masks,
    Scale,
    Skip,
    Stage,
    StaticPlanes,
    Transforms,
)

if TYPE_CHECKING:
    from xsuperres.model.artefact import Predictor, Target

__all__ = ["channels_of", "plain_channels", "residual_sd"]


def channels_of(
    targets: Sequence[Target],
    predictors: Sequence[Predictor],
    *,
    data: DataConfig,
    network: NetworkConfig,
    static: np.ndarray,
    correction: np.ndarray | None,
) -> Channels:
    """Return the chain of a model.

    Parameters
    ----------
    static : ndarray (c, Y, X)
        Static channels.
    correction : ndarray (targets, Y, X) or None
        What the skip adds to bicubic, in transformed units.
    """
    inputs, spread = (*targets, *predictors), [target.baselines.residual_sd for target in targets]
    mean, sd = (tuple(getattr(part.scaling, name) for part in inputs) for name in ("mean", "sd"))
    gain = tuple(size / s for size, s in zip(residual_sd(targets, data, network), sd, strict=False))
    stages: list[Stage | None] = [
        Bounds(limits=tuple(target.bounds for target in targets)),
        Transforms(transforms=tuple(target.transform for target in targets)),
        Departures.of([target.climatology for target in targets]),
        Scale(mean=mean, sd=sd, targets=len(targets)),
        _activation(network.output_activation, mean, sd, gain),
        _skip(network.skip, correction, sd, gain),
        StaticPlanes(channels=static),
    ]
    if data.domain == "fixed":
        stages.append(_anomaly(targets))
    elif data.contrast_radius:
        contrasts = (*(sizes["contrast"] for sizes in spread), *(p.contrast_sd for p in predictors))
        unit = tuple(s / c for s, c in zip(sd, contrasts, strict=True))
        stages.append(Contrast(radius=data.contrast_radius, unit=unit))
    masked = tuple(index for index, part in enumerate(inputs) if part.variable.had_missing)
    stages += [Calendar() if data.calendar else None, Masks(masked=masked) if masked else None]
    return Channels(tuple(stage for stage in stages if stage is not None))


def plain_channels(data: DataConfig, network: NetworkConfig, *, gain: float = 1.0) -> Channels:
    """Return the chain of one complete target without static fields, scaled by 1: for what needs no data yet.

    `gain` is the unit of the network's output.
    """
    scale, skip = Scale(mean=(0.0,), sd=(1.0,), targets=1), Skip(gain=(gain,), method=_method(network.skip))
    return Channels((scale, skip, Contrast(radius=data.reach, unit=(1.0,))) if data.reach else (scale, skip))


def residual_sd(targets: Sequence[Target], data: DataConfig, network: NetworkConfig) -> tuple[float, ...]:
    """Return the training error of the skip for each target, in transformed units: the unit of the network's output."""
    linear = "linear_fixed" if data.domain == "fixed" else "linear_open"
    kinds = {"linear": linear, "bicubic": "bicubic", None: "none"}
    return tuple(target.baselines.residual_sd[kinds[network.skip]] for target in targets)


def _activation(
    name: str | None, mean: tuple[float, ...], sd: tuple[float, ...], gain: tuple[float, ...]
) -> Activation | None:
    if name is None:
        return None
    return Activation(name=name, mean=mean[: len(gain)], sd=sd[: len(gain)], gain=gain)


def _skip(kind: str | None, correction: np.ndarray | None, sd: tuple[float, ...], gain: tuple[float, ...]) -> Skip:
    scaled = None if correction is None else correction / np.array(sd[: len(gain)])[:, None, None]
    return Skip(gain=gain, method=_method(kind), correction=correction, scaled=scaled)


def _method(skip: str | None) -> str | None:
    return None if skip is None else "bicubic"


def _anomaly(targets: Sequence[Target]) -> Anomaly:
    baselines = [target.baselines for target in targets]
    size = np.array([part.residual_sd["linear_fixed"] for part in baselines])[:, None, None]
    filled = [np.nan_to_num(target.baselines.climatology, nan=target.scaling.mean) for target in targets]
    return Anomaly(
        climatology=np.stack(filled),
        sd=tuple(part.residual_sd["climatology"] for part in baselines),
        residual=np.stack([np.nan_to_num(part.delta) for part in baselines]) / size,
    )
