"""The stages between the fields of a domain and its network: forward on the way in, inverse on the way out.

Each is a small frozen object that knows one thing: a transform, a scale, what a channel shows, what the network's
output is added to. `Channels` is a chain of them. Going in, a stage changes the coarse values or adds channels; coming
out, the last one is undone first. A stage says which variable each of its channels is made from, and how many
neighbouring coarse cells it reads; its planes, if it has any, are those of the whole domain until it is cut to a block.

Values are torch tensors (n, variables, y, x), targets first; planes are numpy arrays, or tensors on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from xsuperres.fields.times import CALENDAR_FEATURES
from xsuperres.fields.transform import Transform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Activation",
    "Anomaly",
    "Bounds",
    "Calendar",
    "Contrast",
    "Departures",
    "InputFrames",
    "Masks",
    "OutputContext",
    "Scale",
    "Skip",
    "Stage",
    "StaticPlanes",
    "Transforms",
    "contrast",
]

Resolution = Literal["coarse", "fine"]
Plane: TypeAlias = Any  # ndarray or Tensor (variables, y, x)
Index: TypeAlias = slice | np.ndarray
Sources: TypeAlias = tuple[int | None, ...]  # per channel: the variable it is made from, None for others


_COARSE = {"resolution": "coarse", "dtype": "float64"}  # planes of the coarse grid, and their dtype on a device
_FINE = {"resolution": "fine", "dtype": "float32"}


@dataclass(frozen=True, kw_only=True, eq=False)
class InputFrames:
    """Coarse frames on their way into a network.

    Parameters
    ----------
    values : Tensor (n, variables, y, x)
        As the stages so far made them.
    valid : Tensor of bool, like `values`
        Where they count.
    dtype : torch.dtype
        Of the data.
    calendar : Tensor (n, features) or None
        What the calendar says.
    scaled : Tensor (n, variables, y, x) or None
        Scaled values, 0 where missing, float32: once they are known.
    channels : tuple of Tensor (n, c, y, x)
        What the network is shown so far, float32.
    """

    values: Tensor
    valid: Tensor
    dtype: torch.dtype
    calendar: Tensor | None = None
    scaled: Tensor | None = None
    channels: tuple[Tensor, ...] = ()

    def with_channels(self, new: Tensor) -> InputFrames:
        """Return the frames with more channels."""
        return replace(self, channels=(*self.channels, new))


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputContext:
    """What stages need on the way out besides the values.

    Parameters
    ----------
    skip : Tensor (n, targets, Y, X) or None
        What the network's output is added to, scaled.
    dtype : torch.dtype or None
        Of the fields in units of the variables; None for predictions.
    """

    skip: Tensor | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """Base of the stages: changes nothing, shows nothing, reads no neighbour."""

    @property
    def reach(self) -> int:
        """Neighbouring coarse cells on each side that its channels, or what it adds, depend on."""
        return 0

    @property
    def sources(self) -> Sources:
        """Which variable each coarse channel that it adds is made from."""
        return ()

    @property
    def fine(self) -> np.ndarray | None:
        """The fine channels (c, Y, X) that it adds."""
        return None

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return coarse frames one stage nearer to the network."""
        return frames

    def forward_targets(self, values: np.ndarray, on: Resolution) -> np.ndarray:
        """Return targets (n, targets, y, x) of the coarse or the fine grid, for training samples, in their dtype."""
        return values

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return fine fields (n, targets, Y, X) one stage nearer to the user."""
        return values

    def planes(self) -> dict[str, Plane]:
        """Return the planes that a block needs, by name."""
        own = ((f.name, getattr(self, f.name)) for f in fields(self) if "resolution" in f.metadata)
        return {name: plane for name, plane in own if plane is not None}

    def on(self, device: torch.device) -> Stage:
        """Return the stage with its planes on a device."""
        import torch

        dtypes = {f.name: getattr(torch, f.metadata["dtype"]) for f in fields(self) if f.metadata}
        moved = {
            name: torch.from_numpy(np.ascontiguousarray(plane)).to(device, dtypes[name])
            for name, plane in self.planes().items()
        }
        return replace(self, **moved) if moved else self

    def cut(self, coarse: tuple[Index, Index], fine: tuple[Index, Index]) -> Stage:
        """Return the stage on some rows and columns of the coarse grid, and of the fine one."""
        on = {f.name: coarse if f.metadata["resolution"] == "coarse" else fine for f in fields(self) if f.metadata}
        planes = {name: plane[:, on[name][0]][..., on[name][1]] for name, plane in self.planes().items()}
        return replace(self, **planes) if planes else self


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds(Stage):
    """Physical bounds of the targets, (low, high) each in their units; None for none."""

    limits: tuple[tuple[float | None, float | None], ...]

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return the values within the bounds."""
        if all(limit == (None, None) for limit in self.limits):
            return values
        return _per_target(
            values, lambda part, at: part if self.limits[at] == (None, None) else part.clamp(*self.limits[at])
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Transforms(Stage):
    """The transform of each target; a monotonic function of its values."""

    transforms: tuple[Transform, ...]

    @property
    def trivial(self) -> bool:
        """Whether no target is transformed."""
        return all(transform.kind is None for transform in self.transforms)

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with transformed targets."""
        import torch

        if self.trivial:
            return frames
        parts = [t.forth(frames.values[:, i : i + 1]) for i, t in enumerate(self.transforms)]
        return replace(frames, values=torch.cat([*parts, frames.values[:, len(parts) :]], dim=1))

    def forward_targets(self, values: np.ndarray, on: Resolution) -> np.ndarray:
        """Return the targets transformed."""
        if self.trivial:
            return values
        return np.stack([t.forth(values[:, i]) for i, t in enumerate(self.transforms)], axis=1).astype(values.dtype)

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return the values in units of the targets, in the dtype of the result."""
        values = values if context.dtype is None else values.to(context.dtype)
        return values if self.trivial else _per_target(values, lambda part, at: self.transforms[at].back(part))


@dataclass(frozen=True, kw_only=True, eq=False)
class Departures(Stage):
    """Departures of targets from their climatologies (transform="anomaly"); planes (targets, y, x), 0 without one."""

    coarse: Plane = field(metadata=_COARSE)
    climatology: Plane = field(metadata=_FINE)

    @classmethod
    def of(cls, climatologies: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> Departures | None:
        """Return the stage of the climatologies (coarse, fine) of each target, None without any."""
        known = [pair for pair in climatologies if pair is not None]
        if not known:
            return None
        none = tuple(np.zeros(plane.shape) for plane in known[0])
        coarse, fine = (np.stack([(pair or none)[which] for pair in climatologies]) for which in (0, 1))
        return cls(coarse=coarse, climatology=fine)

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with departures of the targets."""
        import torch

        count = len(self.coarse)
        departures = frames.values[:, :count] - self.coarse
        return replace(frames, values=torch.cat([departures, frames.values[:, count:]], dim=1))

    def forward_targets(self, values: np.ndarray, on: Resolution) -> np.ndarray:
        """Return the departures of the targets."""
        plane = self.coarse if on == "coarse" else self.climatology
        return values - plane.astype(values.dtype)

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return the values with the climatologies."""
        return values + _tensor(self.climatology)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Stage):
    """Mean and standard deviation of each variable, of targets in transformed units: the first channels."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    targets: int

    @property
    def sources(self) -> Sources:
        """The variables."""
        return tuple(range(len(self.mean)))

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with scaled values."""
        mean, sd = (_column(numbers, frames.values, frames.dtype) for numbers in (self.mean, self.sd))
        scaled = ((frames.values - mean) / sd).where(frames.valid, 0).float()
        return replace(frames, scaled=scaled).with_channels(scaled)

    def forward_targets(self, values: np.ndarray, on: Resolution) -> np.ndarray:
        """Return the targets scaled."""
        return (values - self.plane("mean", np.float32)) / self.plane("sd", np.float32)

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return the values in transformed units."""
        mean, sd = (_column(numbers[: self.targets], values) for numbers in (self.mean, self.sd))
        return values * sd + mean

    def plane(self, name: Literal["mean", "sd"], dtype: type = np.float64) -> np.ndarray:
        """Return the mean or the standard deviation of the targets as (targets, 1, 1)."""
        return np.array(getattr(self, name)[: self.targets], dtype)[:, None, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Stage):
    """A function of the sum of skip and network, in transformed units over the error of the skip, where it bends."""

    name: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    gain: tuple[float, ...]

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return the values after the function, scaled."""
        from xsuperres.nn.network import output_activation

        mean, sd, gain = (_column(numbers, values) for numbers in (self.mean, self.sd, self.gain))
        unit = sd * gain
        bent = unit * output_activation(self.name)((values * sd + mean) / unit)
        return (bent - mean) / sd


@dataclass(frozen=True, kw_only=True, eq=False)
class Skip(Stage):
    """What the network's output is added to: bicubic and a correction, or 0, which is the mean.

    Parameters
    ----------
    gain : tuple of float
        The unit of the network's output for each target, in standard deviations.
    method : str or None
        Of interpolation; None for no skip.
    correction : ndarray (targets, Y, X) or None
        Added to the interpolation, in transformed units.
    scaled : the same in standard deviations
    """

    gain: tuple[float, ...]
    method: str | None = None
    correction: np.ndarray | None = None
    scaled: Plane = field(default=None, metadata=_FINE)

    @property
    def reach(self) -> int:
        """That of the interpolation."""
        from xsuperres.nn.resample import radius

        return 0 if self.method is None else radius(self.method)

    def inverse(self, values: Tensor, context: OutputContext) -> Tensor:
        """Return the network's output added to the skip, scaled."""
        values = values * _column(self.gain, values)
        return values if context.skip is None else values + context.skip

    def interpolated(self, scaled: Tensor, valid: Tensor, scale: int, *, complete: bool) -> Tensor | None:
        """Return the skip (n, targets, Y, X) of scaled targets (n, targets, y, x), read where they are valid."""
        from xsuperres.nn.resample import interpolate, interpolate_valid

        if self.method is None:
            return None
        if complete:
            fine = interpolate(scaled, scale, self.method)
        else:
            fine = interpolate_valid(scaled, valid, scale, self.method)
        return fine if self.scaled is None else fine + self.scaled

    def of_samples(self, interpolated: np.ndarray, scale: Scale) -> np.ndarray:
        """Return the scaled skip of training samples (n, targets, Y, X) from targets interpolated before scaling."""
        if self.method is None:
            return np.zeros_like(interpolated)
        skip = interpolated - scale.plane("mean", np.float32)
        if self.correction is not None:
            skip = skip + self.correction.astype(np.float32)
        return np.asarray(skip / scale.plane("sd", np.float32), np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class StaticPlanes(Stage):
    """Static fields, scaled: fine channels, anomalies before values."""

    channels: np.ndarray

    @property
    def fine(self) -> np.ndarray:
        """The channels."""
        return self.channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Anomaly(Stage):
    """On a fixed domain: each target's anomaly from the climatology of its cell, and the mean residual at fine cells.

    Parameters
    ----------
    climatology : ndarray (targets, y, x)
        Mean training input, in transformed units.
    sd : tuple of float
        Of the anomaly of each target.
    residual : ndarray (targets, Y, X)
        What is missing from bicubic on average, over its size.
    """

    sd: tuple[float, ...]
    residual: np.ndarray
    climatology: Plane = field(metadata=_COARSE)

    @property
    def sources(self) -> Sources:
        """The targets."""
        return tuple(range(len(self.sd)))

    @property
    def fine(self) -> np.ndarray:
        """The mean residual of each target."""
        return self.residual

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with the channels of the anomalies."""
        count = len(self.sd)
        anomaly = (frames.values[:, :count] - self.climatology) / _column(self.sd, frames.values, frames.dtype)
        return frames.with_channels(anomaly.where(frames.valid[:, :count], 0).float())


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast(Stage):
    """On an open domain: the contrast of each value to its neighbourhood, in place of the value.

    Shown the value itself, a network learns places by heart, which costs skill elsewhere (``benchmarks/defaults.md``).

    Parameters
    ----------
    radius : int
        Of the neighbourhood, in coarse cells.
    unit : tuple of float
        Standard deviation of each variable over that of its contrast.
    """

    radius: int
    unit: tuple[float, ...]

    @property
    def reach(self) -> int:
        """The radius."""
        return self.radius

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with contrasts in place of the scaled values."""
        scaled, *others = frames.channels
        flat = contrast(scaled.flatten(0, 1), frames.valid.flatten(0, 1), self.radius)
        return replace(frames, channels=(flat.reshape(scaled.shape) * _column(self.unit, scaled), *others))


@dataclass(frozen=True, kw_only=True, eq=False)
class Calendar(Stage):
    """The season and the hour: channels that are the same in all cells."""

    @property
    def sources(self) -> Sources:
        """No variable."""
        return (None,) * CALENDAR_FEATURES

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with the channels of the calendar, where it is known."""
        if frames.calendar is None:
            return frames
        plane = frames.calendar.float()[:, :, None, None]
        return frames.with_channels(plane.expand(-1, -1, *frames.values.shape[-2:]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Masks(Stage):
    """Where variables that may be missing are valid: the last channels, 1 or 0."""

    masked: tuple[int, ...]

    @property
    def sources(self) -> Sources:
        """No variable: a mask holds for channels, it is not made from values."""
        return (None,) * len(self.masked)

    def forward(self, frames: InputFrames) -> InputFrames:
        """Return the frames with a channel per mask."""
        return frames.with_channels(frames.valid[:, list(self.masked)].float())


def contrast(values: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Return values minus the mean of the valid cells within `radius` in y and x (inside the domain); (n, y, x)."""
    from torch.nn import functional as F

    def mean(planes: Tensor) -> Tensor:
        size = 2 * radius + 1
        return F.avg_pool2d(planes[:, None], size, stride=1, padding=radius, count_include_pad=False)[:, 0]

    filled = values.where(valid, 0)
    return (values - mean(filled) / mean(valid.to(values.dtype)).clamp_min(1e-6)).where(valid, 0)


def _per_target(values: Tensor, function: Any) -> Tensor:
    """Return (n, targets, Y, X) with ``function(part, number)`` of each target."""
    import torch

    count = values.shape[1]
    if count == 1:
        return function(values, 0)
    return torch.cat([function(values[:, at : at + 1], at) for at in range(count)], dim=1)


def _column(numbers: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor | float:
    """Return one number per variable, to be broadcast over (n, variables, y, x)."""
    import torch

    if len(numbers) == 1:
        return float(numbers[0])
    return torch.tensor(tuple(numbers), dtype=dtype or like.dtype, device=like.device)[:, None, None]


def _tensor(plane: Plane) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(plane)) if isinstance(plane, np.ndarray) else plane
