"""The settings of one `fit`, resolved and checked before any data are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from xsuperres.conditions import each
from xsuperres.config import DataConfig, NetworkConfig, OptimizationConfig, SamplingConfig, resolve
from xsuperres.errors import ConfigError
from xsuperres.fields.grid import check_scale
from xsuperres.fields.times import offsets
from xsuperres.inference.devices import choose_device
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.layers import ACTIVATIONS, ATTENTION, DROPOUT, NORMALIZATION, output_activations
from xsuperres.nn.losses import loss_names
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.training.kinds import TRAININGS, Training

__all__ = ["FitSettings"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """All settings of one `fit`; see `SuperResolutionAccessor.fit` for what each means.

    `training` is the name of a kind in `TRAININGS`, `training_config` its settings, None if it has none.
    """

    scale: int
    training: str
    training_config: Any
    time_window: int | None
    backbone: str
    upsampling: str
    network: NetworkConfig
    data: DataConfig
    sampling: SamplingConfig
    optimization: OptimizationConfig
    validation: Any
    seed: int

    @property
    def kind(self) -> Training[Any]:
        """The kind of training."""
        return TRAININGS.get(self.training)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> FitSettings:
        """Return the settings from what the user gave: names and aliases, dicts, numbers of any type.

        Raises
        ------
        ConfigError, UnknownNameError, GridError
            If a name is unknown, a number out of range, or settings contradict each other.
        """
        training = TRAININGS.canonical(given["training"])
        settings = cls(
            scale=check_scale(given["scale"]),
            training=training,
            training_config=_training_config(training, given),
            time_window=_window(given.get("time_window")),
            backbone=BACKBONES.canonical(given["backbone"]),
            upsampling=UPSAMPLERS.canonical(given["upsampling"]),
            network=resolve(NetworkConfig, given["network"]),
            data=resolve(DataConfig, given["data"]),
            sampling=resolve(SamplingConfig, given["sampling"]),
            optimization=resolve(OptimizationConfig, given["optimization"]),
            validation=given["validation"],
            seed=_seed(given["seed"]),
        )
        settings._check_names()
        settings._check_unused()
        settings.kind.check(settings.training_config, settings.optimization)
        choose_device(settings.optimization.device)
        if settings.time_window is not None:
            offsets(settings.time_window, settings.data.time_alignment)
        return settings._with_domain()

    def _check_names(self) -> None:
        """Refuse names of parts that are not registered, before any data are read."""
        network = self.network
        ACTIVATIONS.canonical(network.activation)
        chosen = (
            (ACTIVATIONS, network.output_activation),
            (NORMALIZATION, network.normalization),
            (ATTENTION, network.attention),
            (DROPOUT, network.dropout),
        )
        for registry, name in chosen:
            if name is not None:
                registry.canonical(name)
        loss_names(self.optimization.loss)
        last = network.output_activation
        if last is not None and ACTIVATIONS.canonical(last) not in output_activations():
            raise ConfigError(
                f"output_activation={last!r} has an upper limit, which fields have not; choose "
                f"from: {', '.join(map(repr, output_activations()))}, or None."
            )
        anomaly = "anomaly" in each(self.data.transform)
        if last is not None and anomaly:
            raise ConfigError(
                "output_activation acts on the variable, transform='anomaly' leaves its departures; choose one of them."
            )

    def _check_unused(self) -> None:
        """Refuse settings that would be ignored, or would not do what they say."""
        if self.time_window is None and self.data.time_alignment != DataConfig().time_alignment:
            raise ConfigError(
                f"time_alignment={self.data.time_alignment!r} says where the output lies in a time window, this fit "
                "has none; add time_window=3, or leave it out."
            )

    def _with_domain(self) -> FitSettings:
        """Decide what "auto" means, and refuse what a fixed or an open domain cannot have."""
        in_space = isinstance(self.validation, str) and self.validation == "space"
        domain = self.data.domain
        if domain == "auto":
            domain = "open" if in_space else "fixed"
        if domain == "fixed" and in_space:
            raise ConfigError(
                "validation='space' holds out cells that a model for a fixed domain must learn; leave "
                "data={'domain': ...} out, or validate in time."
            )
        if domain == "fixed" and self.sampling.flip_sign:
            raise ConfigError(
                "flip_sign changes the sign of a vector component, but not that of the mean residual of each cell of a "
                "fixed domain; leave flips off, or train for other domains with data={'domain': 'open'}."
            )
        if self.network.location_features and (domain == "open" or self.sampling.flip):
            raise ConfigError(
                "location_features learn fields of a fixed domain: they go with data={'domain': 'fixed'} and "
                f"without flips, got domain={domain!r}, flip={self.sampling.flip}."
            )
        return replace(self, data=replace(self.data, domain=domain))


def _training_config(training: str, given: Mapping[str, Any]) -> Any:
    """Return the settings of this kind of training; those of another kind are refused."""
    for name in TRAININGS:
        keyword = TRAININGS.get(name).keyword
        if name != training and keyword is not None and given.get(keyword) is not None:
            raise ConfigError(
                f"{keyword}= holds settings of training={name!r}, this fit has training={training!r}; choose one."
            )
    kind = TRAININGS.get(training)
    return None if kind.config is None or kind.keyword is None else resolve(kind.config, given.get(kind.keyword))


def _window(window: Any) -> int | None:
    if window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, Integral) or window < 2:
        raise ConfigError(f"time_window must be a whole number of at least 2 frames, or None, got {window!r}.")
    return int(window)


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"seed must be a whole number of at least 0, got {seed!r}.")
    return int(seed)
