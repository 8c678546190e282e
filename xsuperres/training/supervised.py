"""The supervised step: loss between baseline plus correction and the target.

Tensors only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from xsuperres.config import OptimizationConfig
from xsuperres.fields.channels import Channels
from xsuperres.nn.losses import build_loss
from xsuperres.nn.network import SuperResolution
from xsuperres.nn.place import at
from xsuperres.samples.readers import Batch

__all__ = ["Prefer", "SupervisedStep", "adam"]

Prefer = Literal["best", "last"]  # which weights are kept, see `training.loop`


def adam(network: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return the optimizer of a network."""
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay, fused=True)


class SupervisedStep:
    """One optimizer step on one batch.

    Parameters
    ----------
    network : SuperResolution
        Trained in place.
    channels : Channels
        Says how output and skip become a prediction. Losses see it, and the target, in units of the skip's training
        error, so that the loss of the skip alone is about 1.
    config : OptimizationConfig
        Learning rate, loss, weight decay, clipping.
    """

    prefer: Prefer = "best"

    def __init__(self, network: SuperResolution, channels: Channels, config: OptimizationConfig) -> None:
        self.network, self.channels, self.config = network, channels, config
        self.loss = build_loss(config.loss)
        self.unit = torch.tensor(channels.gain)[:, None, None]
        self.optimizer = adam(network, config.learning_rate, config.weight_decay)

    def __call__(self, batch: Batch, rate: float, share: float) -> dict[str, Tensor]:
        """Take a step with learning rate `rate`; return the loss before it, a scalar."""
        prediction, target = self.predicted(batch)
        loss = self.loss(prediction, target, batch.weight)
        self.descend(loss, rate)
        return {"loss": loss.detach()}

    def predicted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return prediction and target (b, targets, Y, X) in units of the skip's training error."""
        with at(batch.place):
            output = self.network(batch.coarse, batch.fine, batch.cells, batch.windows)
        prediction = self.channels.combined(output, batch.skip)
        unit = self.unit.to(prediction.device)
        return prediction / unit, batch.target / unit

    def descend(self, loss: Tensor, rate: float) -> None:
        """Move the weights against the gradient of `loss`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
