"""Archives: a lazy Dataset written to Zarr region by region, so that a killed process can be gone on with.

Labelled arrays in; metadata and coordinates are written first, then regions of whole blocks in a fixed order. A region
counts as done when all of it is there, else it is written again, whole. `identity` says what tells runs apart,
`journal` keeps what is done, `regions` cuts, `template` writes what comes before the fields.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm import tqdm

from xsuperres.errors import ConfigError, StoreError, XSuperResError
from xsuperres.fields.grid import find_axes
from xsuperres.inference.guard import go_on, so_far
from xsuperres.inference.identity import difference
from xsuperres.inference.journal import IDENTITY, Journal, is_blank, locked, owned, stored_identity, sweep
from xsuperres.inference.regions import region_from, with_blocks
from xsuperres.inference.template import Encoding, blocks_of, check_encoding, fields_of, write_template
from xsuperres.options import current_options

__all__ = ["Place", "open_archive", "place_of", "region_budget", "write_archive"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where an archive is: a Zarr store, its name for messages, its folder if it is a local one."""

    store: Any
    name: str
    folder: Path | None


def place_of(store: Any, storage_options: Mapping[str, Any] | None = None) -> Place:
    """Return the place that a path, a URL or a Zarr store means.

    Raises
    ------
    XSuperResError
        If zarr 3 is not installed, there is no such protocol, or what it needs is not installed.
    """
    try:
        from zarr.storage import FsspecStore, LocalStore
    except ImportError as error:
        raise XSuperResError(
            "Archives need zarr 3, which is not installed; install it with pip install 'xsuperres[io]'."
        ) from error
    if isinstance(store, (str, os.PathLike)) and str(store):
        text = os.fspath(store)
        if "://" not in text or text.startswith("file://"):
            folder = Path(text.removeprefix("file://")).expanduser().resolve()
            return Place(LocalStore(folder), str(folder), folder)
        try:
            return Place(FsspecStore.from_url(text, storage_options=dict(storage_options or {})), text, None)
        except (ImportError, ValueError) as error:
            raise StoreError(f"Cannot reach {text!r}: {error}. Check the URL and storage_options.") from error
    if isinstance(store, LocalStore):
        return Place(store, str(store.root), Path(store.root).resolve())
    if hasattr(store, "supports_writes"):  # any other store of Zarr
        return Place(store, str(store), None)
    raise ConfigError(f"store must be a path, a URL like 's3://bucket/fine.zarr' or a Zarr store, got {store!r}.")


def region_budget(given: int | None) -> int:
    """Return the bytes of the result that are written at once: given, or those of the options."""
    options = current_options()
    return int((options if given is None else replace(options, memory_budget=given)).memory_budget)


def open_archive(place: Place) -> xr.Dataset:
    """Return a finished archive as results are: fields lazy, the rest in memory, no bounds of horizontal cells."""
    ds = xr.open_zarr(place.store, chunks={}, consolidated=True, decode_coords="all")
    ds = ds.assign_coords({name: coordinate.variable.load() for name, coordinate in ds.coords.items()})
    ds.attrs.pop(IDENTITY, None)
    names = find_axes(fields_of(ds)[0])
    for coordinate in ds.coords.values():
        bounds = coordinate.encoding.pop("bounds", None)
        if bounds in ds.coords and not {names.y, names.x} & set(ds[bounds].dims):
            coordinate.attrs["bounds"] = bounds
    return ds


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
        Its dask-backed variables are written by region, in blocks of their chunks, by the scheduler in force.
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
        If the store is of another run, not an archive, read-only, or being written by another process.
    """
    encoding = dict(encoding or {})
    if encoding:
        check_encoding(fine, encoding)
    if _is_finished(place, identity, resume):
        logger.info("The archive %r is finished; it is opened as it is.", place.name)
        return
    if place.store.read_only:
        raise StoreError(f"{place.name!r} is opened read-only; pass a store that can be written to, or its path.")
    with locked(place.folder):
        journal = _journal(place, identity, blocks_of(fine, encoding), resume)
        if journal is not None:
            with owned(journal, leased=place.folder is None):
                fine = with_blocks(fine, dict(journal.entries["blocks"]))
                if not journal.entries["written"]:
                    write_template(place.store, fine, encoding, identity)
                    journal.note({"written": True})
                go_on(request, journal.entries.get("range"))
                _write_regions(place, fine, journal, request, budget=budget, progress=progress)
                journal.remove()
        _consolidate(place.store)


def _is_finished(place: Place, identity: Mapping[str, Any], resume: bool) -> bool:
    """Return whether the store is a finished archive of this run; refuse one of another run."""
    import zarr

    stored = stored_identity(place.store)
    if stored is None or Journal.find(place.store) is not None:
        return False
    _check_same(place, stored, identity, resume)
    return zarr.open_group(place.store, mode="r", zarr_format=3).metadata.consolidated_metadata is not None


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


def _journal(place: Place, identity: Mapping[str, Any], blocks: Mapping[str, int], resume: bool) -> Journal | None:
    """Return the journal to go on with, or a new one; None if nothing is left to be written."""
    journal = Journal.find(place.store)
    stored = stored_identity(place.store) if journal is None else journal.entries["identity"]
    if stored is not None:
        _check_same(place, stored, identity, resume)
    if place.folder is not None:
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
    """Compute and write what is missing, region by region."""
    bare = xr.Dataset({da.name: da.variable for da in fields_of(fine)})
    blocks = dict(journal.entries["blocks"])
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
            part.to_zarr(place.store, region=region, mode="r+", consolidated=False, zarr_format=3)
            done = journal.entries["done"] + math.prod(box.stop - box.start for box in boxes)
            cells = journal.entries["cells"] + math.prod(part.sizes.values())
            journal.note({"done": done, "cells": cells, "range": so_far(request)})
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
