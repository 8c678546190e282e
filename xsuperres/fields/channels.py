"""From fields to network channels, and back: the one place that says what a network is shown and what it is added to.

Numpy planes of a whole domain in canonical order; values may be torch tensors, so that inference on a GPU and the
preparation of training samples run the same code. Variables are an axis: targets first, then predictors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xsuperres.fields.times import CALENDAR_FEATURES
from xsuperres.fields.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Channels", "CoarsePlanes", "channel_counts", "contrast", "masked_channels"]


def channel_counts(
    statics: int, *, fixed: bool, targets: int = 1, predictors: int = 0, masks: int = 0, calendar: bool = False
) -> tuple[int, int]:
    """Return how many coarse and fine channels a network has.

    Examples
    --------
    >>> channel_counts(2, fixed=True), channel_counts(2, fixed=False, masks=1)
    ((2, 5), (2, 4))
    """
    coarse = targets + predictors + targets * fixed + CALENDAR_FEATURES * calendar + masks
    return coarse, 2 * statics + targets * fixed


def masked_channels(
    masked: Sequence[int], *, fixed: bool, targets: int = 1, predictors: int = 0
) -> tuple[tuple[int, ...], ...]:
    """Return the coarse channels that are made from each masked variable, in the order of `Channels.coarse`.

    Examples
    --------
    >>> masked_channels((0, 2), fixed=True, targets=2, predictors=1)
    ((0, 3), (2,))
    """
    anomalies = targets + predictors  # the first of them, one a target
    return tuple((index, anomalies + index) if fixed and index < targets else (index,) for index in masked)


def contrast(values: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Return values minus the mean of the valid cells within `radius` in y and x (inside the domain); (n, y, x)."""
    from torch.nn import functional as F

    def mean(planes: Tensor) -> Tensor:
        size = 2 * radius + 1
        return F.avg_pool2d(planes[:, None], size, stride=1, padding=radius, count_include_pad=False)[:, 0]

    filled = values.where(valid, 0)
    return (values - mean(filled) / mean(valid.to(values.dtype)).clamp_min(1e-6)).where(valid, 0)


@dataclass(frozen=True)
class CoarsePlanes:
    """Planes of the coarse cells of a block, (targets, y, x): the mean training input, and what is subtracted first."""

    climatology: Any = None
    offset: Any = None


@dataclass(frozen=True, eq=False)
class Channels:
    """How fields of one domain become channels, and a network's output becomes fields.

    On a fixed domain a network is shown the scaled value and its anomaly from the climatology of the cell. On an open
    one it is shown the contrast to the neighbourhood instead: told the value itself, it learns places by heart, which
    costs skill elsewhere (``benchmarks/defaults.md``). Targets are transformed before anything else.

    Parameters
    ----------
    mean, sd : tuple of float
        Of each variable; of targets in transformed units.
    climatology : ndarray (targets, y, x) or None
        Mean training input on the coarse grid, transformed; None on an open domain.
    anomaly_sd : tuple of float
        Of each target.
    contrast_sd : tuple of float
        Of each variable.
    contrast_radius : int
        Of the neighbourhood in coarse cells; 0 shows the value.
    masked : tuple of int
        Variables with a channel that says which of their cells are valid.
    calendar : bool
        Whether the season and the hour are shown.
    fine : ndarray (c, Y, X)
        Fine channels, scaled: static anomalies and values, and on a fixed domain the mean residual of each target.
    correction : ndarray (targets, Y, X) or None
        What the skip adds to bicubic, in transformed units.
    has_skip : bool
        Whether the network's output is added to bicubic (+ correction) or to the mean.
    gain : tuple of float
        The unit of the network's output for each target, in standard deviations.
    transforms : tuple of Transform
        Of each target.
    offsets : tuple of ndarray, (targets, y, x) and (targets, Y, X), or None
        Subtracted from coarse and added to fine transformed values: the climatologies of transform="anomaly".
    bounds : tuple of (low, high) per target
        Physical bounds; None for none.
    activation : str or None
        Of the output.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    climatology: np.ndarray | None
    anomaly_sd: tuple[float, ...]
    contrast_sd: tuple[float, ...]
    contrast_radius: int
    masked: tuple[int, ...]
    calendar: bool
    fine: np.ndarray
    correction: np.ndarray | None
    has_skip: bool
    gain: tuple[float, ...]
    transforms: tuple[Transform, ...] = (Transform(),)
    offsets: tuple[np.ndarray, np.ndarray] | None = None
    bounds: tuple[tuple[float | None, float | None], ...] = field(default=((None, None),))
    activation: str | None = None

    @property
    def targets(self) -> int:
        """How many of the variables are targets."""
        return len(self.gain)

    def planes(self, rows: Any, columns: Any) -> CoarsePlanes:
        """Return the planes of coarse rows and columns, float64 tensors."""
        import torch

        def cut(planes: np.ndarray | None) -> Tensor | None:
            return None if planes is None else torch.from_numpy(planes[:, rows][..., columns].astype(np.float64))

        return CoarsePlanes(cut(self.climatology), cut(None if self.offsets is None else self.offsets[0]))

    def coarse(
        self, values: Tensor, valid: Tensor, planes: CoarsePlanes, calendar: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scaled targets and coarse channels, missing cells filled with 0.

        Parameters
        ----------
        values, valid : Tensor (n, variables, y, x)
            In units of the variables, and where they count.
        planes : CoarsePlanes
            Of these cells, on a fixed domain.
        calendar : Tensor (n, features), optional
            What the calendar says.

        Returns
        -------
        tuple of Tensor
            The targets (n, targets, y, x) and the channels (n, c, y, x), float32.
        """
        import torch

        count, shown = self.targets, self._transformed(values, planes)
        scaled = ((shown - _column(self.mean, values)) / _column(self.sd, values)).where(valid, 0).float()
        channels = [scaled]
        if planes.climatology is not None:
            anomaly = (shown[:, :count] - planes.climatology) / _column(self.anomaly_sd, values)
            channels.append(anomaly.where(valid[:, :count], 0).float())
        elif self.contrast_radius:
            unit = _column([s / c for s, c in zip(self.sd, self.contrast_sd, strict=True)], scaled)
            flat = contrast(scaled.flatten(0, 1), valid.flatten(0, 1), self.contrast_radius)
            channels = [flat.reshape(scaled.shape) * unit]
        if self.calendar and calendar is not None:
            channels.append(calendar.float()[:, :, None, None].expand(-1, -1, *values.shape[-2:]))
        if self.masked:
            channels.append(valid[:, list(self.masked)].float())
        return scaled[:, :count], channels[0] if len(channels) == 1 else torch.cat(channels, dim=1)

    def _transformed(self, values: Tensor, planes: CoarsePlanes) -> Tensor:
        """Return the variables with transformed targets."""
        import torch

        if planes.offset is None and all(transform.kind is None for transform in self.transforms):
            return values
        count = self.targets
        parts = [transform.forth(values[:, i : i + 1]) for i, transform in enumerate(self.transforms)]
        targets = torch.cat(parts, dim=1)
        if planes.offset is not None:
            targets = targets - planes.offset
        return torch.cat([targets, values[:, count:]], dim=1)

    def combined(self, output: Tensor, skip: Tensor | None) -> Tensor:
        """Return the prediction in scaled units from the network's output and the skip, (n, targets, Y, X)."""
        scaled = output * _column(self.gain, output)
        if skip is not None:
            scaled = scaled + skip
        if self.activation is None:
            return scaled
        from xsuperres.nn.network import output_activation

        sd, mean = (_column(numbers[: self.targets], output) for numbers in (self.sd, self.mean))
        unit = sd * _column(self.gain, output)
        bent = unit * output_activation(self.activation)((scaled * sd + mean) / unit)
        return (bent - mean) / sd

    def restored(self, scaled: Tensor, offset: Tensor | None, dtype: Any) -> Tensor:
        """Return predictions in units of the variables: unscaled, back from the transform, within physical bounds."""
        import torch

        count = self.targets
        values = scaled * _column(self.sd[:count], scaled) + _column(self.mean[:count], scaled)
        if offset is not None:
            values = values + offset
        values = values.to(dtype)
        if all(t.kind is None for t in self.transforms) and not any(b != (None, None) for b in self.bounds):
            return values
        parts = []
        for index, (transform, (low, high)) in enumerate(zip(self.transforms, self.bounds, strict=True)):
            part = transform.back(values[:, index : index + 1])
            parts.append(part if low is None and high is None else part.clamp(low, high))
        return torch.cat(parts, dim=1)


def _column(numbers: Sequence[float], like: Tensor) -> Tensor | float:
    """Return one number per variable, to be broadcast over (n, variables, y, x)."""
    import torch

    if len(numbers) == 1:
        return float(numbers[0])
    return torch.tensor(tuple(numbers), dtype=like.dtype, device=like.device)[:, None, None]
