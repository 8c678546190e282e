"""Archives: a lazy Dataset written to Zarr region by region; after a kill the same call goes on, to the same bytes.

Labelled arrays in and out. Metadata and coordinates are written first, then regions of whole blocks in a fixed order. A
region counts as done when all of it is there, else it is written again, whole. `target` says where that is, `identity`
what tells runs apart, `record` how far it is, `regions` cuts, `template` makes what comes before the fields.
"""

from __future__ import annotations

import logging
import math
import uuid
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import xarray as xr
from tqdm import tqdm

from xsuperres.errors import DataError, StoreError
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.field import Field
from xsuperres.fields.labels import with_bounds
from xsuperres.inference.guard import go_on, so_far
from xsuperres.inference.plan import Plan
from xsuperres.inference.record import ROOT, ArchiveRecord, archive_root, locked, marks
from xsuperres.inference.regions import region_from, with_blocks
from xsuperres.inference.target import ArchiveTarget, archive_target, chunk_keys, confirm
from xsuperres.inference.template import Encoding, blocks_of, check_size, fields_of, loaded, template_of
from xsuperres.options import current_options

__all__ = ["open_archive", "region_budget", "write", "write_archive"]

_REFERENCES = ("bounds", "climatology", "coordinates", "grid_mapping")  # attributes that xarray moves to encodings
_UNNAMED = "field"  # what a DataArray without a name is stored as

logger = logging.getLogger(__name__)


def write(
    plan: Plan,
    store: Any,
    *,
    extra: Mapping[Hashable, xr.Variable],
    attrs: Mapping[Any, Any],
    resume: bool,
    encoding: Encoding | None,
    storage_options: Mapping[str, Any] | None,
    memory_budget: int | None,
    progress: bool,
) -> list[xr.DataArray]:
    """Write the fine fields of a plan to an archive, or what is missing of them, and return them from there, lazy.

    Parameters
    ----------
    extra : mapping
        Variables that go with the fields, such as the bounds of times.
    attrs : mapping
        Of the Dataset.
    resume, encoding, storage_options, memory_budget, progress
        See `SuperResolutionAccessor.downscale_to_zarr`.
    """
    target, budget = archive_target(store, storage_options), region_budget(memory_budget)
    request = uuid.uuid4().hex
    results = plan.in_blocks(budget).result(request)
    fine = _contents(results, extra, attrs)
    run = plan.identity(fine, encoding)
    write_archive(target, fine, run, request, resume=resume, encoding=encoding, budget=budget, progress=progress)
    return open_archive(target, {str(da.name or _UNNAMED): da for da in results}, fine)


def _contents(
    results: Sequence[xr.DataArray], extra: Mapping[Hashable, xr.Variable], attrs: Mapping[Any, Any]
) -> xr.Dataset:
    """Return what an archive holds: the lazy results, the bounds of their cells, and what else goes with them."""
    for da in results:
        if da.name is None and _UNNAMED in da.coords:
            raise DataError(
                f"Data without a name are stored as {_UNNAMED!r}, but a coordinate has that name; give them one: "
                "da.rename('tas')."
            )
    parts = [with_bounds(Field(da), extra) for da in results]
    fine = xr.merge(parts, combine_attrs="override", compat="identical", join="exact")
    names = [da.name or _UNNAMED for da in results]
    clashing = [name for name in names if not is_lazy(fine[name])]
    if clashing:
        raise DataError(f"The archive stores cell bounds under the names {clashing}; rename these fields.")
    return loaded(fine.assign_attrs({**attrs, **fine.attrs}), names)


def region_budget(memory_budget: int | None) -> int:
    """Return the bytes of the result that are written at once, by default those of the options."""
    options = current_options()
    return int((options if memory_budget is None else replace(options, memory_budget=memory_budget)).memory_budget)


def open_archive(target: ArchiveTarget, results: Mapping[str, xr.DataArray], fine: xr.Dataset) -> list[xr.DataArray]:
    """Return the fields of a finished archive: their values lazy, their coordinates in memory.

    Parameters
    ----------
    results : mapping
        By the names that they are stored under, the lazy results that were to be written, whose labels are theirs.
    fine : Dataset
        What was to be written, all but these fields in memory.
    """
    others = [name for name in fine.variables if name not in results]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated metadata")  # it may be taken out
        stored = xr.open_zarr(target.store, chunks={}, drop_variables=others, zarr_format=3)
    return [_labelled(stored[name].variable, like, fine) for name, like in results.items()]


def _labelled(stored: xr.Variable, like: xr.DataArray, fine: xr.Dataset) -> xr.DataArray:
    """Return a stored field with the labels of `like`; names of other variables stay where `like` has them."""
    da = like.copy(deep=False, data=stored.data)
    rest = {name: coordinate for name, coordinate in like.coords.items() if name not in like.indexes}
    da = da.assign_coords(
        {name: c.variable.copy(deep=False, data=fine.variables[name].values) for name, c in rest.items()}
    )
    for mine, theirs, other in ((da.attrs, like.attrs, stored.attrs), (da.encoding, like.encoding, stored.encoding)):
        names = {key: theirs[key] for key in _REFERENCES if key in theirs}
        mine.clear()
        mine.update({key: value for key, value in other.items() if key not in _REFERENCES} | names)
    return da


def write_archive(
    target: ArchiveTarget,
    fine: xr.Dataset,
    identity: Mapping[str, Any],
    request: str,
    *,
    resume: bool,
    encoding: Encoding | None,
    budget: int,
    progress: bool,
) -> None:
    """Write a lazy Dataset to a store, or what is missing of it.

    Parameters
    ----------
    fine : Dataset
        Its dask-backed variables are written by region, in blocks of their chunks, by the scheduler in force; the
        others are in memory.
    identity : mapping
        What identifies the run, see `identity.identify`.
    request : str
        The name under which the guard of the fields counts; its counts are kept, too, for who goes on.
    resume : bool
        Go on with what another process of the same run left; a finished archive is left as it is.
    encoding : mapping, optional
        Of variables, over what is chosen here.
    budget : int
        Bytes of a region, of at least one block.
    progress : bool
        Show a progress bar.

    Raises
    ------
    StoreError
        If the store is of another run, not an archive, read-only, being written by another process, or not seen by what
        computes.
    ConfigError, DataError
        If the encoding or the data cannot be written to Zarr.
    """
    _check_kind(target)
    root = archive_root(target, identity, resume=resume)
    if root is not None and root.progress is None:
        logger.info("The archive %r is finished; it is opened as it is.", target.name)
        return
    if target.store.read_only:
        raise StoreError(f"{target.name!r} is opened read-only; pass a store that can be written to, or its path.")
    encoding = dict(encoding or {})
    blocks = blocks_of(fine, encoding) if root is None or root.progress is None else root.progress.blocks
    check_size(fine, encoding, blocks, budget)
    template = template_of(fine, encoding, blocks, marks(identity, blocks))
    with locked(target) as alone:
        record = ArchiveRecord.claim(target, identity, template, resume=resume, alone=alone)
        try:
            _write_template(record, template, blocks)
            _write_regions(record, with_blocks(fine, blocks), request, budget=budget, progress=progress)
            record.finish()
        except (StoreError, FileNotFoundError):
            if record.progress() is not None:  # else another process of the same run was faster
                raise
            logger.info("%r was finished by another process of the same run.", target.name)


def _check_kind(target: ArchiveTarget) -> None:
    if not target.store.read_only and not target.store.supports_deletes:
        raise StoreError(
            f"{target.name!r} is a {type(target.store).__name__}, in which nothing can be replaced, as the record of "
            "what is done must be; write to a folder or a bucket, and pack that when it is finished."
        )


def _write_template(record: ArchiveRecord, template: Mapping[str, bytes], blocks: Mapping[str, int]) -> None:
    """Write what comes before the fields, unless a region is done, which comes after it."""
    begun = record.unfinished()
    if begun.blocks != blocks:
        raise StoreError(f"Another process began {record.target.name!r} just now; call again to go on with it.")
    if not begun.done:
        record.writer.write({key: content for key, content in template.items() if key != ROOT})


def _write_regions(record: ArchiveRecord, fine: xr.Dataset, request: str, *, budget: int, progress: bool) -> None:
    """Compute and write what is missing, region by region, or what other processes of the same run leave of it.

    Chunks are written also where all is missing: one that is not there did not get there.
    """
    import zarr

    begun, target = record.unfinished(), record.target
    root = zarr.open_group(target.store, mode="r", zarr_format=3, use_consolidated=False)
    bare = xr.Dataset({da.name: (da.dims, da.data) for da in fields_of(fine)})  # attributes are there
    arrays = [root[str(name)] for name in bare]
    counts = [-(-bare.sizes[dim] // size) for dim, size in begun.blocks.items()]
    block = math.prod(begun.blocks.values()) * sum(variable.dtype.itemsize for variable in bare.values())
    plane, cells = math.prod([bare.sizes[dim] for dim in begun.blocks][-2:]), math.prod(bare.sizes.values())
    total = math.prod(counts)
    if begun.done:
        logger.info("Going on with %r after %d of %d blocks.", target.name, begun.done, total)
    go_on(request, begun.range)
    options = {"initial": begun.cells // plane, "unit": " fields", "desc": "downscale", "disable": not progress}
    with tqdm(total=cells // plane, **options) as bar:
        while (now := record.unfinished()).done < total:
            boxes = region_from(now.done, counts, budget // block)
            region = _cells(boxes, now.blocks, bare.sizes)
            part = bare.isel(region)
            part.to_zarr(
                record.writer.store,
                region=region,
                mode="r+",
                write_empty_chunks=True,
                consolidated=False,
                zarr_format=3,
            )
            confirm(target, [key for array in arrays for key in chunk_keys(array, region)])
            done = now.done + math.prod(box.stop - box.start for box in boxes)
            written = now.cells + math.prod(part.sizes.values())
            record.note(done, written, so_far(request))
            bar.update(written // plane - bar.n)


def _cells(boxes: Sequence[slice], blocks: Mapping[str, int], sizes: Mapping[Any, int]) -> dict[str, slice]:
    """Return the cells of a box of blocks, by dim."""
    pairs = zip(boxes, blocks.items(), strict=True)
    return {dim: slice(box.start * size, min(box.stop * size, sizes[dim])) for box, (dim, size) in pairs}
