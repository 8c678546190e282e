"""Exponential moving average of weights: what is validated and kept.

Tensors only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from xsuperres.nn.network import SuperResolution

__all__ = ["WeightAverage"]


class WeightAverage:
    """Moving average of a network's parameters and buffers, with a warm-up so that the start is forgotten.

    Parameters
    ----------
    network : SuperResolution
        Followed by `update` after every step.
    decay : float
        Weight of the past; smaller during the first steps: (1 + t) / (10 + t).
    """

    def __init__(self, network: SuperResolution, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floating = [(a, b) for a, b in self._pairs() if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - decay)
        for a, b in self._pairs():
            if not a.is_floating_point():
                a.copy_(b)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
