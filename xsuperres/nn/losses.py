"""Losses: the weighted mean of an error over cells.

Torch only, no xarray. The contract: ``loss(prediction, target, weight)`` with (b, c, y, x) tensors, `weight`
broadcastable to them, 0 where the target is missing, gives a scalar. To add one, decorate a function with
``@LOSSES.add("name")``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from xsuperres.registry import Registry

__all__ = ["LOSSES", "weighted_mean"]

LOSSES: Registry[Callable[[Tensor, Tensor, Tensor], Tensor]] = Registry("loss")


def weighted_mean(error: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of `error` (b, c, y, x) under `weight`; 0 if every weight is 0."""
    weight = weight.expand_as(error)
    return (error * weight).sum() / weight.sum().clamp_min(1e-12)


@LOSSES.add("mse")
def mean_squared_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of squared errors."""
    return weighted_mean((prediction - target).square(), weight)


@LOSSES.add("mae")
def mean_absolute_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of absolute errors."""
    return weighted_mean((prediction - target).abs(), weight)


@LOSSES.add("huber")
def huber(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean of Huber's error: squared up to 1 (scaled units), absolute beyond."""
    return weighted_mean(F.huber_loss(prediction, target, reduction="none"), weight)
