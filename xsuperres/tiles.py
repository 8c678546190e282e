"""Tiles of an array with their neighbours: which cells each block needs, and a lazy or eager map over blocks.

Dask and numpy only. A window is one chunk along one axis: the cells it covers, widened by the halo, cut at a
true domain edge (there is no neighbour there), wrapped on a periodic axis, as often as it takes. The mapped
function gets the widened block and its windows, returns the block refined by ``scale``, and the part that came from
the halo is trimmed; along a ``consumed`` axis it returns the chunk's own cells only. Lazy and eager maps share the
windows, so they give the same numbers.

The lazy graph is small: one task per output block, and one per side of a chunk that a neighbour needs. A side is cut
once for all blocks along a consumed axis (time), which take what they need of its length, and an axis of one chunk
wraps inside the block.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["AxisPlan", "Window", "map_tiles", "plane_plans", "split", "windows"]

TileFunction = Callable[..., np.ndarray]
Piece = tuple[int, int, int]  # chunk, start, stop
Along = tuple[tuple[int, ...], np.ndarray]


@dataclass(frozen=True)
class AxisPlan:
    """How one axis is tiled: halo in cells before and after, wrap-around, refinement of the output.

    `consumed`: the function needs the halo, and returns no cells for it. `count`: how many cells it returns along an
    axis of one chunk whose cells it mixes. `copies`: how many blocks are made, one by one, of the only cell of an axis;
    the origin of their window counts them.
    """

    halo: tuple[int, int] = (0, 0)
    periodic: bool = False
    scale: int = 1
    consumed: bool = False
    count: int | None = None
    copies: int | None = None

    def size(self, core: int) -> int:
        """Return how many cells come of `core` cells."""
        return core * self.scale if self.count is None else self.count

    def trim(self, window: Window) -> slice:
        """Return the cells of the function's result that belong to the chunk itself."""
        if self.consumed or self.count is not None:
            return slice(None)
        return slice(window.before * self.scale, (window.before + window.core) * self.scale)


def plane_plans(ndim: int, periodic: tuple[bool, bool], halo: int, scale: int) -> list[AxisPlan]:
    """Return the tiling of data (..., y, x): a halo on y and x, which wraps where the axis is periodic."""
    return [AxisPlan()] * (ndim - 2) + [AxisPlan((halo, halo), wraps, scale) for wraps in periodic]


@dataclass(frozen=True)
class Window:
    """One block along one axis.

    `pieces` lists (chunk, start, stop) in the order in which they are joined, start and stop counted inside the
    chunk. `origin` is the index of the first cell of the joined block; negative before a periodic axis' first
    cell. `before` and `core` are the widening before the chunk and the chunk's own size, in cells.
    """

    pieces: tuple[Piece, ...]
    origin: int
    before: int
    core: int

    @property
    def own(self) -> slice:
        """The cells of the widened block that are the chunk's own."""
        return slice(self.before, self.before + self.core)

    @property
    def chunk(self) -> int:
        """Which chunk it is, counted along the axis; copies are one."""
        rest = self.before
        for chunk, start, stop in self.pieces:
            if rest <= 0:
                return chunk
            rest -= stop - start
        return self.pieces[-1][0]  # it has no cells

    @property
    def size(self) -> int:
        """How many cells the widened block has."""
        return sum(stop - start for _, start, stop in self.pieces)

    @property
    def sources(self) -> tuple[Piece, ...]:
        """What must be there to join the block: the pieces, or what they span of one chunk that gives them all."""
        chunks, starts, stops = zip(*self.pieces, strict=True)
        if len(set(chunks)) == 1:
            return ((chunks[0], min(starts), max(stops)),)
        return self.pieces

    @property
    def placed(self) -> Iterator[Piece]:
        """The pieces as (first cell in the block, start, stop in what the sources hold)."""
        alone = self.sources[0] if len(self.sources) == 1 else None
        first = 0
        for _, start, stop in self.pieces:
            yield (first, start, stop) if alone is None else (first, start - alone[1], stop - alone[1])
            first += stop - start


def windows(chunks: Sequence[int], plan: AxisPlan) -> list[Window]:
    """Return the window of every chunk of an axis.

    Examples
    --------
    >>> windows([4, 4], AxisPlan(halo=(1, 1)))[0].pieces
    ((0, 0, 4), (1, 0, 1))
    >>> windows([4, 4], AxisPlan(halo=(1, 1), periodic=True))[0].pieces
    ((1, 3, 4), (0, 0, 4), (1, 0, 1))
    """
    if plan.copies is not None:
        return [Window(((0, 0, 1),), copy, 0, 1) for copy in range(plan.copies)]
    size = sum(chunks)
    edges = np.concatenate([[0], np.cumsum(chunks)]).tolist()
    found = []
    for start, stop in itertools.pairwise(edges):
        low, high = start - plan.halo[0], stop + plan.halo[1]
        if not plan.periodic:
            low, high = max(low, 0), min(high, size)
        found.append(Window(tuple(_pieces(low, high, edges)), low, start - low, stop - start))
    return found


def _pieces(low: int, high: int, edges: list[int]) -> list[tuple[int, int, int]]:
    """Return the parts of chunks that cover [low, high), indices taken modulo the axis."""
    pieces, size, at = [], edges[-1], low
    if low == high:  # a chunk without cells still has to be read
        return [(max(0, bisect_left(edges, low) - 1) if low else 0, 0, 0)]
    while at < high:
        lap, cell = divmod(at, size)
        chunk = bisect_right(edges, cell) - 1
        stop = min(edges[chunk + 1], high - lap * size)
        pieces.append((chunk, cell - edges[chunk], stop - edges[chunk]))
        at = lap * size + stop
    return pieces


def split(size: int, largest: int) -> tuple[int, ...]:
    """Return chunks of at most `largest` cells, as even as possible.

    Examples
    --------
    >>> split(10, 4)
    (4, 3, 3)
    """
    count = -(-size // max(1, min(largest, size)))
    base, extra = divmod(size, count)
    return tuple(base + (index < extra) for index in range(count))


def map_tiles(
    function: TileFunction,
    array: Any,
    plans: Sequence[AxisPlan],
    *,
    dtype: np.dtype,
    chunks: Sequence[Sequence[int]] | None = None,
    name: str = "tiles",
    token: object = None,
    along: Along | None = None,
) -> Any:
    """Map `function` over the blocks of `array` and join the results.

    Parameters
    ----------
    function : callable
        ``function(block, parts)`` with the joined, widened block and its window along each axis, and the cells of
        `along` as a third argument where that is given; returns the block refined by the axes' scales.
    array : numpy or dask array
        Dask: lazy, one task per output block and a slice per neighbour. Numpy: computed at once.
    plans : sequence of AxisPlan
        One per axis.
    chunks : sequence of chunk sizes per axis, optional
        Of a numpy array; a dask array has its own.
    name, token : str, object
        Prefix of the keys, and what identifies `function` for them: the same token and input give the same keys.
    along : tuple of (axes, ndarray (size, ..., k)), optional
        What is known of each cell along axes that do not wrap; each block gets its own.
    """
    if chunks is None:
        chunks = array.chunks if hasattr(array, "dask") else tuple((size,) for size in array.shape)
    per_axis = [windows(sizes, plan) for sizes, plan in zip(chunks, plans, strict=True)]
    if hasattr(array, "dask"):
        return _map_lazy(function, array, plans, per_axis, dtype=dtype, name=name, token=token, along=along)
    return _map_eager(function, array, plans, per_axis, dtype=dtype, chunks=chunks, along=along)


def _map_eager(
    function: TileFunction,
    array: np.ndarray,
    plans: Sequence[AxisPlan],
    per_axis: list[list[Window]],
    *,
    dtype: np.dtype,
    chunks: Sequence[Sequence[int]],
    along: Along | None,
) -> np.ndarray:
    if all(len(found) == 1 and len(found[0].pieces) == 1 for found in per_axis):  # nothing to join or to trim
        parts = tuple(found[0] for found in per_axis)
        return function(array, parts, *_beside(along, parts))
    sizes = [[plan.size(window.core) for window in found] for found, plan in zip(per_axis, plans, strict=True)]
    out = np.empty([sum(along_axis) for along_axis in sizes], dtype)
    corners = [np.cumsum([0, *along_axis]).tolist() for along_axis in sizes]
    starts = [np.cumsum([0, *along_axis]).tolist() for along_axis in chunks]
    for index in itertools.product(*(range(len(found)) for found in per_axis)):
        block, parts = array, tuple(per_axis[axis][at] for axis, at in enumerate(index))
        for axis, window in enumerate(parts):
            block = _take(block, axis, window, starts[axis])
        done = _refined(function, plans, parts, _beside(along, parts), block)
        out[tuple(slice(*corners[axis][at : at + 2]) for axis, at in enumerate(index))] = done
    return out


def _beside(along: Along | None, parts: tuple[Window, ...]) -> tuple[np.ndarray, ...]:
    """Return the cells of `along` that a block covers, as the function's further argument, if there is one."""
    if along is None:
        return ()
    axes, values = along
    return (values[tuple(slice(parts[a].origin, parts[a].origin + parts[a].size) for a in axes)],)


def _take(block: np.ndarray, axis: int, window: Window, starts: list[int]) -> np.ndarray:
    """Return the window's cells along `axis`; a view where they follow each other."""
    lead = (slice(None),) * axis
    if window.origin >= 0 and window.origin + window.size <= starts[-1]:
        return block[(*lead, slice(window.origin, window.origin + window.size))]
    parts = [block[(*lead, slice(starts[chunk] + start, starts[chunk] + stop))] for chunk, start, stop in window.pieces]
    return np.concatenate(parts, axis=axis)


def _map_lazy(
    function: TileFunction,
    array: Any,
    plans: Sequence[AxisPlan],
    per_axis: list[list[Window]],
    *,
    dtype: np.dtype,
    name: str,
    token: object,
    along: Along | None,
) -> Any:
    import dask.array
    from dask._task_spec import Task
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    plans = tuple(plans)
    key = f"{name}-{tokenize(token, array, plans, along)}"
    graph: dict[Any, Any] = {}
    sides = _Sides(array, f"{key}-side", [plan.consumed for plan in plans], graph)
    sources = [[window.sources for window in found] for found in per_axis]
    for index in itertools.product(*(range(len(found)) for found in per_axis)):
        parts = tuple(per_axis[axis][at] for axis, at in enumerate(index))
        pieces = itertools.product(*(sources[axis][at] for axis, at in enumerate(index)))
        blocks = [sides.reference(combination) for combination in pieces]
        label = (key, *index)
        graph[label] = Task(label, _run, function, plans, parts, _beside(along, parts), *blocks)
    chunks = tuple(
        tuple(plan.size(window.core) for window in found) for found, plan in zip(per_axis, plans, strict=True)
    )
    layers = HighLevelGraph.from_collections(key, graph, dependencies=[array])
    return dask.array.Array(layers, key, chunks, dtype=dtype)


class _Sides:
    """The parts of chunks that blocks are joined from, each a task of `graph` unless it is a whole chunk."""

    def __init__(self, array: Any, name: str, consumed: list[bool], graph: dict[Any, Any]) -> None:
        self.source, self.chunks, self.name, self.graph = array.name, array.chunks, name, graph
        self.free = [axis for axis, is_consumed in enumerate(consumed) if not is_consumed]

    def reference(self, pieces: tuple[Piece, ...]) -> Any:
        """Return a reference to what holds `pieces`, maybe longer along consumed axes."""
        from dask._task_spec import Task, TaskRef

        numbers = [piece[0] for piece in pieces]
        cut = [a for a, (n, start, stop) in enumerate(pieces) if stop - start < self.chunks[a][n]]
        if not cut:
            return TaskRef((self.source, *numbers))
        shared = [axis for axis in cut if axis in self.free] or cut
        spans = [piece[1:] if axis in shared else (None, None) for axis, piece in enumerate(pieces)]
        label: tuple[Any, ...] = (self.name, *numbers, *itertools.chain(*spans))
        if label not in self.graph:
            self.graph[label] = Task(label, _cut, TaskRef((self.source, *numbers)), tuple(slice(*s) for s in spans))
        return TaskRef(label)


def _cut(block: np.ndarray, cut: tuple[slice, ...]) -> np.ndarray:
    """Return a copy of a part of a chunk, so that the chunk itself can be freed."""
    return np.ascontiguousarray(block[cut])


def _run(
    function: TileFunction,
    plans: tuple[AxisPlan, ...],
    parts: tuple[Window, ...],
    beside: tuple[np.ndarray, ...],
    *blocks: np.ndarray,
) -> np.ndarray:
    """Join the blocks, one per combination of the windows' sources, and refine what they make."""
    return _refined(function, plans, parts, beside, _joined(blocks, parts))


def _refined(
    function: TileFunction,
    plans: Sequence[AxisPlan],
    parts: tuple[Window, ...],
    beside: tuple[np.ndarray, ...],
    block: np.ndarray,
) -> np.ndarray:
    """Call the function and trim the halo."""
    refined = function(block, parts, *beside)
    return refined[tuple(plan.trim(part) for part, plan in zip(parts, plans, strict=True))]


def _joined(blocks: Sequence[np.ndarray], parts: tuple[Window, ...]) -> np.ndarray:
    """Return the windows' cells from blocks, listed in C order of the windows' sources."""
    if len(blocks) == 1 and all(len(part.pieces) == 1 for part in parts):
        return blocks[0]
    out = np.empty([part.size for part in parts], blocks[0].dtype)
    counts = [len(part.sources) for part in parts]
    for pieces in itertools.product(*(enumerate(part.placed) for part in parts)):
        at = [number if count > 1 else 0 for (number, _), count in zip(pieces, counts, strict=True)]
        block = blocks[int(np.ravel_multi_index(at, counts))]
        cells = [
            slice(None) if block.shape[axis] == stop - start else slice(start, stop)
            for axis, (_, (_, start, stop)) in enumerate(pieces)
        ]
        out[tuple(slice(first, first + stop - start) for _, (first, start, stop) in pieces)] = block[tuple(cells)]
    return out
