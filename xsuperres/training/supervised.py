"""The supervised step: loss between baseline plus correction and the target.

Tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xsuperres.config import OptimizationConfig
from xsuperres.fields.channels import Channels
from xsuperres.nn.losses import build_loss
from xsuperres.nn.network import SuperResolution
from xsuperres.nn.place import at
from xsuperres.samples.readers import Batch
from xsuperres.training.optimizer import AdamW
from xsuperres.training.state import State, copied

__all__ = ["SupervisedStep"]


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

    def __init__(self, network: SuperResolution, channels: Channels, config: OptimizationConfig) -> None:
        self.network, self.channels, self.config = network, channels, config
        self.loss = build_loss(config.loss)
        self.unit = torch.tensor(channels.gain)[:, None, None]
        self.optimizer = AdamW(network, config.weight_decay)

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
        self.optimizer.forget_gradients()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.optimizer.parameters.values(), self.config.gradient_clip)
        self.optimizer.step(rate)

    def state(self) -> State:
        """Return the network's weights and the optimizer's moments."""
        return {"weights": copied(self.network.state_dict()), "optimizer": self.optimizer.state()}

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        self.network.load_state_dict(state["weights"])
        self.optimizer.restore(state["optimizer"])
