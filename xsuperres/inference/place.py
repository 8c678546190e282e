"""Where an archive is: its store, its folder if it is a local one; and whether what was written there is there to stay.

Knows zarr and files; neither xarray nor dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xsuperres.errors import ConfigError, StoreError, XSuperResError

__all__ = ["Place", "chunk_keys", "confirm", "flush", "place_of"]

_PATIENCE = 30.0  # seconds that a shared file system may take to show what another host wrote
_LOCAL_URL = re.compile(r"(?:file|local):(?://(?P<host>[^/]*))?(?P<path>.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where an archive is: a Zarr store, its name for messages, its folder if it is a local one."""

    store: Any
    name: str
    folder: Path | None


def place_of(store: Any, storage_options: Mapping[str, Any] | None = None) -> Place:
    """Return the place that a path, a URL or a Zarr store means; local ones by their absolute path.

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
    text = os.fspath(store) if isinstance(store, (str, os.PathLike)) else ""
    path = _local_path(text)
    if text and path is None:
        try:
            return Place(FsspecStore.from_url(text, storage_options=dict(storage_options or {})), text, None)
        except (ImportError, ValueError) as error:
            raise StoreError(f"Cannot reach {text!r}: {error}. Check the URL and storage_options.") from error
    if storage_options:
        raise ConfigError(f"storage_options are of the file system behind a URL, {store!r} is none; leave them out.")
    if path is not None:
        folder = path.expanduser().resolve()
        return Place(LocalStore(folder), str(folder), folder)
    if isinstance(store, LocalStore):
        store = copy.copy(store)
        store.root = Path(store.root).resolve()  # workers may have another working directory
        return Place(store, str(store.root), store.root)
    if hasattr(store, "supports_writes"):  # any other store of Zarr
        return Place(store, str(store), None)
    raise ConfigError(f"store must be a path, a URL like 's3://bucket/fine.zarr' or a Zarr store, got {store!r}.")


def _local_path(text: str) -> Path | None:
    """Return the path that a text means, None if it is empty or a URL of another kind."""
    url = _LOCAL_URL.fullmatch(text)
    if url is None:
        return None if not text or "://" in text else Path(text)
    if (url["host"] or "localhost").lower() != "localhost" or not url["path"]:
        raise ConfigError(f"Expected a URL of a local folder like 'file:///data/fine.zarr', got {text!r}.")
    return Path(url["path"])


def chunk_keys(array: Any, region: Mapping[Any, slice]) -> list[str]:
    """Return the keys of the stored objects, chunks or shards, that hold a region of a Zarr array.

    Parameters
    ----------
    region : mapping
        By the names of its dims, slices that begin at borders of stored objects.
    """
    sizes = array.shards or array.chunks
    parts = [region[dim] for dim in array.metadata.dimension_names]
    ranges = [range(part.start // size, -(-part.stop // size)) for part, size in zip(parts, sizes, strict=True)]
    return [f"{array.path}/{array.metadata.encode_chunk_key(index)}" for index in itertools.product(*ranges)]


def confirm(place: Place, keys: Sequence[str]) -> None:
    """Make sure that objects are in the store as this process sees it, and on the disk of a local one.

    Raises
    ------
    StoreError
        If some are not there: whatever wrote them did so elsewhere.
    """
    missing, end = _missing(place.store, keys), time.monotonic() + _PATIENCE
    while missing and time.monotonic() < end:
        time.sleep(1.0)
        if hasattr(place.store, "fs"):  # of fsspec: it may remember a folder as it was before others wrote
            place.store.fs.invalidate_cache()
        missing = _missing(place.store, missing)
    if missing:
        raise StoreError(
            f"{len(missing)} of {len(keys)} chunks that were just written are not in {place.name!r} ({missing[0]!r}): "
            "the workers do not see the store that this process sees. Name one that all of them share, such as a "
            "folder of a common file system or a bucket; memory is of one process."
        )
    if place.folder is not None:
        flush(place.folder, keys)


def _missing(store: Any, keys: Sequence[str]) -> list[str]:
    from zarr.core.sync import sync

    async def found() -> list[bool]:
        return await asyncio.gather(*(store.exists(key) for key in keys))

    return [key for key, there in zip(keys, sync(found()), strict=True) if not there]


def flush(folder: Path, keys: Iterable[str] | None = None) -> None:
    """Have the system write files of a folder to the disk, all by default, and the folders that name them."""
    files = [folder / key for key in keys] if keys is not None else [p for p in folder.rglob("*") if p.is_file()]
    folders = {above for path in files for above in path.parents if above == folder or folder in above.parents}
    with ThreadPoolExecutor(8) as pool:  # the disk takes several at once
        list(pool.map(_flush, [*files, *folders, folder.parent]))


def _flush(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            stack.enter_context(contextlib.suppress(OSError))  # not every system can
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)
