"""Settings: frozen, keyword-only dataclasses, each checked when made; a dict of the fields is accepted too.

Names of registered parts (backbones, losses, ...) are resolved where they are built, not here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from xsuperres.conditions import at_least, bounds, each, flag, number
from xsuperres.errors import ConfigError, unknown_name

__all__ = [
    "AdversarialConfig",
    "DataConfig",
    "NetworkConfig",
    "OptimizationConfig",
    "SamplingConfig",
    "check_choice",
    "of_variable",
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
        relu, leaky_relu, elu, selu, gelu, silu, softplus, sigmoid or tanh.
    output_activation : str or None
        Applied last, to the sum of skip and network in (transformed) units of the variable, scaled by the training
        error of the skip so that it bends where it matters: softplus or relu keep precipitation positive. One that
        has no upper limit: any activation but sigmoid and tanh.
    normalization : {None, "batch", "layer", "group"}
        Of features. layer and group normalise over the channels of each cell; batch uses statistics of training.
    attention : {None, "channel", "local"}
        Channels weighed by their means over the whole domain, which then cannot be tiled in y and x, or over the
        neighbourhood of each cell.
    dropout : {None, "vanilla", "spatial", "gaussian"}
        Of features during training, and at inference with ``members=``.
    dropout_rate : float, optional
        Share that is dropped, 0.1 by default; it needs `dropout`.
    separable : bool
        Depthwise-separable convolutions in the backbone.
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
    output_activation: str | None = None
    normalization: str | None = None
    attention: str | None = None
    dropout: str | None = None
    dropout_rate: float | None = None
    separable: bool = False
    location_features: int = 0
    skip: Literal["linear", "bicubic"] | None = "linear"

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "depth", "head_width")
        at_least(self, 0, "location_features")
        number(self, 0.0, 0.95, "dropout_rate", optional=True)
        if self.dropout is None and self.dropout_rate is not None:
            raise ConfigError(
                f"dropout_rate={self.dropout_rate} needs a kind of dropout, got dropout=None; add one, such as "
                "network={'dropout': 'spatial'}, or leave the rate out."
            )
        if self.dropout is not None and self.dropout_rate is None:
            object.__setattr__(self, "dropout_rate", 0.1)
        flag(self, "separable")
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
    time_alignment : {"last", "centre"}
        Where the output step lies in its time window: at its end (nothing of the future is used) or in its middle (the
        window is odd).
    calendar : bool
        Whether the network is told the season and the hour (sine and cosine of day of year and time of day).
    transform : {None, "log1p", "sqrt", "anomaly"} or dict of name to these
        Of the variable before scaling, undone at the end. log1p is in units of the training mean of its size; anomaly
        is the departure from each cell's training mean, on a fixed domain. For several variables, one each.
    valid_min, valid_max : float, dict of name to float, or None
        Physical bounds of the result, in its units. Without `valid_min`, results are kept from falling below 0 where
        the training data never do and the CF standard_name says that there is nothing below: precipitation_flux,
        precipitation_amount, lwe_precipitation_rate, lwe_thickness_of_precipitation_amount,
        convective_precipitation_flux, snowfall_flux, specific_humidity, relative_humidity, cloud_area_fraction,
        wind_speed, surface_downwelling_shortwave_flux_in_air. A dict with None for the variable's name turns that off.
    """

    domain: Literal["auto", "fixed", "open"] = "auto"
    contrast_radius: int = 2
    minimum_valid_fraction: float = 0.5
    time_alignment: Literal["last", "centre"] = "last"
    calendar: bool = False
    transform: str | Mapping[str, str | None] | None = None
    valid_min: float | Mapping[str, float] | None = None
    valid_max: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_choice("domain", self.domain, ("auto", "fixed", "open"))
        check_choice("time_alignment", self.time_alignment, ("last", "centre"))
        at_least(self, 0, "contrast_radius")
        number(self, 0.0, 1.0, "minimum_valid_fraction")
        flag(self, "calendar")
        for kind in each(self.transform):
            check_choice("transform", kind, (None, "log1p", "sqrt", "anomaly"))
        for name in ("valid_min", "valid_max"):
            bounds(self, name)
        names = {name for given in (self.valid_min, self.valid_max) if isinstance(given, Mapping) for name in given}
        for name in sorted(names) or [""]:
            low, high = of_variable(self.valid_min, name), of_variable(self.valid_max, name)
            if low is not None and high is not None and low >= high:
                of = f" of {name!r}" if name else ""
                raise ConfigError(f"valid_min{of} must be below valid_max, got {low:g} and {high:g}.")

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
        at_least(self, 2, "patch_size", optional=True)
        at_least(self, 1, "batch_size", "memory_budget")
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
class AdversarialConfig:
    """How a network is trained against a discriminator, after a share of the budget without.

    Parameters
    ----------
    loss : str
        The game: bce (binary cross-entropy; Goodfellow et al. 2014), hinge (Lim and Ye 2017), or wasserstein_gp
        (Wasserstein distance with a gradient penalty; Gulrajani et al. 2017).
    weight : float
        Of the adversarial loss of the generator; the pixel loss has `pixel_weight`.
    pixel_weight : float
        Of the loss that a supervised network has (``optimization.loss``).
    warm_up : float
        Share of the budget that is trained without the discriminator.
    learning_rate : float
        Of the discriminator; the generator has ``optimization.learning_rate``.
    discriminator : str
        Its architecture.
    width, depth : int
        Its channels and residual blocks.
    gradient_penalty : float
        Weight of the penalty of wasserstein_gp.
    noise : int
        Channels of random numbers the generator is given, so that members differ; 0 for none.
    """

    loss: str = "hinge"
    weight: float = 0.1
    pixel_weight: float = 1.0
    warm_up: float = 0.3
    learning_rate: float = 1e-3
    discriminator: str = "residual"
    width: int = 32
    depth: int = 2
    gradient_penalty: float = 10.0
    noise: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "depth")
        at_least(self, 0, "noise")
        number(self, 0.0, math.inf, "weight", "learning_rate", "gradient_penalty")
        number(self, 0.0, 1e9, "pixel_weight")
        number(self, 0.0, 0.99, "warm_up")


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
    loss : str or dict of str to float
        mae, mse, huber, dssim, msdssim, spectral or gradient, or a weighted sum such as ``{"mae": 0.8, "dssim": 0.2}``;
        area-weighted, missing cells ignored.
    gradient_clip : float
        Largest norm of the gradient of one step.
    averaging : float
        Decay per step of the exponential moving average of the weights, which is what is validated and kept.
    validations : int
        How many times the score is taken during training.
    patience : int or None
        End training after so many validations without a better score. Off by default: the schedule ends at a learning
        rate of 0, and the best weights are kept in any case. Not for adversarial training, which gives up a little of
        the score.
    device : str
        "auto" takes the first CUDA device if there is one.
    """

    max_steps: int | None = None
    max_epochs: int | None = None
    max_seconds: float | None = None
    max_cpu_seconds: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    loss: str | Mapping[str, float] = "mse"
    gradient_clip: float = 1.0
    averaging: float = 0.98
    validations: int = 12
    patience: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        at_least(self, 1, "validations")
        at_least(self, 1, "max_steps", "max_epochs", "patience", optional=True)
        number(self, 0.0, math.inf, "learning_rate", "gradient_clip")
        number(self, 0.0, math.inf, "max_seconds", "max_cpu_seconds", optional=True)
        number(self, 0.0, 1.0, "weight_decay", "averaging")


def of_variable(setting: Any, name: object) -> Any:
    """Return a setting that is one for all variables, or a dict by name."""
    return setting.get(name) if isinstance(setting, Mapping) else setting
