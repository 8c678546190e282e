"""Backbones: what happens between the first convolution and the upsampling, at one resolution.

Torch only, no xarray. The contract: ``Backbone(width, depth, activation)`` maps (b, width, y, x) to the same
shape, and ``needs`` declares its dependency. To add one, decorate a function or class here or in a notebook with
``@BACKBONES.add("name")``.
"""

from __future__ import annotations

from collections.abc import Callable

from xsuperres.nn.blocks import Conv, DenseBlock, ResidualBlock, activation
from xsuperres.nn.geometry import Block, Chain
from xsuperres.registry import Registry

__all__ = ["BACKBONES"]

BACKBONES: Registry[Callable[[int, int, str], Block]] = Registry("backbone")


@BACKBONES.add("conv", aliases=("convnet",))
def plain(width: int, depth: int, act: str) -> Block:
    """Return `depth` times two 3x3 convolutions with activation."""
    layers = [layer for _ in range(2 * depth) for layer in (Conv(width, width), activation(act))]
    return Chain(*layers)


@BACKBONES.add("residual", aliases=("resnet",))
def residual(width: int, depth: int, act: str) -> Block:
    """Return `depth` residual blocks."""
    return Chain(*(ResidualBlock(width, act) for _ in range(depth)))


@BACKBONES.add("dense", aliases=("densenet",))
def dense(width: int, depth: int, act: str) -> Block:
    """Return `depth` dense blocks, each with its transition."""
    return Chain(*(DenseBlock(width, act) for _ in range(depth)))
