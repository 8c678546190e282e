"""Tiles of an array with their neighbours: which cells each block needs, and a lazy or eager map over blocks.

Dask and numpy only. A window is one chunk along one axis: the cells it covers, widened by the halo, cut at a
true domain edge (there is no neighbour there), wrapped on a periodic axis, as often as it takes. The mapped
function gets the widened block and where it starts, returns the block refined by ``scale``, and the part that
came from the halo is trimmed. Lazy and eager maps share the windows, so they give the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["AxisPlan", "Window", "map_tiles", "split", "windows"]

TileFunction = Callable[..., np.ndarray]


@dataclass(frozen=True)
class AxisPlan:
    """How one axis is tiled: halo in cells before and after, wrap-around, refinement of the output."""

    halo: tuple[int, int] = (0, 0)
    periodic: bool = False
    scale: int = 1


@dataclass(frozen=True)
class Window:
    """One block along one axis.

    `pieces` lists (chunk, start, stop) in the order in which they are joined, start and stop counted inside the
    chunk. `origin` is the index of the first cell of the joined block; negative before a periodic axis' first
    cell. `before` and `core` are the widening before the chunk and the chunk's own size, in cells.
    """

    pieces: tuple[tuple[int, int, int], ...]
    origin: int
    before: int
    core: int

    def trim(self, scale: int) -> slice:
        """Return the cells of the refined block that belong to the chunk itself."""
        return slice(self.before * scale, (self.before + self.core) * scale)


def windows(chunks: Sequence[int], plan: AxisPlan) -> list[Window]:
    """Return the window of every chunk of an axis.

    Examples
    --------
    >>> windows([4, 4], AxisPlan(halo=(1, 1)))[0].pieces
    ((0, 0, 4), (1, 0, 1))
    >>> windows([4, 4], AxisPlan(halo=(1, 1), periodic=True))[0].pieces
    ((1, 3, 4), (0, 0, 4), (1, 0, 1))
    """
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
        return [(max(0, int(np.searchsorted(edges, low, side="left")) - 1) if low else 0, 0, 0)]
    while at < high:
        lap, cell = divmod(at, size)
        chunk = int(np.searchsorted(edges, cell, side="right")) - 1
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
) -> Any:
    """Map `function` over the blocks of `array` and join the results.

    Parameters
    ----------
    function : callable
        ``function(block, origin=...)`` with the joined, widened block and the tuple of its origins; returns the
        block refined by the axes' scales.
    array : numpy or dask array
        Dask: lazy, one task per output block and a slice per neighbour. Numpy: computed at once.
    plans : sequence of AxisPlan
        One per axis.
    chunks : sequence of chunk sizes per axis, optional
        Of a numpy array; a dask array has its own.
    name, token : str, object
        Prefix of the keys, and what identifies `function` for them: the same token and input give the same keys.
    """
    if chunks is None:
        chunks = array.chunks if hasattr(array, "dask") else tuple((size,) for size in array.shape)
    per_axis = [windows(sizes, plan) for sizes, plan in zip(chunks, plans, strict=True)]
    if hasattr(array, "dask"):
        return _map_lazy(function, array, plans, per_axis, dtype=dtype, name=name, token=token)
    return _map_eager(function, array, plans, per_axis, dtype=dtype, chunks=chunks)


def _map_eager(
    function: TileFunction,
    array: np.ndarray,
    plans: Sequence[AxisPlan],
    per_axis: list[list[Window]],
    *,
    dtype: np.dtype,
    chunks: Sequence[Sequence[int]],
) -> np.ndarray:
    scales = [plan.scale for plan in plans]
    if all(len(found) == 1 and len(found[0].pieces) == 1 for found in per_axis):  # nothing to join or to trim
        return function(array, origin=(0,) * array.ndim)
    out = np.empty([size * scale for size, scale in zip(array.shape, scales, strict=True)], dtype)
    starts = [np.concatenate([[0], np.cumsum(sizes)]).tolist() for sizes in chunks]
    for index in itertools.product(*(range(len(found)) for found in per_axis)):
        block, parts = array, []
        for axis, at in enumerate(index):
            window = per_axis[axis][at]
            block = _take(block, axis, window, starts[axis])
            parts.append(window)
        target = tuple(
            slice(starts[axis][at] * scales[axis], (starts[axis][at] + parts[axis].core) * scales[axis])
            for axis, at in enumerate(index)
        )
        out[target] = _run(function, [block], None, tuple(parts), tuple(scales))
    return out


def _take(block: np.ndarray, axis: int, window: Window, starts: list[int]) -> np.ndarray:
    """Return the window's cells along `axis`; a view where it is one piece."""
    lead = (slice(None),) * axis
    parts = [block[(*lead, slice(starts[chunk] + start, starts[chunk] + stop))] for chunk, start, stop in window.pieces]
    contiguous = window.origin >= 0 and window.origin + sum(p.shape[axis] for p in parts) <= starts[-1]
    if contiguous:
        length = sum(p.shape[axis] for p in parts)
        return block[(*lead, slice(window.origin, window.origin + length))]
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
) -> Any:
    import dask.array
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    scales = tuple(plan.scale for plan in plans)
    key = f"{name}-{tokenize(token, array, plans)}"
    graph: dict[Any, Any] = {}
    for index in itertools.product(*(range(len(found)) for found in per_axis)):
        parts = tuple(per_axis[axis][at] for axis, at in enumerate(index))
        shape = tuple(len(part.pieces) for part in parts)
        blocks = [
            _source(graph, key, array, combination)
            for combination in itertools.product(*(part.pieces for part in parts))
        ]
        graph[(key, *index)] = (_run, function, blocks, shape, parts, scales)
    chunks = tuple(
        tuple(window.core * scale for window in found) for found, scale in zip(per_axis, scales, strict=True)
    )
    layers = HighLevelGraph.from_collections(key, graph, dependencies=[array])
    return dask.array.Array(layers, key, chunks, dtype=dtype)


def _source(graph: dict[Any, Any], key: str, array: Any, pieces: tuple[tuple[int, int, int], ...]) -> Any:
    """Return the key of one piece of the input: a whole chunk, or a slice of it made a task of its own."""
    chunk = tuple(piece[0] for piece in pieces)
    whole = all(start == 0 and stop == array.chunks[axis][at] for axis, (at, start, stop) in enumerate(pieces))
    source = (array.name, *chunk)
    if whole:
        return source
    cut = tuple(slice(start, stop) for _, start, stop in pieces)
    label = (f"{key}-edge", *(number for piece in pieces for number in piece))
    graph[label] = (_cut, source, cut)
    return label


def _cut(block: np.ndarray, cut: tuple[slice, ...]) -> np.ndarray:
    """Return a copy of a part of a chunk, so that the chunk itself can be freed."""
    return np.ascontiguousarray(block[cut])


def _run(
    function: TileFunction,
    blocks: list[np.ndarray],
    shape: tuple[int, ...] | None,
    parts: tuple[Window, ...],
    scales: tuple[int, ...],
) -> np.ndarray:
    """Join the pieces, call the function, trim the halo."""
    block = blocks[0] if len(blocks) == 1 else _join(blocks, shape or ())
    refined = function(block, origin=tuple(part.origin for part in parts))
    return refined[tuple(part.trim(scale) for part, scale in zip(parts, scales, strict=True))]


def _join(blocks: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Concatenate blocks, listed in C order of `shape`, along every axis."""
    for axis in range(len(shape) - 1, -1, -1):
        count = shape[axis]
        blocks = [
            blocks[at] if count == 1 else np.concatenate(blocks[at : at + count], axis=axis)
            for at in range(0, len(blocks), count)
        ]
    return blocks[0]
