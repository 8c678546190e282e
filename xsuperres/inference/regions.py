"""How an archive is cut: blocks that are computed at once, chunks that are stored, regions that are written one by one.

Blocks of the result cover whole stored chunks, regions cover whole blocks. Labelled arrays in `in_blocks` and
`with_blocks`, which are lazy; plain numbers elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from xsuperres.errors import warn
from xsuperres.fields.field import Field
from xsuperres.model.artefact import SRModel
from xsuperres.tiles import split

__all__ = ["in_blocks", "region_from", "stored_chunk", "with_blocks"]

_SMALLEST, _LARGEST = 2**20, 2**25  # bytes of a stored chunk: few objects, none that is slow to read a part of
_BLOCKS = 8  # blocks of a region, at least, where fields are small enough


def in_blocks(fields: Sequence[Field], model: SRModel, *, budget: int) -> list[Field]:
    """Return coarse fields as dask arrays with regular chunks, whose results are of a good size to be written.

    Chunks along leading dims are kept where that is so, else merged or cut; rows are cut where a single field is more
    than the budget. Coordinates stay as they are. Members are blocks of their own.

    Parameters
    ----------
    budget : int
        Bytes of the result that are written as one region.
    """
    first, grid, lead = fields[0].array, fields[0].grid, fields[0].lead
    whole = {dim: max(sizes, default=1) for dim, sizes in first.chunksizes.items()} or dict(first.sizes)
    cell = sum(field.array.dtype.itemsize for field in fields) * model.scale**2
    field = cell * math.prod(first.sizes[dim] for dim in grid.dims)
    window = None if model.spec.time_window is None else fields[0].times.along
    least = [8 * sum(model.time_halo) if dim == window else 1 for dim in lead]  # else frames are encoded twice
    blocks = _lead_blocks([first.sizes[dim] for dim in lead], [whole[dim] for dim in lead], least, field, budget)
    plan = {**whole, **dict(zip(lead, blocks, strict=True))}
    if math.prod(blocks) * field > budget and model.halo is not None:
        y, x = grid.dims
        row = cell * math.prod(blocks) * first.sizes[x]
        rows = max(budget // _BLOCKS // max(1, row), 4 * model.halo, 1)  # else most of the work is done on halos
        plan[y] = min(plan[y], rows)
    plan = {dim: max(1, size) for dim, size in plan.items()}
    if fields[0].lazy:
        order = [*lead, *grid.dims]
        _check_reads([(first.sizes[dim], whole[dim], plan[dim]) for dim in order], order, cell, model.scale, budget)
    return [f.with_array(_chunked(f.array, {dim: plan[dim] for dim in f.array.dims})) for f in fields]


def _check_reads(
    axes: Sequence[tuple[int, int, int]], dims: Sequence[object], cell: int, scale: int, budget: int
) -> None:
    """Warn if chunks are read so often, once for each region that they reach into, that reading outweighs writing.

    Parameters
    ----------
    axes : sequence of (size, chunk, block)
        Of the coarse data, in the order in which blocks are written.
    cell : int
        Bytes of the result of a coarse cell.
    """
    blocks = max(1, budget // (cell * math.prod(block for *_, block in axes)))
    region = region_from(0, [max(1, -(-size // block)) for size, _, block in axes], blocks)
    reach = [(part.stop - part.start) * block for part, (*_, block) in zip(region, axes, strict=True)]
    times = [-(-chunk // cells) for (_, chunk, _), cells in zip(axes, reach, strict=True)]
    reads = math.prod(times)
    if reads > scale**2:
        along = [str(dim) for dim, often in zip(dims, times, strict=True) if often > 1]
        warn(
            f"Chunks of the coarse data reach over {reads} regions along {along}, and are read again for each. Store "
            f"the data in smaller chunks along {along}, or pass a memory_budget of up to {reads * budget / 2**20:.0f} "
            "MiB."
        )


def _lead_blocks(
    sizes: Sequence[int], given: Sequence[int], least: Sequence[int], field: int, budget: int
) -> list[int]:
    """Return how many steps a block has along each leading dim: as given, or fewer, or a multiple.

    `least` steps are kept together along a dim if it has them; `field` is the size of a step's result in bytes.
    """
    share = max(1, budget // _BLOCKS)
    most, fewest = max(1, share // max(1, field)), min(_SMALLEST, share) / max(1, field)
    blocks = [max(1, block) for block in given]
    for axis, block in enumerate(blocks):
        largest = max(1, least[axis], most // math.prod(blocks[axis + 1 :]))
        if block > largest:
            even = split(block, largest)[0]
            even = even - even % 8 if even > 8 else even  # what stored chunks can divide
            blocks[axis] = max(even, min(block, least[axis]))
    for axis in reversed(range(len(blocks))):
        factor = math.ceil(max(fewest / math.prod(blocks), least[axis] / blocks[axis]))
        blocks[axis] = min(max(1, sizes[axis]), blocks[axis] * max(1, factor))
    return blocks


def _chunked(da: xr.DataArray, plan: Mapping[object, int]) -> xr.DataArray:
    """Return `da` with other chunks; `DataArray.chunk` would chunk its coordinates too."""
    return da.copy(deep=False, data=da.variable.chunk(plan).data)


def with_blocks(ds: xr.Dataset, blocks: Mapping[str, int]) -> xr.Dataset:
    """Return `ds` with its variables along all these dims in blocks of these sizes; no work where they are so."""
    fields = {name: da for name, da in ds.items() if {str(dim) for dim in da.dims} == set(blocks)}
    return ds.assign({name: _chunked(da, {dim: blocks[str(dim)] for dim in da.dims}) for name, da in fields.items()})


def stored_chunk(block: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the chunk that a block is stored in: a divisor of it, of 1 to 32 MiB where there is one.

    Leading axes are cut first.

    Examples
    --------
    >>> stored_chunk((120, 721, 1440), 4)
    (8, 721, 1440)
    """
    chunk = [max(1, size) for size in block]
    for axis, size in enumerate(chunk):
        rest = itemsize * math.prod(chunk[axis + 1 :])
        divisors = sorted({d for n in range(1, math.isqrt(size) + 1) if size % n == 0 for d in (n, size // n)})
        fitting = max((n for n in divisors if n * rest <= _LARGEST), default=1)
        if fitting * rest < _SMALLEST:
            fitting = next((n for n in divisors if n * rest >= _SMALLEST), size)
        chunk[axis] = fitting
        if rest <= _LARGEST:
            break
    return tuple(chunk)


def region_from(start: int, counts: Sequence[int], most: int) -> tuple[slice, ...]:
    """Return the largest box of at most `most` blocks that begins at block `start` and leaves no gap in C order.

    Examples
    --------
    >>> region_from(0, (4, 3), 7)
    (slice(0, 2, None), slice(0, 3, None))
    >>> region_from(1, (4, 3), 7)
    (slice(0, 1, None), slice(1, 3, None))
    """
    index = [int(at) for at in np.unravel_index(start, counts)]
    box, inner = [1] * len(counts), 1
    for axis in reversed(range(len(counts))):
        box[axis] = min(counts[axis] - index[axis], max(1, most // inner))
        if box[axis] < counts[axis]:
            break
        inner *= counts[axis]
    return tuple(slice(at, at + size) for at, size in zip(index, box, strict=True))
