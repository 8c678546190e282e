"""Settings: frozen, keyword-only dataclasses, each checked when made; a dict of the fields is accepted too.

Names of registered parts (backbones, losses, ...) are resolved where they are built, not here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from xsuperres.errors import ConfigError, unknown_name

__all__ = [
    "DataConfig",
    "NetworkConfig",
    "OptimizationConfig",
    "SamplingConfig",
    "check_choice",
    "resolve",
]

C = TypeVar("C")


def resolve(kind: type[C], given: C | Mapping[str, Any] | None) -> C:
    """Return `given` as an instance of the settings class `kind`: None means the defaults.

    Examples
    --------
    >>> resolve(SamplingConfig, {"batch_size": 4}).batch_size
    4
    """
    if isinstance(given, kind):
        return given
    if given is None:
        return kind()
    if not isinstance(given, Mapping):
        raise ConfigError(f"Expected {kind.__name__}, a dict of its fields or None, got {type(given).__name__}.")
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            raise unknown_name(f"field of {kind.__name__}", name, fields)
    return kind(**given)


def check_choice(kind: str, name: object, choices: tuple[Any, ...]) -> None:
    """Raise the error that lists the choices unless `name` is one of them."""
    if not isinstance(name, (str, type(None))) or name not in choices:
        raise unknown_name(kind, name, choices)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The size and the parts of a network.

    Parameters
    ----------
    width : int
        Channels of the backbone.
    depth : int
        Blocks of the backbone, each of two 3x3 convolutions or the like.
    head_width : int
        Channels at the fine grid before the last convolution.
    activation : str
        relu, leaky_relu, elu, selu, gelu, silu or tanh.
    location_features : int
        Learned fields on a fixed domain; 0 for none. Such a model refuses other domains and flips.
    skip : {"linear", "bicubic", None}
        What the network's output is added to: the best linear baseline (bicubic + regression on static
        anomalies, + mean training residual on a fixed domain), bicubic alone, or nothing.
    """

    width: int = 16
    depth: int = 2
    head_width: int = 16
    activation: str = "relu"
    location_features: int = 0
    skip: Literal["linear", "bicubic"] | None = "linear"

    def __post_init__(self) -> None:
        _at_least(self, 1, "width", "depth", "head_width")
        _at_least(self, 0, "location_features")
        check_choice("skip", self.skip, ("linear", "bicubic", None))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the network is told about its data.

    Parameters
    ----------
    domain : {"auto", "fixed", "open"}
        A model for a fixed domain learns the mean residual and the climatology of every cell of its training
        grid and is refused elsewhere (a crop is fine). An open one can be applied anywhere, given the static
        fields there. "auto" is open if validation="space", else fixed.
    contrast_radius : int
        On an open domain the network is shown each coarse cell's contrast to the mean of the cells within this
        radius, not its value, so that it learns patterns, not places; 0 shows the value.
    minimum_valid_fraction : float
        A coarse cell is valid when at least this fraction of its area is.
    """

    domain: Literal["auto", "fixed", "open"] = "auto"
    contrast_radius: int = 2
    minimum_valid_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_choice("domain", self.domain, ("auto", "fixed", "open"))
        _at_least(self, 0, "contrast_radius")
        _number(self, 0.0, 1.0, "minimum_valid_fraction")

    @property
    def reach(self) -> int:
        """Neighbouring coarse cells that the input channels depend on."""
        return self.contrast_radius if self.domain == "open" else 0


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How training samples are drawn.

    Parameters
    ----------
    patch_size : int or None
        Side of the square patches in coarse cells (at most the domain's), drawn anew every epoch; None for full
        fields.
    batch_size : int
        Samples per step.
    flip : tuple of {"x", "y"}
        Axes along which a patch is mirrored at random, one time in two. Off by default: circulation has a handedness.
    flip_sign : tuple of {"x", "y"}
        Axes along which mirroring also changes the variable's sign; vector components are refused without.
    memory_budget : int
        Bytes of training data that are held in memory.
    """

    patch_size: int | None = 16
    batch_size: int = 4
    flip: tuple[str, ...] = ()
    flip_sign: tuple[str, ...] = ()
    memory_budget: int = 4 * 2**30

    def __post_init__(self) -> None:
        _at_least(self, 2, "patch_size", optional=True)
        _at_least(self, 1, "batch_size", "memory_budget")
        for name in ("flip", "flip_sign"):
            axes = getattr(self, name)
            if not isinstance(axes, (tuple, list, str)):
                raise ConfigError(f"SamplingConfig.{name} must be a tuple of 'x' and 'y', got {axes!r}.")
            object.__setattr__(self, name, tuple(axes))
            for axis in axes:
                check_choice(f"{name} axis", axis, ("x", "y"))
        if not set(self.flip_sign) <= set(self.flip):
            raise ConfigError(f"flip_sign={self.flip_sign} must be among the axes of flip={self.flip}.")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How long and by what steps a network is trained. The first budget that is used up ends training.

    Parameters
    ----------
    max_steps, max_epochs : int or None
        Budgets that give the same weights for the same seed, bit for bit on CPU.
    max_seconds : float or None
        Budget of wall-clock seconds for the whole of `fit`.
    max_cpu_seconds : float or None
        Budget of process CPU seconds for the whole of `fit`: comparable on shared machines.
    learning_rate : float
        Peak of the schedule: linear warm-up over the first 5 %, then a half cosine to 0.
    weight_decay : float
        Of AdamW.
    loss : str
        mae, mse or huber; area-weighted, missing cells ignored.
    gradient_clip : float
        Largest norm of the gradient of one step.
    averaging : float
        Decay per step of the exponential moving average of the weights, which is what is validated and kept.
    validations : int
        How many times the score is taken during training.
    patience : int or None
        End training after so many validations without a better score. Off by default: the schedule ends at a learning
        rate of 0, and the best weights are kept in any case.
    device : str
        "auto" takes the first CUDA device if there is one.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    max_seconds: float | None = None
    max_cpu_seconds: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    loss: str = "mse"
    gradient_clip: float = 1.0
    averaging: float = 0.98
    validations: int = 12
    patience: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        _at_least(self, 1, "validations")
        _at_least(self, 1, "max_steps", "max_epochs", "patience", optional=True)
        _number(self, 0.0, math.inf, "learning_rate", "gradient_clip")
        _number(self, 0.0, math.inf, "max_seconds", "max_cpu_seconds", optional=True)
        _number(self, 0.0, 1.0, "weight_decay", "averaging")


def _at_least(config: object, least: int, *names: str, optional: bool = False) -> None:
    """Check integers, and make those of numpy Python's own, so that a model file can hold them."""
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ConfigError(f"{type(config).__name__}.{name} must be an integer of at least {least}, got {value!r}.")
        object.__setattr__(config, name, int(value))


def _number(config: object, low: float, high: float, *names: str, optional: bool = False) -> None:
    """Check finite numbers between `low` and `high`; a `low` of 0 with an infinite `high` means positive."""
    positive = low == 0 and math.isinf(high)
    for name in names:
        value = getattr(config, name)
        if value is None and optional:
            continue
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (value > 0 if positive else low <= value <= high):
            expected = "a positive number" if positive else f"a number between {low} and {high}"
            raise ConfigError(f"{type(config).__name__}.{name} must be {expected}, got {value!r}.")
        object.__setattr__(config, name, float(value))
