"""Sums over blocks of cells: what metrics are made of, in one pass over the data.

Numpy in and out, dask where the data are lazy. A block holds whole planes (..., y, x) in canonical order. A `Partial`
says what a block contributes (`chunk`), how two contributions become one (`combine`) and what the total means
(`finalize`), as flox declares an aggregation; metrics share partials, each is computed once. Contributions are combined
in the order of the cells: in memory one after the other, lazily in a tree of tasks. Sums are float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid
from xsuperres.fields.resample import coarsen_array, interpolate_array

__all__ = ["AreaMean", "Baseline", "CoarseBlock", "Domain", "Partial", "ScoredCells", "Summation"]

_SLAB = 2**17  # cells that are worked on at a time: their float64 copies stay in the processor's cache
_BLOCK = 2**24  # cells of a lazy block, where chunks along y or x had to be joined
_FAN = 8  # contributions that a task combines

State = list[np.ndarray]  # of each partial: (part, product, region, *left)
Totals = dict["Partial", np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """What is the same for all blocks.

    Parameters
    ----------
    grid : Grid
        Of the fine cells.
    scale : int
        Fine cells per coarse cell along each axis.
    regions : ndarray (region, y, x)
        Cell areas, 0 outside the region.
    dims : tuple
        Of the scored field: leading ones, then y and x.
    reduced : tuple of bool
        Over which of these dims sums are taken; the others are `left`.
    """

    grid: Grid
    scale: int
    regions: np.ndarray
    dims: tuple[Hashable, ...]
    reduced: tuple[bool, ...]

    @classmethod
    def of(cls, field: Field, scale: int, regions: Iterable[np.ndarray], left: Container[Hashable]) -> Domain:
        """Return the domain of a scored field whose dims are reduced but for `left`, with regions as areas (y, x)."""
        dims = (*field.lead, *field.grid.dims)
        grid = replace(field.grid, coords={})  # axes are all that blocks need of it
        reduced = tuple(dim not in left for dim in dims)
        return cls(grid=grid, scale=scale, regions=np.stack(list(regions)), dims=dims, reduced=reduced)

    @cached_property
    def area(self) -> np.ndarray:
        """Cell areas (y, x)."""
        return self.grid.area

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of `values` (*lead, y, x) times the cell areas in each region: (region, *left).

        Where y and x are left there is nothing to weigh, and one sum for all regions.
        """
        total = values.sum(tuple(np.flatnonzero(self.reduced[:-2])), dtype=np.float64)  # cheaper before areas come in
        match self.reduced[-2:]:
            case (True, True):
                by_region = self.regions.reshape(len(self.regions), -1) @ total.reshape(-1, self.area.size).T
                return by_region.reshape(-1, *total.shape[:-2])
            case (True, False):
                return np.einsum("...yx,ryx->r...x", total, self.regions)
            case (False, True):
                return np.einsum("...yx,ryx->r...y", total, self.regions)
        return total[None]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredCells:
    """A block of cells of one product, with the truth.

    Parameters
    ----------
    prediction, truth : ndarray (*lead, y, x)
        float64; NaN in the same cells, where the truth or any product is missing.
    coarse : ndarray (*lead, Y, X)
        What the products were made from, float64; leading dims may be of size 1.
    valid : ndarray of bool (*lead, y, x), or None
        Those that count; None: all.
    covered : ndarray (region, *left)
        Their area.
    domain : Domain
        Grid, scale, regions, dims.
    """

    prediction: np.ndarray
    truth: np.ndarray
    coarse: np.ndarray
    valid: np.ndarray | None
    covered: np.ndarray
    domain: Domain

    @cached_property
    def error(self) -> np.ndarray:
        """Prediction minus truth."""
        return self.prediction - self.truth

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the area-weighted sums of `values`, and the area they come from: (2, region, *left).

        Parameters
        ----------
        values : ndarray (*lead, y, x)
            NaN is missing; cells that do not count are left out whatever they hold. A leading dim may be of size 1, as
            of one value for all members.
        """
        values = np.broadcast_to(values, self.prediction.shape)
        if self.valid is None:
            total = self.domain.sums(values)
            if not np.isnan(total).any():  # else some value is missing in cells that count
                return np.stack([total, self.covered])
        present = ~np.isnan(values)
        if self.valid is not None:
            present &= self.valid
        total = self.domain.sums(np.where(present, values, 0.0))
        whole = self.valid is not None and np.array_equal(present, self.valid)
        return np.stack([total, self.covered if whole else self.domain.sums(present)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Partial(ABC):
    """What metrics are made of: a contribution of each block, and how contributions add up.

    Parameters
    ----------
    of_truth : bool
        Whether it does not depend on the prediction: it is computed once for all products.
    whole : tuple of str
        Leading dims that no block may cut, as members whose ranks are counted.
    """

    of_truth: bool = False
    whole: tuple[Hashable, ...] = ()

    @abstractmethod
    def chunk(self, cells: ScoredCells) -> np.ndarray:
        """Return the contribution of a block, (part, region, *left): as many parts as it needs."""

    def combine(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the contribution of two blocks, in order."""
        return one + other

    def finalize(self, total: np.ndarray) -> np.ndarray:
        """Return what metrics get of the contribution of all blocks, (part, product, region, *left)."""
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class AreaMean(Partial):
    """The area-weighted mean of a number of each cell, NaN where there is none.

    Parameters
    ----------
    of : callable
        From `ScoredCells` to the numbers (*lead, y, x); NaN is missing.
    """

    of: Callable[[ScoredCells], np.ndarray]

    def chunk(self, cells: ScoredCells) -> np.ndarray:
        """Return the sum and the area it comes from."""
        return cells.sums(self.of(cells))

    def finalize(self, total: np.ndarray) -> np.ndarray:
        """Return the mean (product, region, *left)."""
        return np.divide(total[0], total[1], out=np.full(total[0].shape, np.nan), where=total[1] > 0)


class CoarseBlock:
    """A block of the coarse field, which is interpolated to fine cells once by each method.

    Parameters
    ----------
    values : ndarray (..., Y, X)
        In canonical order; NaN is missing.
    scale : int
        Fine cells per coarse cell along each axis.
    periodic : bool
        Whether x covers a full circle.
    """

    def __init__(self, values: np.ndarray, scale: int, *, periodic: bool) -> None:
        self.values, self.scale, self.periodic = values, scale, periodic
        self._fine: dict[tuple[str, Any], np.ndarray] = {}

    def interpolated(self, method: str, change: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Return the values, after a change if there is one, on the fine cells: (..., y, x), dtype kept."""
        if (method, change) not in self._fine:
            values = self.values if change is None else change(self.values)
            self._fine[method, change] = interpolate_array(values, self.scale, method, periodic=self.periodic)
        return self._fine[method, change]


Baseline = Callable[[CoarseBlock], np.ndarray]  # makes the fine cells (..., y, x) of a block


@dataclass(frozen=True, kw_only=True, eq=False)
class Summation:
    """The partial sums of a field and of its baselines, over the cells that are valid in all of them and the truth.

    Parameters
    ----------
    domain : Domain
        Grid, regions, dims to reduce.
    baselines : tuple of callable
        The products that the field is compared with: each makes its fine cells of a `CoarseBlock`.
    partials : tuple of Partial
        What is summed up.
    periodic : bool
        Whether the coarse field covers a full circle.
    minimum_valid_fraction : float
        Of the area of a coarse cell, where the coarse field is made from the truth.
    """

    domain: Domain
    baselines: tuple[Baseline, ...]
    partials: tuple[Partial, ...]
    periodic: bool
    minimum_valid_fraction: float = 0.5

    def totals(self, fine: xr.Variable, truth: xr.Variable, coarse: xr.Variable | None) -> Totals:
        """Return the finished partials of all cells; lazy data are computed, once.

        Parameters
        ----------
        fine, truth : Variable (*lead, y, x)
            In canonical order; the truth may lack leading dims.
        coarse : Variable (*lead, Y, X) or None
            The coarse cells in the order of the fine ones; None: the coarsening of the truth.
        """
        lead = self.domain.dims[:-2]
        variables = [
            variable.transpose(*(dim for dim in lead if dim in variable.dims), *variable.dims[-2:])
            for variable in ([fine, truth] if coarse is None else [fine, truth, coarse])
        ]
        if any(variable.chunks is not None for variable in variables):
            state = self._computed(variables)
        else:
            state = self.state([self.expanded(variable.values, variable.dims) for variable in variables])
        return {partial: partial.finalize(total) for partial, total in zip(self.partials, state, strict=True)}

    def by_region(self, values: np.ndarray) -> np.ndarray:
        """Return a finished metric with a value for every product and region: (product, region, *left).

        What is of the truth alone is that of all products; in maps every region has the values of its cells.
        """
        regions = self.domain.regions
        shape = (1 + len(self.baselines), len(regions), *values.shape[2:])
        if any(self.domain.reduced[-2:]):
            return np.broadcast_to(values, shape)
        inside = regions.reshape(len(regions), *(1 for _ in values.shape[4:]), *regions.shape[1:]) > 0
        return np.where(inside, values, np.broadcast_to(np.nan, shape))

    def expanded(self, values: np.ndarray, dims: Sequence[Hashable]) -> np.ndarray:
        """Return values (..., y, x) with a dim of size 1 for each leading dim that they lack."""
        return values[tuple(slice(None) if dim in dims else None for dim in self.domain.dims[:-2])]

    def state(self, arrays: Sequence[np.ndarray]) -> State:
        """Return the contributions of a block: of the field, the truth and, if it is not made of it, the coarse field.

        Leading dims are those of the domain, of size 1 where an array is the same for all; the block is worked on in
        slabs of a few planes.
        """

        def slab(index: tuple[slice, ...]) -> State:
            cuts = (zip(values.shape, index, strict=False) for values in arrays)
            parts = (tuple(slice(None) if size == 1 else cut for size, cut in pairs) for pairs in cuts)
            return self._slab(*(values[part] for values, part in zip(arrays, parts, strict=True)))

        return _nested(self._cuts(arrays[0].shape), slab, self.merged)

    def merged(self, states: Iterable[State], axis: int) -> State:
        """Return the state of blocks in order along a leading dim: combined if it is reduced, else side by side."""
        if self.domain.reduced[axis]:
            return reduce(self._combined, states)
        at = 3 + sum(not reduced for reduced in self.domain.reduced[:axis])
        return [np.concatenate(totals, axis=at) for totals in zip(*states, strict=True)]

    def _combined(self, one: State, other: State) -> State:
        return [partial.combine(a, b) for partial, a, b in zip(self.partials, one, other, strict=True)]

    @property
    def _whole(self) -> set[Hashable]:
        """Leading dims that are not cut."""
        return {dim for partial in self.partials for dim in partial.whole}

    def _cuts(self, shape: tuple[int, ...]) -> list[list[slice]]:
        """Return how the leading dims are cut so that a slab has few cells, the last dims the least."""
        planes, cuts = max(1, _SLAB // (shape[-2] * shape[-1])), []
        for dim, size in zip(self.domain.dims[-3::-1], shape[-3::-1], strict=True):
            step = max(1, size if dim in self._whole else min(size, planes))
            planes = max(1, planes // step)
            cuts.append([slice(start, start + step) for start in range(0, max(size, 1), step)])
        return cuts[::-1]

    def _slab(self, fine: np.ndarray, truth: np.ndarray, coarse: np.ndarray | None = None) -> State:
        """Return the contributions of a few planes."""
        domain = self.domain
        if coarse is None:
            coarse = coarsen_array(truth, domain.area, domain.scale, minimum_valid_fraction=self.minimum_valid_fraction)
        block = CoarseBlock(coarse, domain.scale, periodic=self.periodic)
        products = [fine, *(baseline(block) for baseline in self.baselines)]
        shared = reduce(np.logical_and, (~np.isnan(values) for values in (truth, *products)))
        shared = np.broadcast_to(shared, fine.shape)
        valid = None if shared.all() else shared

        def counted(values: np.ndarray) -> np.ndarray:
            whole = np.broadcast_to(values, fine.shape)
            return whole.astype(np.float64) if valid is None else np.where(valid, whole, np.float64(np.nan))

        true, covered, source = counted(truth), domain.sums(shared), coarse.astype(np.float64)
        chunks: list[list[np.ndarray]] = [[] for _ in self.partials]
        for product in products:
            cells = ScoredCells(
                prediction=counted(product), truth=true, coarse=source, valid=valid, covered=covered, domain=domain
            )
            for partial, found in zip(self.partials, chunks, strict=True):
                if not (partial.of_truth and found):
                    found.append(partial.chunk(cells))
        return [np.stack(found, axis=1) for found in chunks]

    def _computed(self, variables: Sequence[xr.Variable]) -> State:
        """Return the state of lazy data, computed: one task for each block, and a tree of tasks that merge."""
        import dask
        import dask.array

        lead, plan, merge = self.domain.dims[:-2], dask.delayed(self, traverse=False), dask.delayed(_merged, pure=False)
        label = {dim: at for at, dim in enumerate(lead)}
        pairs: list[Any] = []
        for variable, plane in zip(variables, ((-2, -1), (-2, -1), (-4, -3)), strict=False):
            pairs += [self._in_planes(variable), (*(label[dim] for dim in variable.dims[:-2]), *plane)]
        boxes = dask.array.blockwise(
            _boxed,
            tuple(label.values()),
            *pairs,
            plan=plan,
            dims=[variable.dims for variable in variables],
            concatenate=True,
            adjust_chunks=dict.fromkeys(label.values(), 1),
            dtype=object,
            meta=np.empty((0,) * len(lead), object),
        ).to_delayed()

        def merged(tasks: Iterator[Any], axis: int) -> Any:
            level = list(tasks)
            while self.domain.reduced[axis] and len(level) > 1:
                level = [merge(plan, level[at : at + _FAN], axis) for at in range(0, len(level), _FAN)]
            return level[0] if self.domain.reduced[axis] else merge(plan, level, axis)

        cuts = [[slice(at, at + 1) for at in range(count)] for count in boxes.shape]
        return _unboxed(_nested(cuts, lambda index: boxes[index].item(), merged).compute())

    def _in_planes(self, variable: xr.Variable) -> Any:
        """Return the data as a dask array whose blocks are whole in y and x, and along dims that are not cut."""
        import dask.array

        data = dask.array.asarray(variable.data)
        whole: dict[int, Any] = {axis: -1 for axis, dim in enumerate(variable.dims) if dim in self._whole}
        whole |= {data.ndim - 2: -1, data.ndim - 1: -1}
        joined = data.rechunk(whole)
        if joined.numblocks[-2:] != data.numblocks[-2:] and np.prod(joined.chunksize) > _BLOCK:
            rest = dict.fromkeys(set(range(data.ndim)) - set(whole), "auto")
            joined = data.rechunk(whole | rest, block_size_limit=_BLOCK * data.dtype.itemsize)
        return joined


def _nested(
    cuts: Sequence[Sequence[slice]],
    part: Callable[[tuple[slice, ...]], Any],
    merged: Callable[[Iterator[Any], int], Any],
    chosen: tuple[slice, ...] = (),
) -> Any:
    """Return the parts at all combinations of cuts, merged dim by dim, the last one first."""
    axis = len(chosen)
    if axis == len(cuts):
        return part(chosen)
    return merged((_nested(cuts, part, merged, (*chosen, cut)) for cut in cuts[axis]), axis)


def _boxed(*arrays: np.ndarray, plan: Summation, dims: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """Return the state of a block as the one item of an array: dask arrays are made of arrays."""
    box = np.empty(1, object)
    box[0] = plan.state([plan.expanded(values, names) for values, names in zip(arrays, dims, strict=True)])
    return box.reshape((1,) * (arrays[0].ndim - 2))


def _unboxed(box: Any) -> State:
    state: State = box.item() if isinstance(box, np.ndarray) else box
    return state


def _merged(plan: Summation, boxes: list[Any], axis: int) -> State:
    return plan.merged([_unboxed(box) for box in boxes], axis)
