"""Building blocks of the networks: convolutions, residual, dense and other blocks, merging of static channels.

Torch only, no xarray; tensors are (b, c, y, x). Convolutions keep the size; beyond a domain edge they see 0. What a
`NetworkConfig` asks for (kind of convolution, normalisation, dropout, attention) is put in by `conv` and `unit`, so
that every backbone has it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from xsuperres.config import NetworkConfig
from xsuperres.nn.geometry import Block, Chain, Interval, Pointwise
from xsuperres.nn.layers import activation, added, attention, dropout, normalization

__all__ = [
    "Conv",
    "ConvNextBlock",
    "DenseBlock",
    "Merge",
    "OutputConv",
    "ResidualBlock",
    "conv",
    "pointwise_conv",
    "unit",
]


def pointwise_conv(inputs: int, outputs: int) -> Pointwise:
    """Return a 1x1 convolution, which mixes the channels of each cell."""
    return Pointwise(nn.Conv2d(inputs, outputs, 1))


class Conv(Block):
    """A convolution of odd size that keeps the resolution; dilated, it skips cells."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int = 3, bias: bool = True, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.reach = dilation * (size // 2)
        self.conv = nn.Conv2d(inputs, outputs, size, padding=self.reach, bias=bias, dilation=dilation, groups=groups)

    def forward(self, x: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, outputs, y, x)
        return self.conv(x)

    def needs(self, out: Interval) -> Interval:
        return out.grow(self.reach)


class OutputConv(Conv):
    """A convolution to one or two channels, where a CPU, which makes 16 of them at once, would mostly idle.

    Outside of training it is there a product of matrices, all taps of the kernel times all cells, whose rows are
    shifted and added: three times as fast, and in bfloat16 more exact, as the sum is of the weights' own type.
    """

    few = 2  # channels; with more torch's own convolution is as fast

    def forward(self, x: Tensor) -> Tensor:  # (b, inputs, y, x) -> (b, outputs, y, x)
        if torch.is_grad_enabled() or x.device.type != "cpu" or self.conv.out_channels > self.few:
            return super().forward(x)
        weight, bias, plane = self.conv.weight, self.conv.bias, x.shape[2:]
        assert bias is not None
        kernels = weight.permute(0, 2, 3, 1).flatten(0, 2).expand(len(x), -1, -1)  # (b, outputs taps, inputs)
        products = torch.bmm(kernels, x.flatten(2)).to(bias.dtype).view(len(x), len(bias), *weight.shape[2:], *plane)
        out = bias[:, None, None].expand(len(x), -1, *plane).contiguous()
        for row, column in itertools.product(*map(range, weight.shape[2:])):
            (to_y, of_y), (to_x, of_x) = _shifted(plane[0], row - self.reach), _shifted(plane[1], column - self.reach)
            out[:, :, to_y, to_x] += products[:, :, row, column, of_y, of_x]
        return out


def _shifted(size: int, by: int) -> tuple[slice, slice]:
    """Return the cells of a line that have another so many cells on, and these others."""
    low = max(0, -by)
    high = max(low, size - max(0, by))
    return slice(low, high), slice(low + by, high + by)


def conv(config: NetworkConfig, inputs: int, outputs: int, *, size: int = 3, dilation: int = 1) -> Block:
    """Return a convolution; depthwise-separable (Chollet 2017, arXiv:1610.02357) if the settings say so."""
    if not config.separable:
        return Conv(inputs, outputs, size=size, dilation=dilation)
    depthwise = Conv(inputs, inputs, size=size, dilation=dilation, groups=inputs, bias=False)
    return Chain(depthwise, pointwise_conv(inputs, outputs))


def unit(config: NetworkConfig, inputs: int, outputs: int, *, dilation: int = 1) -> Chain:
    """Return convolution, normalisation, activation and dropout."""
    return Chain(
        conv(config, inputs, outputs, dilation=dilation),
        normalization(config.normalization, outputs),
        activation(config.activation),
        dropout(config.dropout, config.dropout_rate),
    )


class ResidualBlock(Block):
    """Conv, activation, conv, added to the input (EDSR; Lim et al. 2017, arXiv:1707.02921).

    Normalisation, dropout and attention (Zhang et al. 2018, arXiv:1807.02758) act on what is added.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.body = Chain(
            unit(config, width, width),
            conv(config, width, width),
            normalization(config.normalization, width),
            attention(config.attention, width),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, width, y, x) -> the same
        return added(self.body(x), x)

    def needs(self, out: Interval) -> Interval:
        return out.union(self.body.needs(out))


class DenseBlock(Block):
    """1x1 conv to 4 x width, 3x3 conv to width, concatenated to the input, 1x1 transition back to width.

    After DenseNet (Huang et al. 2017, arXiv:1608.06993) with its bottleneck and its halving transition.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.body = Chain(
            pointwise_conv(width, 4 * width),
            normalization(config.normalization, 4 * width),
            activation(config.activation),
            unit(config, 4 * width, width),
            attention(config.attention, width),
        )
        self.transition = pointwise_conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (b, width, y, x) -> the same
        return self.transition(torch.cat([x, self.body(x)], dim=1))

    def needs(self, out: Interval) -> Interval:
        return out.union(self.body.needs(out))


class ConvNextBlock(Block):
    """7x7 depthwise conv, normalisation per cell, 1x1 conv to 4 x width, GELU, 1x1 conv back, added to the input.

    After ConvNeXt (Liu et al. 2022, arXiv:2201.03545); `normalization` replaces its layer normalisation, the
    activation is its own.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.body = Chain(
            Conv(width, width, size=7, groups=width),
            normalization(config.normalization or "layer", width),
            pointwise_conv(width, 4 * width),
            activation("gelu"),
            dropout(config.dropout, config.dropout_rate),
            pointwise_conv(4 * width, width),
            attention(config.attention, width),
        )

    def forward(self, x: Tensor) -> Tensor:  # (b, width, y, x) -> the same
        return added(self.body(x), x)

    def needs(self, out: Interval) -> Interval:
        return out.union(self.body.needs(out))


class Merge(Block):
    """Convolve two inputs of one resolution and add: a convolution of their concatenation.

    The second input holds fields that are the same for every sample, or for all frames of one; it is convolved by
    itself (`fixed`), once for all that share it. It may be absent (`seconds` = 0).
    """

    def __init__(self, firsts: int, seconds: int, outputs: int, *, size: int = 3) -> None:
        super().__init__()
        self.first = Conv(firsts, outputs, size=size)
        self.second = Conv(seconds, outputs, size=size, bias=False) if seconds else None

    def fixed(self, second: Tensor | None) -> Tensor | None:  # (1 or b, seconds, y, x) -> (1 or b, outputs, y, x)
        """Return what the second input adds."""
        return None if self.second is None or second is None else self.second(second)

    def forward(self, x: Tensor, fixed: Tensor | None) -> Tensor:  # (b, firsts, y, x), (1 or b / n, outputs, y, x)
        merged = self.first(x)
        if fixed is None:
            return merged
        if len(fixed) not in (1, len(merged)):  # n frames a sample
            fixed = fixed.repeat_interleave(len(merged) // len(fixed), dim=0)
        return added(merged, fixed)

    def needs(self, out: Interval) -> Interval:
        return self.first.needs(out)
