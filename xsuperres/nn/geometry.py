"""Which input cells an output cell depends on, along one horizontal axis.

Torch only, no xarray. Every block of a network implements ``needs(out)``: the half-open interval of input
cells that the output cells ``out`` depend on. Networks compose these intervals from the head down to the
coarse input and take the union over parallel paths; adding up radii would overestimate (two layers of
radius 1 at the fine grid reach one coarse cell, not two).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Block", "Chain", "Interval", "Pointwise", "halo_of"]


class Interval(NamedTuple):
    """A half-open interval of cell indices.

    Examples
    --------
    >>> Interval(0, 4).grow(1)
    Interval(start=-1, stop=5)
    >>> Interval(-1, 5).coarsened(4)
    Interval(start=-1, stop=2)
    """

    start: int
    stop: int

    def grow(self, before: int, after: int | None = None) -> Interval:
        """Return the interval extended by `before` and `after` (default: the same) cells."""
        return Interval(self.start - before, self.stop + (before if after is None else after))

    def union(self, *others: Interval) -> Interval:
        """Return the smallest interval that holds this one and `others`."""
        parts = (self, *others)
        return Interval(min(part.start for part in parts), max(part.stop for part in parts))

    def coarsened(self, scale: int) -> Interval:
        """Return the coarse cells whose `scale` fine cells meet this interval."""
        return Interval(self.start // scale, -(-self.stop // scale))

    def refined(self, scale: int) -> Interval:
        """Return the fine cells of these coarse cells."""
        return Interval(self.start * scale, self.stop * scale)


class Block(nn.Module, ABC):
    """A layer that declares its dependency along each horizontal axis (the same for y and x).

    One that looks at the whole domain besides says ``global_context = True``.
    """

    global_context: bool = False

    @abstractmethod
    def needs(self, out: Interval) -> Interval:
        """Return the input cells that the output cells `out` depend on."""


class Chain(Block):
    """Blocks one after the other."""

    def __init__(self, *blocks: Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:  # (b, c, y, x) -> as its blocks say
        for block in self.blocks:
            x = block(x)
        return x

    def needs(self, out: Interval) -> Interval:
        for block in reversed(self.blocks):
            assert isinstance(block, Block)
            out = block.needs(out)
        return out


class Pointwise(Block):
    """Any module that acts on each cell by itself: activation, 1x1 convolution, normalisation per cell."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:  # (b, c, y, x) -> (b, c', y, x)
        return self.module(x)

    def needs(self, out: Interval) -> Interval:
        return out


def halo_of(block: Block, scale: int) -> int:
    """Return the halo in coarse cells that makes `block`, coarse in and fine out, exact on a tile."""
    need = block.needs(Interval(0, scale))
    return max(-need.start, need.stop - 1, 0)
