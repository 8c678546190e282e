"""From fields to network channels: the one place that says what a network is shown and what it is added to.

Numpy planes of a whole domain in canonical order; values may be torch tensors, so that inference on a GPU and the
preparation of training samples run the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Channels", "channel_counts", "contrast"]


def channel_counts(statics: int, *, fixed: bool, with_mask: bool) -> tuple[int, int]:
    """Return how many coarse and fine channels a network has for a number of static fields."""
    return 1 + fixed + with_mask, 2 * statics + fixed


def contrast(values: Tensor, valid: Tensor, radius: int) -> Tensor:
    """Return values minus the mean of the valid cells within `radius` in y and x (inside the domain); (n, y, x)."""
    from torch.nn import functional as F

    def mean(planes: Tensor) -> Tensor:
        size = 2 * radius + 1
        return F.avg_pool2d(planes[:, None], size, stride=1, padding=radius, count_include_pad=False)[:, 0]

    filled = values.where(valid, 0)
    return (values - mean(filled) / mean(valid.to(values.dtype)).clamp_min(1e-6)).where(valid, 0)


@dataclass(frozen=True, eq=False)
class Channels:
    """How fields of one domain become channels.

    On a fixed domain a network is shown the scaled value and its anomaly from the climatology of the cell. On an open
    one it is shown the contrast to the neighbourhood instead: told the value itself, it learns places by heart, which
    costs skill elsewhere (``benchmarks/defaults.md``).

    Parameters
    ----------
    mean, sd : float
        Of the variable, in its units.
    climatology : ndarray (y, x) or None
        Mean training input on the coarse grid; None on an open domain.
    anomaly_sd, contrast_sd : float
        Standard deviations of anomaly and contrast.
    contrast_radius : int
        Of the neighbourhood in coarse cells; 0 shows the value.
    with_mask : bool
        Whether a channel says which coarse cells are valid.
    fine : ndarray (c, Y, X)
        Fine channels, scaled: static anomalies and values, and on a fixed domain the mean residual.
    correction : ndarray (Y, X) or None
        What the skip adds to bicubic, in units of the variable.
    has_skip : bool
        Whether the network's output is added to bicubic (+ correction) or to the mean.
    gain : float
        The unit of the network's output, in standard deviations.
    """

    mean: float
    sd: float
    climatology: np.ndarray | None
    anomaly_sd: float
    contrast_sd: float
    contrast_radius: int
    with_mask: bool
    fine: np.ndarray
    correction: np.ndarray | None
    has_skip: bool
    gain: float

    def coarse(self, values: Tensor, valid: Tensor, climatology: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scaled values and coarse channels, missing cells filled with 0.

        Parameters
        ----------
        values, valid : Tensor (n, y, x)
            In units of the variable, and where they count.
        climatology : Tensor (y, x) or None
            Of these cells, on a fixed domain.

        Returns
        -------
        tuple of Tensor
            The value (n, 1, y, x) and the channels (n, c, y, x), float32.
        """
        import torch

        value = ((values - self.mean) / self.sd).where(valid, 0).float()
        channels = [value]
        if climatology is not None:
            channels.append(((values - climatology) / self.anomaly_sd).where(valid, 0).float())
        elif self.contrast_radius:
            channels = [contrast(value, valid, self.contrast_radius) * (self.sd / self.contrast_sd)]
        if self.with_mask:
            channels.append(valid.float())
        return value[:, None], torch.stack(channels, dim=1)
