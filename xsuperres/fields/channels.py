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

__all__ = ["Channels", "channel_counts"]


def channel_counts(statics: int, *, fixed: bool, with_mask: bool) -> tuple[int, int]:
    """Return how many coarse and fine channels a network has for a number of static fields."""
    return 1 + fixed + with_mask, 2 * statics + fixed


@dataclass(frozen=True, eq=False)
class Channels:
    """How fields of one domain become channels.

    Parameters
    ----------
    mean, sd : float
        Of the variable, in its units.
    climatology : ndarray (y, x) or None
        Mean training input on the coarse grid; a fixed domain's channel is the anomaly from it.
    anomaly_sd : float
        Standard deviation of such anomalies.
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
    with_mask: bool
    fine: np.ndarray
    correction: np.ndarray | None
    has_skip: bool
    gain: float

    def coarse(self, values: Tensor, valid: Tensor, climatology: Tensor | None) -> Tensor:
        """Return the coarse channels (n, c, y, x) of values (n, y, x), valid where `valid`, filled with 0."""
        import torch

        zero = torch.zeros((), dtype=torch.float32, device=values.device)
        channels = [torch.where(valid, ((values - self.mean) / self.sd).float(), zero)]
        if climatology is not None:
            anomaly = ((values - climatology) / self.anomaly_sd).float()
            channels.append(torch.where(valid, anomaly, zero))
        if self.with_mask:
            channels.append(valid.float())
        return torch.stack(channels, dim=1)
