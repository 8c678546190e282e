"""Tiles: which cells a block gets, against `np.take`; lazy and eager alike; nothing computed too early."""

from __future__ import annotations

import pickle

import dask
import dask.array
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsuperres.tiles import AxisPlan, Window, map_tiles, split, windows


@st.composite
def axes(draw, largest: int = 9):
    """Return (chunks, plan) of one axis: uneven chunks down to one cell, halos beyond the axis' length."""
    chunks = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    halo = draw(st.tuples(st.integers(0, largest), st.integers(0, largest)))
    return chunks, AxisPlan(halo, draw(st.booleans()), draw(st.integers(1, 3)))


def neighbourhood(array: np.ndarray, start: int, stop: int, plan: AxisPlan, axis: int) -> np.ndarray:
    """Return what the block of cells [start, stop) must be given."""
    index = np.arange(start - plan.halo[0], stop + plan.halo[1])
    if plan.periodic:
        return np.take(array, index, axis=axis, mode="wrap")
    return np.take(array, index[(index >= 0) & (index < array.shape[axis])], axis=axis)


@given(axes())
def test_windows_against_numpy(axis):
    chunks, plan = axis
    cells, edges = np.arange(sum(chunks)), np.cumsum([0, *chunks])
    for window, start, stop in zip(windows(chunks, plan), edges[:-1], edges[1:], strict=True):
        pieces = [cells[edges[at] : edges[at + 1]][first:last] for at, first, last in window.pieces]
        joined = np.concatenate(pieces)
        np.testing.assert_array_equal(joined, neighbourhood(cells, start, stop, plan, 0))
        assert all(len(piece) for piece in pieces)
        assert joined[0] == window.origin % len(cells)
        np.testing.assert_array_equal(joined[window.own], cells[start:stop])
        np.testing.assert_array_equal(
            np.repeat(joined, plan.scale)[plan.trim(window)], np.repeat(cells[start:stop], plan.scale)
        )


@given(axes())
def test_windows_know_their_chunks(axis):
    chunks, plan = axis
    assert [window.chunk for window in windows(chunks, plan)] == list(range(len(chunks)))


def test_copies_are_of_one_chunk():
    assert [window.chunk for window in windows((1,), AxisPlan(copies=3))] == [0, 0, 0]


def test_a_halo_wraps_as_often_as_it_takes():
    (window,) = windows([3], AxisPlan(halo=(7, 4), periodic=True))
    cells = np.concatenate([np.arange(3)[a:b] for _, a, b in window.pieces])
    np.testing.assert_array_equal(cells, np.arange(-7, 7) % 3)
    assert (window.origin, window.before, window.core) == (-7, 7, 3)


def test_a_true_edge_has_no_neighbours():
    first, last = windows([2, 2], AxisPlan(halo=(3, 3)))
    assert (first.origin, first.before) == (0, 0)
    assert (last.origin, last.before) == (0, 2)
    assert last.pieces == ((0, 0, 2), (1, 0, 2))


class Repeat:
    """Refine by repetition; check that the block is what numpy says and that its origin is right."""

    def __init__(self, array: np.ndarray, plans: list[AxisPlan]) -> None:
        self.array, self.plans = array, plans

    def __call__(self, block: np.ndarray, parts: tuple[Window, ...]) -> np.ndarray:
        expected = self.array
        for axis, (part, plan) in enumerate(zip(parts, self.plans, strict=True)):
            index = part.origin + np.arange(block.shape[axis])
            expected = np.take(expected, index, axis=axis, mode="wrap" if plan.periodic else "raise")
        np.testing.assert_array_equal(block, expected)
        for axis, plan in enumerate(self.plans):
            block = np.repeat(block, plan.scale, axis=axis)
        return block


def refined(array: np.ndarray, plans: list[AxisPlan]) -> np.ndarray:
    for axis, plan in enumerate(plans):
        array = np.repeat(array, plan.scale, axis=axis)
    return array


@given(st.lists(axes(), min_size=1, max_size=3), st.integers(0, 99))
def test_eager_and_lazy_against_numpy(drawn, seed):
    chunks, plans = [c for c, _ in drawn], [p for _, p in drawn]
    array = np.random.default_rng(seed).normal(size=[sum(c) for c in chunks]).astype(np.float32)
    function, expected = Repeat(array, plans), refined(array, plans)
    for tiles in (chunks, None):
        eager = map_tiles(function, array, plans, dtype=array.dtype, chunks=tiles)
        assert isinstance(eager, np.ndarray)
        np.testing.assert_array_equal(eager, expected)
    lazy = map_tiles(function, dask.array.from_array(array, chunks=tuple(chunks)), plans, dtype=array.dtype, token=1)
    assert lazy.chunks == tuple(
        tuple(size * plan.scale for size in sizes) for sizes, plan in zip(chunks, plans, strict=True)
    )
    assert lazy.shape == expected.shape
    assert lazy.dtype == expected.dtype
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)


def box_sum(block: np.ndarray, parts: tuple[Window, ...], reach: int = 2) -> np.ndarray:
    """Return sums over 2 reach + 1 cells along each axis, zeros beyond the block's edges."""
    padded = np.pad(block, reach)
    for axis in range(block.ndim):
        padded = np.apply_along_axis(np.convolve, axis, padded, np.ones(2 * reach + 1), "valid")
    return padded


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("chunks", [(12,), (4, 4, 4), (1, 1, 10), (5, 1, 1, 5), (1,) * 12])
def test_a_stencil_in_tiles_is_the_stencil_of_the_whole(chunks, periodic):
    array = np.random.default_rng(0).normal(size=(12, 12))
    plans = [AxisPlan((2, 2)), AxisPlan((2, 2), periodic)]
    wide = np.pad(array, ((0, 0), (2, 2)), mode="wrap") if periodic else array
    whole = box_sum(wide, ())[:, 2:-2] if periodic else box_sum(array, ())
    got = map_tiles(box_sum, array, plans, dtype=array.dtype, chunks=[chunks, chunks])
    np.testing.assert_allclose(got, whole, atol=1e-12)
    lazy = map_tiles(box_sum, dask.array.from_array(array, chunks=(chunks, chunks)), plans, dtype=array.dtype)
    np.testing.assert_allclose(lazy.compute(scheduler="threads"), whole, atol=1e-12)


@pytest.mark.parametrize("broken", [AxisPlan((1, 2)), AxisPlan((2, 1)), AxisPlan((0, 0))])
def test_a_halo_too_short_shows(broken):
    array = np.random.default_rng(0).normal(size=12)
    whole = map_tiles(box_sum, array, [AxisPlan((2, 2))], dtype=array.dtype, chunks=[(12,)])
    got = map_tiles(box_sum, array, [broken], dtype=array.dtype, chunks=[(4, 4, 4)])
    assert not np.allclose(got, whole)


def test_nothing_is_computed_when_building():
    def refuse(graph, keys, **options):
        raise AssertionError("computed while building")

    source = dask.array.from_array(np.arange(24.0).reshape(4, 6), chunks=(2, 3)) + 1
    with dask.config.set(scheduler=refuse):
        lazy = map_tiles(box_sum, source, [AxisPlan((1, 1)), AxisPlan((1, 1), True)], dtype=source.dtype)
        assert lazy.shape == (4, 6)
        with pytest.raises(AssertionError, match="computed"):
            lazy.compute()


def test_the_function_is_not_called_when_building():
    def refuse(block, parts):
        raise AssertionError("called while building")

    map_tiles(refuse, dask.array.zeros((4, 6), chunks=2), [AxisPlan(), AxisPlan()], dtype=np.dtype("f8"))


def test_keys_depend_on_token_input_and_plans_only():
    array = np.arange(24.0).reshape(4, 6)

    def name(*, values=array, chunks=2, halo=1, token="model"):
        plans = [AxisPlan((halo, halo)), AxisPlan()]
        source = dask.array.from_array(values, chunks=chunks)
        return map_tiles(lambda block, parts: block, source, plans, dtype=array.dtype, token=token).name

    assert name() == name()
    others = {name(values=array + 1), name(chunks=3), name(halo=2), name(token="other")}
    assert len(others | {name()}) == 5


def test_the_graph_is_small_and_picklable():
    """A task holds the function once and slices: nothing that grows with the number of tiles squared."""

    def size(tiles: int) -> int:
        source = dask.array.zeros((tiles * 4, 8), chunks=(4, 8))
        lazy = map_tiles(np.negative, source, [AxisPlan((1, 1)), AxisPlan()], dtype=source.dtype)
        return len(pickle.dumps(dict(lazy.__dask_graph__())))

    assert size(64) / size(16) < 4.6
    assert size(64) / 64 < 3000


def test_culling_leaves_the_neighbours_only():
    """A corner of the result needs its own chunks and those around, not the archive."""
    source = dask.array.zeros((400, 8), chunks=(4, 8))
    lazy = map_tiles(np.negative, source, [AxisPlan((1, 1)), AxisPlan()], dtype=source.dtype)
    (part,) = dask.optimize(lazy[200:204])
    assert len(dict(part.__dask_graph__())) < 12


@given(st.integers(1, 500), st.integers(1, 600))
def test_split(size, largest):
    chunks = split(size, largest)
    assert sum(chunks) == size
    assert max(chunks) <= largest
    assert min(chunks) >= 1
    assert max(chunks) - min(chunks) <= 1
    assert len(chunks) == -(-size // largest)
