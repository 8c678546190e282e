"""Archives: a lazy Dataset written to Zarr region by region, so that a killed process can be gone on with.

Labelled arrays in; metadata and coordinates are written first, then regions of whole blocks in a fixed order. A region
counts as done when all of it is there, else it is written again, whole. `place` says where that is, `identity` what
tells runs apart, `journal` keeps what is done, `regions` cuts, `template` writes what comes before the fields.
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
from xsuperres.inference.identity import difference
from xsuperres.inference.journal import RECORD, Journal, is_blank, locked, owned, stored_identity, sweep
from xsuperres.inference.place import Place, chunk_keys, confirm, flush, place_of
from xsuperres.inference.plan import Plan
from xsuperres.inference.regions import region_from, with_blocks
from xsuperres.inference.template import Encoding, check_template, fields_of, loaded, write_template
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
    place, budget = place_of(store, storage_options), region_budget(memory_budget)
    request = uuid.uuid4().hex
    results = plan.in_blocks(budget).result(request)
    fine = _contents(results, extra, attrs)
    run = plan.identity(fine, encoding)
    write_archive(place, fine, run, request, resume=resume, encoding=encoding, budget=budget, progress=progress)
    return [open_archive(place, str(da.name or _UNNAMED), da) for da in results]


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


def region_budget(given: int | None) -> int:
    """Return the bytes of the result that are written at once: given, or those of the options."""
    options = current_options()
    return int((options if given is None else replace(options, memory_budget=given)).memory_budget)


def open_archive(place: Place, name: str, like: xr.DataArray) -> xr.DataArray:
    """Return the field of a finished archive that `like` was written as: lazy, its coordinates in memory."""
    ds = xr.open_zarr(place.store, chunks={}, consolidated=True, decode_coords="all")
    da = ds[name].rename(like.name)
    da = da.drop_vars([name for name in da.coords if name not in like.coords])
    da = da.assign_coords({name: coordinate.variable.load() for name, coordinate in da.coords.items()})
    _refer_like(da, like)
    for key, coordinate in da.coords.items():
        _refer_like(coordinate, like.coords[key])
    return da


def _refer_like(da: xr.DataArray, like: xr.DataArray) -> None:
    """Put the names of other variables back to where `like` has them."""
    for key in _REFERENCES:
        da.encoding.pop(key, None)
        if key in like.attrs:
            da.attrs[key] = like.attrs[key]
        if key in like.encoding:
            da.encoding[key] = like.encoding[key]


def write_archive(
    place: Place,
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
    encoding = dict(encoding or {})
    blocks = check_template(fine, encoding, budget)
    _check_kind(place)
    if _is_finished(place, identity, resume):
        logger.info("The archive %r is finished; it is opened as it is.", place.name)
        return
    if place.store.read_only:
        raise StoreError(f"{place.name!r} is opened read-only; pass a store that can be written to, or its path.")
    with locked(place.folder) as held:
        journal = _journal(place, identity, blocks, resume, held)
        if journal is not None:
            with owned(journal, leased=not held):
                if place.folder is not None:
                    sweep(place.folder, ours=True)
                if not journal.entries["done"]:
                    _begin(place, journal, fine, encoding, identity, blocks)
                fine = with_blocks(fine, dict(journal.entries["blocks"]))
                go_on(request, journal.entries.get("range"))
                _write_regions(place, fine, journal, request, budget=budget, progress=progress)
                journal.remove()
        _consolidate(place.store)
        if place.folder is not None:
            flush(place.folder, ["zarr.json"])


def _check_kind(place: Place) -> None:
    if not place.store.read_only and not place.store.supports_deletes:
        raise StoreError(
            f"{place.name!r} is a {type(place.store).__name__}, in which nothing can be replaced, as the record of "
            "what is done must be; write to a folder or a bucket, and pack that when it is finished."
        )


def _begin(
    place: Place,
    journal: Journal,
    fine: xr.Dataset,
    encoding: Encoding,
    identity: Mapping[str, Any],
    blocks: Mapping[str, int],
) -> None:
    """Write what comes before the fields, in place of what another run, of which no region is done, has left."""
    journal.restart(identity, blocks)
    write_template(place.store, with_blocks(fine, blocks), encoding, identity)
    if place.folder is not None:
        flush(place.folder)


def _is_finished(place: Place, identity: Mapping[str, Any], resume: bool) -> bool:
    """Return whether the store is a finished archive of this run; refuse one of another run."""
    import zarr

    stored = stored_identity(place.store)
    if stored is None or Journal.find(place.store) is not None:
        return False
    _check_same(place, stored, identity, resume)
    root = zarr.open_group(place.store, mode="r", zarr_format=3)
    _check_whole(place, root, identity)
    return root.metadata.consolidated_metadata is not None


def _check_whole(place: Place, root: Any, identity: Mapping[str, Any]) -> None:
    """Refuse a part of an archive: xarray copies the mark of a whole one with the other attributes."""
    for name, labels in identity["fields"].items():
        array = root.get(name)
        found = {} if array is None else dict(zip(array.metadata.dimension_names, array.shape, strict=True))
        wanted = {dim: size for dim, size in labels.items() if dim != "dtype"}
        if found != wanted:
            raise StoreError(
                f"{place.name!r} has the mark of an archive, but {name!r} of {found}, not {wanted}: it is a part of "
                "one, or a copy of a part. Name another store, or delete that one."
            )


def _check_same(place: Place, stored: Mapping[str, Any], identity: Mapping[str, Any], resume: bool) -> None:
    """Refuse to go on with an archive of another run, or without being asked to."""
    found = difference(stored, identity)
    if found is not None:
        raise StoreError(f"{place.name!r} holds an archive of {found}. Name another store, or delete that one.")
    if not resume:
        raise StoreError(
            f"{place.name!r} holds an archive of this run already, but resume=False expects an empty place; pass "
            "resume=True to go on with it, or delete it."
        )


def _journal(
    place: Place, identity: Mapping[str, Any], blocks: Mapping[str, int], resume: bool, held: bool
) -> Journal | None:
    """Return the journal to go on with, or a new one; None if nothing is left to be written."""
    journal = Journal.find(place.store)
    stored = stored_identity(place.store) if journal is None else journal.entries["identity"]
    if stored is not None and (journal is None or journal.entries["done"]):  # else there is nothing to be mixed
        _check_same(place, stored, identity, resume)
    if place.folder is not None and held:  # without a lock another process may be at work
        sweep(place.folder, ours=stored is not None)
    if stored is not None:
        return journal
    _make_root(place)
    return Journal.begin(place.store, identity, blocks)


def _make_root(place: Place) -> None:
    """Make an empty group in an empty place: the first thing that is written."""
    import zarr

    try:
        zarr.open_group(place.store, mode="w-", zarr_format=3)
    except FileExistsError as error:
        if not is_blank(place.store):
            raise StoreError(
                f"{place.name!r} exists, but downscale_to_zarr did not write it; name another store, or delete what is "
                "there."
            ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot write to {place.name!r} ({error}); name a store that you may write to.") from error


def _write_regions(
    place: Place, fine: xr.Dataset, journal: Journal, request: str, *, budget: int, progress: bool
) -> None:
    """Compute and write what is missing, region by region.

    Chunks are written also where all is missing: one that is not there did not get there.
    """
    import zarr

    root = zarr.open_group(place.store, mode="r", zarr_format=3, use_consolidated=False)
    bare = xr.Dataset({da.name: (da.dims, da.data) for da in fields_of(fine)})  # attributes are there
    arrays, blocks = [root[str(name)] for name in bare], dict(journal.entries["blocks"])
    counts = [-(-bare.sizes[dim] // size) for dim, size in blocks.items()]
    block = math.prod(blocks.values()) * sum(variable.dtype.itemsize for variable in bare.values())
    plane, cells = math.prod([bare.sizes[dim] for dim in blocks][-2:]), math.prod(bare.sizes.values())
    total, start = math.prod(counts), journal.entries["cells"] // plane
    if journal.entries["done"]:
        logger.info("Going on with %r after %d of %d blocks.", place.name, journal.entries["done"], total)
    with tqdm(total=cells // plane, initial=start, unit=" fields", desc="downscale", disable=not progress) as bar:
        while journal.entries["done"] < total:
            boxes = region_from(journal.entries["done"], counts, budget // block)
            region = _cells(boxes, blocks, bare.sizes)
            part = bare.isel(region)
            part.to_zarr(
                place.store, region=region, mode="r+", write_empty_chunks=True, consolidated=False, zarr_format=3
            )
            confirm(place, [key for array in arrays for key in chunk_keys(array, region)])
            done = journal.entries["done"] + math.prod(box.stop - box.start for box in boxes)
            written = journal.entries["cells"] + math.prod(part.sizes.values())
            journal.note({"done": done, "cells": written, "range": so_far(request)})
            if place.folder is not None:
                flush(place.folder, [RECORD])
            bar.update(journal.entries["cells"] // plane - bar.n)


def _cells(boxes: Sequence[slice], blocks: Mapping[str, int], sizes: Mapping[Any, int]) -> dict[str, slice]:
    """Return the cells of a box of blocks, by dim."""
    pairs = zip(boxes, blocks.items(), strict=True)
    return {dim: slice(box.start * size, min(box.stop * size, sizes[dim])) for box, (dim, size) in pairs}


def _consolidate(store: Any) -> None:
    """Write all metadata into one object, last of all."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(store, zarr_format=3)
