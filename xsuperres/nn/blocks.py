"""Building blocks of the networks: convolutions, residual and dense blocks, merging of static channels.

Torch only, no xarray; tensors are (b, c, y, x). Convolutions keep the size; beyond a domain edge they see 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xsuperres.nn.geometry import Block, Chain, Interval, Pointwise
from xsuperres.registry import Registry

__all__ = ["ACTIVATIONS", "Conv", "DenseBlock", "Merge", "ResidualBlock", "activation", "pointwise_conv"]

ACTIVATIONS: Registry[type[nn.Module]] = Registry("activation")
for _name, _module in {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}.items():
    ACTIVATIONS.add(_name)(_module)


def activation(name: str) -> Pointwise:
    """Return the activation called `name` as a block."""
    return Pointwise(ACTIVATIONS.get(name)())


def pointwise_conv(inputs: int, outputs: int) -> Pointwise:
    """Return a 1x1 convolution, which mixes the channels of each cell."""
    return Pointwise(nn.Conv2d(inputs, outputs, 1))


class Conv(Block):
    """A convolution of odd size that keeps the resolution."""

    def __init__(self, inputs: int, outputs: int, *, size: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.reach = size // 2
        self.conv = nn.Conv2d(inputs, outputs, size, padding=self.reach, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, outputs, y, x)
        return self.conv(x)

    def needs(self, out: Interval) -> Interval:
        return out.grow(self.reach)


class ResidualBlock(Block):
    """Conv, activation, conv, added to the input, without normalisation (EDSR; Lim et al. 2017, arXiv:1707.02921)."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.body = Chain(Conv(width, width), activation(act), Conv(width, width))

    def forward(self, x: Tensor) -> Tensor:  # (b, width, y, x) -> the same
        return x + self.body(x)

    def needs(self, out: Interval) -> Interval:
        return out.union(self.body.needs(out))


class DenseBlock(Block):
    """1x1 conv to 4 x width, 3x3 conv to width, concatenated to the input, 1x1 transition back to width.

    After DenseNet (Huang et al. 2017, arXiv:1608.06993) with its bottleneck and its halving transition.
    """

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.body = Chain(pointwise_conv(width, 4 * width), activation(act), Conv(4 * width, width), activation(act))
        self.transition = pointwise_conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (b, width, y, x) -> the same
        return self.transition(torch.cat([x, self.body(x)], dim=1))

    def needs(self, out: Interval) -> Interval:
        return out.union(self.body.needs(out))


class Merge(Block):
    """Convolve two inputs of one resolution and add: a convolution of their concatenation.

    The second input holds fields that are the same for every sample; given as (1, c, y, x) it is convolved once
    for the whole batch. It may be absent (`seconds` = 0).
    """

    def __init__(self, firsts: int, seconds: int, outputs: int, *, size: int = 3) -> None:
        super().__init__()
        self.first = Conv(firsts, outputs, size=size)
        self.second = Conv(seconds, outputs, size=size, bias=False) if seconds else None

    def forward(self, x: Tensor, fixed: Tensor | None) -> Tensor:  # (b, firsts, y, x), (1 or b, seconds, y, x)
        merged = self.first(x)
        return merged if self.second is None or fixed is None else merged + self.second(fixed)

    def needs(self, out: Interval) -> Interval:
        return self.first.needs(out)
