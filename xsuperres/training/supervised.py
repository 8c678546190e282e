"""The supervised step: loss between baseline plus correction and the target.

Tensors only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xsuperres.config import OptimizationConfig
from xsuperres.nn.losses import LOSSES
from xsuperres.nn.network import SuperResolution
from xsuperres.samples.readers import Batch

__all__ = ["SupervisedStep"]


class SupervisedStep:
    """One optimizer step on one batch.

    Parameters
    ----------
    network : SuperResolution
        Trained in place.
    gain : float
        The network's output times this, plus the batch's skip, is the prediction in scaled units; errors are divided
        by it, so that the loss of the skip alone is about 1.
    config : OptimizationConfig
        Learning rate, loss, weight decay, clipping.
    """

    def __init__(self, network: SuperResolution, gain: float, config: OptimizationConfig) -> None:
        self.network, self.gain, self.config = network, gain, config
        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] = LOSSES.get(config.loss)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Take a step with learning rate `rate`; return the loss before it, a scalar."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        output = self.network(batch.coarse, batch.fine, batch.cells)
        loss = self.loss(output + batch.skip / self.gain, batch.target / self.gain, batch.weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return loss.detach()
