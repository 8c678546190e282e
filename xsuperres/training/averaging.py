"""Exponential moving average of weights: what is validated and kept.

Tensors only.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from xsuperres.nn.network import SuperResolution
from xsuperres.nn.place import at
from xsuperres.samples.readers import Reader

__all__ = ["WeightAverage", "estimate_statistics"]

_BATCHES = 32  # that batch-normalisation statistics are estimated from
_EPOCH = 2**31  # an epoch of its own for their seed, never trained on in that order


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


@torch.no_grad()
def estimate_statistics(network: SuperResolution, reader: Reader, device: torch.device) -> None:
    """Estimate the statistics of batch normalisation for averaged weights, always on the same seeded batches.

    Those gathered during training belong to other weights (Izmailov et al. 2018, arXiv:1803.05407).
    """
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    for batch in itertools.islice(reader.batches(_EPOCH), _BATCHES):
        batch = batch.to(device)
        with at(batch.place):
            network(batch.coarse, batch.fine, batch.cells, batch.windows)
    for layer in layers:
        layer.eval()
