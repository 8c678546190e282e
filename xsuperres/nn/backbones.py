"""Backbones: what happens between the first convolution and the upsampling, at one resolution.

Torch only, no xarray. The contract: ``backbone(config)`` returns a `Block` that maps (b, width, y, x) to the same
shape, ``config.width`` channels wide, and declares its dependency with ``needs``. To add one, decorate a function or
class here or in a notebook with ``@BACKBONES.add("name")``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xsuperres.config import NetworkConfig
from xsuperres.nn.blocks import ConvNextBlock, DenseBlock, ResidualBlock, unit
from xsuperres.nn.geometry import Block, Chain, Interval
from xsuperres.nn.layers import attention
from xsuperres.registry import Registry

__all__ = ["BACKBONES"]

BACKBONES: Registry[Callable[[NetworkConfig], Block]] = Registry("backbone")


@BACKBONES.add("conv", aliases=("convnet",))
def plain(config: NetworkConfig) -> Block:
    """Return `depth` times two 3x3 convolutions with activation."""
    width = config.width
    pairs = [
        Chain(unit(config, width, width), unit(config, width, width), attention(config.attention, width))
        for _ in range(config.depth)
    ]
    return Chain(*pairs)


@BACKBONES.add("residual", aliases=("resnet",))
def residual(config: NetworkConfig) -> Block:
    """Return `depth` residual blocks."""
    return Chain(*(ResidualBlock(config) for _ in range(config.depth)))


@BACKBONES.add("dense", aliases=("densenet",))
def dense(config: NetworkConfig) -> Block:
    """Return `depth` dense blocks, each with its transition."""
    return Chain(*(DenseBlock(config) for _ in range(config.depth)))


@BACKBONES.add("convnext")
def convnext(config: NetworkConfig) -> Block:
    """Return `depth` ConvNeXt blocks."""
    return Chain(*(ConvNextBlock(config) for _ in range(config.depth)))


@BACKBONES.add("unet")
class UNet(Block):
    """Encoder, bottleneck and decoder with skip connections (U-Net; Ronneberger et al. 2015, arXiv:1505.04597).

    Undecimated: level l dilates its convolutions by 2**l instead of pooling, which sees as far, keeps every cell
    (stride 1), and lets chunks begin anywhere.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, levels = config.width, range(config.depth)
        self.down = nn.ModuleList(unit(config, width, width, dilation=2**level) for level in levels)
        self.bottom = unit(config, width, width, dilation=2**config.depth)
        self.up = nn.ModuleList(unit(config, 2 * width, width, dilation=2**level) for level in reversed(levels))
        self.attend = attention(config.attention, width)

    def forward(self, x: Tensor) -> Tensor:  # (b, width, y, x) -> the same
        kept = []
        for step in self.down:
            x = step(x)
            kept.append(x)
        x = self.bottom(x)
        for step in self.up:
            x = step(torch.cat([x, kept.pop()], dim=1))
        return self.attend(x)

    def needs(self, out: Interval) -> Interval:
        out, beside = self.attend.needs(out), []
        for step in reversed(self.up):
            out = step.needs(out)  # type: ignore[operator]
            beside.append(out)
        out = self.bottom.needs(out)  # type: ignore[operator]
        for step in reversed(self.down):
            out = step.needs(out.union(beside.pop()))  # type: ignore[operator]
        return out
