"""The supervised step: loss between baseline plus correction and the target.

Tensors only.
"""

from __future__ import annotations

from functools import partial

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
        Says how the fields of the network's head and the skip become a prediction. Losses see it, and the target, in
        units of the skip's training error, so that the loss of the skip alone is about 1.
    config : OptimizationConfig
        Learning rate, loss, weight decay, clipping.
    """

    def __init__(self, network: SuperResolution, channels: Channels, config: OptimizationConfig) -> None:
        self.network, self.channels, self.config = network, channels, config
        self.head, self.error = network.output_head, build_loss(config.loss)
        self.unit = torch.tensor(channels.skip.gain)[:, None, None]
        self.optimizer = AdamW(network, config.weight_decay)

    def __call__(self, batch: Batch, rate: float, share: float) -> dict[str, Tensor]:
        """Take a step with learning rate `rate`; return the loss before it, a scalar."""
        predicted = partial(self.predicted, batch)
        loss = self.head.loss(self.output(batch), self.target(batch), batch.weight, predicted, self.error)
        self.descend(loss, rate)
        return {"loss": loss.detach()}

    def output(self, batch: Batch) -> Tensor:
        """Return the network's output, (b, outputs, Y, X)."""
        with at(batch.place):
            return self.network(batch.coarse, batch.fine, batch.cells, batch.windows)

    def predicted(self, batch: Batch, fields: Tensor) -> Tensor:
        """Return the prediction from fields in the network's unit, (b, targets, Y, X) both."""
        return self.channels.prediction(fields, batch.skip) / self.unit.to(fields.device)

    def target(self, batch: Batch) -> Tensor:
        """Return the target (b, targets, Y, X)."""
        return batch.target / self.unit.to(batch.target.device)

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
