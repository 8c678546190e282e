"""Heads: what the channels of a network's output say of each target.

Torch only, no xarray; tensors are (b, c, y, x), the channels of one target side by side. A head says how many there are
per target, and what becomes of them: a loss in training, and a field in the network's unit, their mean or a draw, to
which `fields.channels` adds the skip. To add one, subclass `Head` and register an instance with ``HEADS.add("name")``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from xsuperres.nn.losses import Loss
from xsuperres.nn.place import Place
from xsuperres.registry import Registry

__all__ = ["HEADS", "Head"]


class Head(ABC):
    """What a network's output says of each target.

    Attributes
    ----------
    channels : int
        Of the output, per target.
    is_random : bool
        Whether draws differ.
    """

    channels: ClassVar[int] = 1
    is_random: ClassVar[bool] = False

    @abstractmethod
    def loss(
        self, raw: Tensor, target: Tensor, weight: Tensor, predicted: Callable[[Tensor], Tensor], error: Loss
    ) -> Tensor:
        """Return the loss of a batch, a scalar.

        Parameters
        ----------
        raw : Tensor (b, targets x channels, Y, X)
            The network's output.
        target, weight : Tensor (b, targets, Y, X), (b or 1, 1 or targets, Y, X)
            In units of the skip's error; weights are 0 where the target is missing.
        predicted : callable
            Makes of fields in the network's unit, (b, targets, Y, X), predictions in the target's.
        error : Loss
            That of ``optimization.loss``, between such predictions and the target.
        """

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """Return the expected field in the network's unit, (b, targets, Y, X)."""

    @abstractmethod
    def draw(self, raw: Tensor, place: Place | None) -> Tensor:
        """Return a sample of the field in the network's unit, (b, targets, Y, X).

        At a `place` with keys its random numbers are hashes of these and of the cells, as of all random layers; without
        they are torch's (in training).
        """


HEADS: Registry[Head] = Registry("head")


class Deterministic(Head):
    """One channel per target: the field itself."""

    def loss(
        self, raw: Tensor, target: Tensor, weight: Tensor, predicted: Callable[[Tensor], Tensor], error: Loss
    ) -> Tensor:
        """Return the error of the prediction."""
        return error(predicted(self.mean(raw)), target, weight)

    def mean(self, raw: Tensor) -> Tensor:
        """Return the output as it is."""
        return raw

    def draw(self, raw: Tensor, place: Place | None) -> Tensor:
        """Return the mean, the only field there is."""
        return self.mean(raw)


HEADS.add("deterministic")(Deterministic())
