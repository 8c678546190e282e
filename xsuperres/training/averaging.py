"""Exponential moving average of weights: what is validated and becomes the model.

Tensors only.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from xsuperres.nn.network import SuperResolution
from xsuperres.nn.place import at
from xsuperres.samples.readers import Reader
from xsuperres.training.state import State, copied

__all__ = ["WeightAverage", "estimate_statistics"]

_BATCHES = 32  # that batch-normalisation statistics are estimated from
_EPOCH = 2**31  # of their seed: no training gets as far


class WeightAverage:
    """Moving average of a network's parameters and buffers, with a warm-up so that the start is forgotten.

    Parameters
    ----------
    network : SuperResolution
        Followed by `update` after every step. Its tensors change in place, and stay the same objects.
    decay : float
        Weight of the past; smaller during the first steps: (1 + t) / (10 + t).
    """

    def __init__(self, network: SuperResolution, decay: float) -> None:
        self.network, self.decay, self.updates = network, decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = list(zip(self.average.state_dict().values(), network.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._weights = [a for a, _ in floating], [b for _, b in floating]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for average, value in self._others:
            average.copy_(value)

    def state(self) -> State:
        """Return the averaged weights, and of how many updates."""
        return {"updates": self.updates, "weights": copied(self.average.state_dict())}

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        self.updates = state["updates"]
        self.average.load_state_dict(state["weights"])


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
