"""Where an archive lies: its Zarr store, objects of it read and written whole, and whether they are there to stay.

Knows zarr's stores and files; neither xarray nor dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import os
import re
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xsuperres.errors import ConfigError, StoreError, XSuperResError

__all__ = ["UNSEEN", "ArchiveTarget", "archive_target", "chunk_keys", "confirm", "flush"]

UNSEEN = (
    "the workers do not see the store that this process sees. Name one that all of them share, such as a folder of a "
    "common file system or a bucket; memory is of one process."
)
_PATIENCE = 30.0  # seconds that a shared file system may take to show what another host wrote
_LOCAL_URL = re.compile(r"(?:file|local):(?://(?P<host>[^/]*))?(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_HALF_WRITTEN = re.compile(r"(?P<name>.+)\.[0-9a-f]{32}\.partial")  # how zarr calls a local file until it is whole


@dataclass(frozen=True)
class ArchiveTarget:
    """Where an archive lies: a Zarr store, its name for messages, its folder if it is a local one."""

    store: Any
    name: str
    folder: Path | None

    def read(self, key: str) -> bytes | None:
        """Return an object of the store, None if there is none; nothing is created.

        Raises
        ------
        StoreError
            If the store cannot be read.
        """
        if self.folder is not None and not self.folder.is_dir():
            return None
        from zarr.core.buffer import default_buffer_prototype

        try:
            found = _run(self.store.get(key, default_buffer_prototype()))
        except OSError as error:
            raise StoreError(
                f"{self.name!r} cannot be read ({error}); if it is there, nothing is lost: check connection and "
                "permissions, then call again."
            ) from error
        return None if found is None else found.to_bytes()

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write objects, each whole and at once, in place of those of the same keys; on the disk of a local store."""
        self._put(self.store.set, objects)

    def write_new(self, key: str, content: bytes) -> None:
        """Write an object if there is none of this key; read it to know which one it is."""
        self._put(self.store.set_if_not_exists, {key: content})

    def _put(self, put: Any, objects: Mapping[str, bytes]) -> None:
        from zarr.core.buffer import default_buffer_prototype

        new = default_buffer_prototype().buffer.from_bytes

        async def all_of_them() -> None:
            await asyncio.gather(*(put(key, new(content)) for key, content in objects.items()))

        try:
            _run(all_of_them())
        except StoreError:
            raise
        except (OSError, ValueError) as error:
            raise StoreError(f"Cannot write to {self.name!r} ({error}); name a store that you may write to.") from error
        if self.folder is not None:
            flush(self.folder, objects)

    def strangers(self) -> list[str]:
        """Return what lies at the top of the store, but for root objects that zarr had not written to the end."""
        if self.folder is None:
            return _run(_listed(self.store))
        if not self.folder.is_dir():
            return [self.folder.name] if self.folder.exists() else []
        halves = self.half_written(())
        return sorted(path.name for path in self.folder.iterdir() if path not in halves)

    def half_written(self, arrays: Iterable[str]) -> list[Path]:
        """Return files of a folder that zarr had not written to the end: of its root, and of arrays of these names.

        Zarr calls them by the key that they were to become, "zarr" for its metadata, numbers for chunks. Others that
        end in ".partial" are not zarr's.
        """
        if self.folder is None or not self.folder.is_dir():
            return []
        found = [(path, r"zarr") for path in self.folder.glob("*.partial")]
        found += [(path, r"zarr|c|[\d.]+") for name in arrays for path in (self.folder / name).rglob("*.partial")]
        names = [(path, stem, _HALF_WRITTEN.fullmatch(path.name)) for path, stem in found]
        return [p for p, stem, name in names if name and re.fullmatch(stem, name["name"]) and p.is_file()]


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what zarr's event loop makes of an operation of a store."""
    from zarr.core.sync import sync

    return sync(work)


async def _listed(store: Any) -> list[str]:
    return sorted([name async for name in store.list_dir("") if name.strip("/")])  # "" marks a folder of a bucket


def archive_target(store: Any, storage_options: Mapping[str, Any] | None = None) -> ArchiveTarget:
    """Return the target that a path, a URL or a Zarr store means; local ones by their absolute path.

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
            return ArchiveTarget(FsspecStore.from_url(text, storage_options=dict(storage_options or {})), text, None)
        except (ImportError, ValueError) as error:
            raise StoreError(f"Cannot reach {text!r}: {error}. Check the URL and storage_options.") from error
    if storage_options:
        raise ConfigError(f"storage_options are of the file system behind a URL, {store!r} is none; leave them out.")
    if path is not None:
        folder = path.expanduser().resolve()
        return ArchiveTarget(LocalStore(folder), str(folder), folder)
    if isinstance(store, LocalStore):
        store = copy.copy(store)
        store.root = Path(store.root).resolve()  # workers may have another working directory
        return ArchiveTarget(store, str(store.root), store.root)
    if hasattr(store, "supports_writes"):  # any other store of Zarr
        return ArchiveTarget(store, str(store), None)
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


def confirm(target: ArchiveTarget, keys: Sequence[str]) -> None:
    """Make sure that objects are in the store as this process sees it, and on the disk of a local one.

    Raises
    ------
    StoreError
        If some are not there: whatever wrote them did so elsewhere.
    """
    missing, end = _missing(target.store, keys), time.monotonic() + _PATIENCE
    while missing and time.monotonic() < end:
        time.sleep(1.0)
        if hasattr(target.store, "fs"):  # of fsspec: it may remember a folder as it was before others wrote
            target.store.fs.invalidate_cache()
        missing = _missing(target.store, missing)
    if missing:
        raise StoreError(
            f"{len(missing)} of {len(keys)} chunks that were just written are not in {target.name!r} ({missing[0]!r}): "
            f"{UNSEEN}"
        )
    if target.folder is not None:
        flush(target.folder, keys)


def _missing(store: Any, keys: Sequence[str]) -> list[str]:
    async def present() -> list[bool]:
        return await asyncio.gather(*(store.exists(key) for key in keys))

    return [key for key, there in zip(keys, _run(present()), strict=True) if not there]


def flush(folder: Path, keys: Iterable[str]) -> None:
    """Have the system write files of a folder to the disk, and the folders that name them."""
    files = [folder / key for key in keys]
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
