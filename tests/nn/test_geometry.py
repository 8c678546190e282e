"""The algebra of intervals, and that every block and upsampler declares what it really reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from covering import covering
from hypothesis import given
from hypothesis import strategies as st

from xsuperres.config import NetworkConfig
from xsuperres.nn.blocks import Conv, DenseBlock, Merge, ResidualBlock, pointwise_conv
from xsuperres.nn.geometry import Block, Chain, Interval, halo_of
from xsuperres.nn.layers import activation
from xsuperres.nn.resample import Interpolation
from xsuperres.nn.upsamplers import UPSAMPLERS

intervals = st.builds(lambda start, size: Interval(start, start + size), st.integers(-30, 30), st.integers(1, 20))
scales = st.integers(2, 7)


@given(intervals, scales)
def test_coarsened_is_the_set_of_parents(interval, scale):
    parents = {cell // scale for cell in range(*interval)}
    assert set(range(*interval.coarsened(scale))) == parents


@given(intervals, scales)
def test_refined_is_the_set_of_children_and_inverts_coarsening(interval, scale):
    children = {cell * scale + part for cell in range(*interval) for part in range(scale)}
    assert set(range(*interval.refined(scale))) == children
    assert interval.refined(scale).coarsened(scale) == interval
    wide = interval.coarsened(scale).refined(scale)
    assert wide.union(interval) == wide


@given(intervals, intervals, intervals)
def test_union_is_the_smallest_interval_around(a, b, c):
    union = a.union(b, c)
    assert union == b.union(c, a) == a.union(b).union(c)
    assert union.start in (a.start, b.start, c.start)
    assert union.stop in (a.stop, b.stop, c.stop)
    assert all(union.start <= part.start <= part.stop <= union.stop for part in (a, b, c))
    assert a.union() == a.union(a) == a


@given(intervals, st.integers(0, 5), st.integers(0, 5))
def test_grow(interval, before, after):
    assert interval.grow(before) == interval.grow(before, before)
    grown = interval.grow(before, after)
    assert grown.stop - grown.start == interval.stop - interval.start + before + after


NARROW = NetworkConfig(width=2)
BLOCKS: dict[str, Block] = {
    "conv 1": Conv(2, 3, size=1),
    "conv 3": Conv(2, 3),
    "conv 7": Conv(2, 3, size=7),
    "conv without bias": Conv(2, 3, bias=False),
    "pointwise": pointwise_conv(2, 3),
    "activation": activation("relu"),
    "residual": ResidualBlock(NARROW),
    "dense": DenseBlock(NARROW),
    "chain": Chain(Conv(2, 3), activation("relu"), Conv(3, 1, size=5), pointwise_conv(1, 2)),
    "empty chain": Chain(),
    "chain of chains": Chain(Chain(Conv(2, 2)), Chain(ResidualBlock(NARROW), DenseBlock(NARROW))),
}
REACH = 8


def support(block: Block, out: Interval, scale: int, axis: int) -> Interval:
    """Return the input cells with a gradient in float64, all parameters positive, along one axis.

    Outputs are counted from the first fine cell of the middle coarse cell.
    """
    size = 2 * REACH + 1
    x = torch.rand(1, 2, size, size, dtype=torch.float64).add_(0.5).requires_grad_()
    y = block(1 * x)  # a leaf must not be written into
    assert y.shape[-2:] == (size * scale, size * scale)
    first = REACH * scale
    cut = [slice(None)] * 4
    cut[axis] = slice(first + out.start, first + out.stop)
    (y[tuple(cut)] * torch.rand_like(y[tuple(cut)]).add(0.5)).sum().backward()
    return touched(x.grad, axis, REACH)


def touched(gradient: torch.Tensor, axis: int, origin: int = 0) -> Interval:
    """Return the cells along `axis`, counted from `origin`, where anything has a gradient."""
    others = tuple(a for a in range(gradient.ndim) if a != axis)
    cells = np.flatnonzero((gradient.numpy() != 0).any(axis=others)) - origin
    return Interval(int(cells.min()), int(cells.max()) + 1)


@pytest.mark.parametrize(("name", "out", "axis"), covering(list(BLOCKS), [(0, 1), (0, 2), (-2, 3)], [2, 3]))
def test_blocks_declare_their_support(name, out, axis, reinitialise):
    block = BLOCKS[name].double()
    reinitialise(block, positive=True)
    assert support(block, Interval(*out), 1, axis) == block.needs(Interval(*out))


def outputs_of(scale: int) -> list[tuple[int, int]]:
    """Return single fine cells at every phase, the fine cells of a coarse cell, and odd stretches."""
    return [*((phase, phase + 1) for phase in range(scale)), (0, scale), (-1, scale + 1), (1 - scale, 1), (-3, 8)]


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@pytest.mark.parametrize("name", list(UPSAMPLERS))
def test_upsamplers_declare_their_support(name, scale, reinitialise):
    block = UPSAMPLERS.get(name)(2, 2, scale).double()
    reinitialise(block, positive=True)
    for out in outputs_of(scale):
        assert support(block, Interval(*out), scale, 3) == block.needs(Interval(*out)), out
    assert support(block, Interval(0, scale), scale, 2) == block.needs(Interval(0, scale))


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@pytest.mark.parametrize("name", list(UPSAMPLERS))
def test_upsamplers_reach_over_the_cell_border(name, scale, reinitialise):
    """Neighbouring coarse cells overlap, or the blocks would show."""
    block = UPSAMPLERS.get(name)(2, 2, scale)
    assert halo_of(block, scale) >= 1
    reinitialise(block)
    out = block(torch.randn(1, 2, 3, 4))
    assert out.shape == (1, 2, 3 * scale, 4 * scale)


def test_adding_radii_would_not_be_tight():
    """Two fine layers of radius 1 reach one coarse cell, not two."""
    chain = Chain(Interpolation(4, "nearest"), Conv(2, 2), Conv(2, 2))
    assert halo_of(chain, 4) == 1


def test_merge_reads_both_inputs_alike(reinitialise):
    merge = Merge(2, 3, 4, size=5)
    reinitialise(merge)
    first, second = torch.randn(2, 2, 9, 9, requires_grad=True), torch.randn(1, 3, 9, 9, requires_grad=True)
    merge(first, merge.fixed(second))[..., 4, 4].square().sum().backward()
    for tensor in (first, second):
        assert touched(tensor.grad, 2) == touched(tensor.grad, 3) == merge.needs(Interval(4, 5))
