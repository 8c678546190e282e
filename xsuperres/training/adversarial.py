"""The adversarial step: a conditional game between the network and a discriminator.

Tensors only. The network starts as a supervised one; then its loss is the pixel loss plus what the discriminator says
of its patches. The discriminator is shown fields in units of the skip's training error, less the skip: what there is to
invent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xsuperres.config import AdversarialConfig, OptimizationConfig
from xsuperres.fields.channels import Channels
from xsuperres.nn.discriminator import Discriminator
from xsuperres.nn.network import SuperResolution
from xsuperres.registry import Registry
from xsuperres.samples.readers import Batch
from xsuperres.training.optimizer import AdamW
from xsuperres.training.state import State, copied
from xsuperres.training.supervised import SupervisedStep

__all__ = ["GAMES", "AdversarialStep", "Game"]


@dataclass(frozen=True)
class Game:
    """The two losses of a game, and whether the discriminator's slope is fined (``gradient_penalty``).

    Parameters
    ----------
    judge : callable
        The discriminator's loss, from its logits of true and of made patches.
    maker : callable
        The network's, from those of made patches.
    """

    judge: Callable[[Tensor, Tensor], Tensor]
    maker: Callable[[Tensor], Tensor]
    penalty: bool = False


GAMES: Registry[Game] = Registry("adversarial loss")

GAMES.add("bce")(
    Game(
        judge=lambda true, made: F.softplus(-true).mean() + F.softplus(made).mean(),
        maker=lambda made: F.softplus(-made).mean(),
    )
)
GAMES.add("hinge")(
    Game(
        judge=lambda true, made: F.relu(1 - true).mean() + F.relu(1 + made).mean(),
        maker=lambda made: -made.mean(),
    )
)
GAMES.add("wasserstein_gp")(
    Game(judge=lambda true, made: made.mean() - true.mean(), maker=lambda made: -made.mean(), penalty=True)
)


class AdversarialStep:
    """One step of the discriminator and one of the network.

    Parameters
    ----------
    network, discriminator : torch modules
        Trained in place.
    channels : Channels
        Says how output and skip become a prediction.
    config, game : OptimizationConfig, AdversarialConfig
        Settings of the network, and of the game.
    """

    def __init__(
        self,
        network: SuperResolution,
        discriminator: Discriminator,
        channels: Channels,
        config: OptimizationConfig,
        game: AdversarialConfig,
    ) -> None:
        self.generator = SupervisedStep(network, channels, config)
        self.discriminator, self.game, self.rules = discriminator, game, GAMES.get(game.loss)
        self.optimizer = AdamW(discriminator, config.weight_decay)

    def __call__(self, batch: Batch, rate: float, share: float) -> dict[str, Tensor]:
        """Take a step of both; until the warm-up is over, a supervised one."""
        generator = self.generator
        made = generator.predicted(batch, generator.head.draw(generator.output(batch), batch.place))
        true = generator.target(batch)
        pixel = generator.error(made, true, batch.weight)
        if share < self.game.warm_up:
            generator.descend(pixel, rate)
            return {"loss": pixel.detach()}
        made, true = self._details(made, batch), self._details(true, batch)
        judged = self._judge(true, made.detach(), batch, rate)
        adversarial = self.rules.maker(self._logits(made, batch))
        loss = self.game.pixel_weight * pixel + self.game.weight * adversarial
        generator.descend(loss, rate)
        parts = {"loss": pixel, "generator_loss": adversarial, "discriminator_loss": judged, "detail": made.std()}
        return {name: part.detach() for name, part in parts.items()}

    def _details(self, field: Tensor, batch: Batch) -> Tensor:
        """Return a field less the skip, 0 where the target is missing."""
        details = field - batch.skip / self.generator.unit.to(field.device)
        return details * (batch.weight > 0)

    def _logits(self, field: Tensor, batch: Batch) -> Tensor:
        """Return the discriminator's logits (b, 1, y', x')."""
        coarse = batch.coarse
        if batch.windows is not None:
            coarse = coarse.reshape(len(field), -1, *coarse.shape[-2:])  # the frames of a window as channels
        return self.discriminator(field, coarse, batch.fine)

    def _judge(self, true: Tensor, made: Tensor, batch: Batch, rate: float) -> Tensor:
        """Take a step of the discriminator."""
        loss = self.rules.judge(self._logits(true, batch), self._logits(made, batch))
        if self.rules.penalty:
            loss = loss + self.game.gradient_penalty * self._penalty(true, made, batch)
        self.optimizer.forget_gradients()
        loss.backward()
        self.optimizer.step(rate * self.game.learning_rate / self.generator.config.learning_rate)
        return loss

    def _penalty(self, true: Tensor, made: Tensor, batch: Batch) -> Tensor:
        """Return how far the gradient between true and made fields is from 1 (Gulrajani et al. 2017)."""
        share = torch.rand(len(true), 1, 1, 1, device=true.device)
        mixed = torch.lerp(true, made, share).requires_grad_()
        (gradient,) = torch.autograd.grad(self._logits(mixed, batch).mean((1, 2, 3)).sum(), mixed, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def state(self) -> State:
        """Return the states of both sides of the game."""
        discriminator = {"weights": copied(self.discriminator.state_dict()), "optimizer": self.optimizer.state()}
        return {"generator": self.generator.state(), "discriminator": discriminator}

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        self.generator.restore(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"]["weights"])
        self.optimizer.restore(state["discriminator"]["optimizer"])
