"""The record of an archive that is being written, kept in its store: whose it is, how far it is, who writes it.

It is a group of the store whose attributes are replaced whole, by one small object; the group goes when the archive is
finished, and what identifies it stays in the attributes of the root. Knows zarr; neither xarray nor dask.

A process that writes to a local folder holds a lock that the system releases when it dies. Other stores, and some file
systems, have no locks: there the record names its owner, who renews a heartbeat; whoever comes watches whether it
changes, so that no clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xsuperres.errors import StoreError

__all__ = ["IDENTITY", "RECORD", "Journal", "is_blank", "locked", "owned", "stored_identity", "sweep"]

IDENTITY = "xsuperres_archive"  # attribute of the root: what identifies the run, as JSON
_GROUP = "xsuperres_journal"
RECORD = f"{_GROUP}/zarr.json"  # the object that holds the entries
_UNFINISHED = ".partial"  # how zarr names a local file that is being written
_FORMAT = 1
_LEASE = 120.0  # seconds without a heartbeat after which an owner is taken to be dead
_BEAT = 20.0
_SETTLE = 2.0  # seconds in which another process that starts at the same moment has entered itself too
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}

logger = logging.getLogger(__name__)


class Journal:
    """What is known of an unfinished archive.

    Its entries: `identity` of the run, `blocks` as (dim, size) in the order of writing, `done` and `cells`: how many
    blocks and cells are there, `range`: what the guard counted of them, `owner`. Where none is done, nothing counts,
    and another run may take the place.
    """

    def __init__(self, store: Any, entries: dict[str, Any]) -> None:
        self.store, self.entries = store, entries
        self.token = uuid.uuid4().hex
        self._guard = threading.Lock()

    @classmethod
    def begin(cls, store: Any, identity: Mapping[str, Any], blocks: Mapping[str, int]) -> Journal:
        """Write the first entries into a store that has none."""
        import zarr
        from zarr.errors import ContainsGroupError

        entries = {"format": _FORMAT, **_beginning(identity, blocks), "owner": None}
        try:
            zarr.create_group(store=store, path=_GROUP, attributes=entries, zarr_format=3)
        except ContainsGroupError as error:  # only where there is no lock
            raise StoreError("Another process began this archive just now; wait for it to end.") from error
        return cls(store, entries)

    @classmethod
    def find(cls, store: Any) -> Journal | None:
        """Return the journal of a store, if it has one.

        Raises
        ------
        StoreError
            If another version wrote it.
        """
        entries = _attributes(store, _GROUP)
        if entries is None:
            return None
        if entries.get("format") != _FORMAT:
            raise StoreError(
                f"The archive was begun in format {entries.get('format')!r}, but this version of xsuperres writes "
                f"{_FORMAT}; go on with the version that began it, or delete the archive."
            )
        return cls(store, entries)

    def restart(self, identity: Mapping[str, Any], blocks: Mapping[str, int]) -> None:
        """Begin anew, as the record of this run."""
        self.note(_beginning(identity, blocks))

    def note(self, entries: Mapping[str, Any]) -> None:
        """Replace entries, in one step.

        Raises
        ------
        StoreError
            If another process has taken the archive over.
        """
        with self._guard:
            if self.entries:
                self.check_owner()
                self._put({**self.entries, **entries, "owner": self._owner()})

    def own(self) -> None:
        """Enter this process as the owner."""
        self._put({**self.entries, "owner": self._owner()})

    def release(self) -> None:
        """Take the owner out, if there is still a journal to go on with."""
        with self._guard:
            if self.entries:
                self.check_owner()
                self._put({**self.entries, "owner": None})

    def remove(self) -> None:
        """Delete the journal: the archive is finished."""
        with self._guard:
            self.check_owner()
            self.entries = {}
            del _group(self.store, "")[_GROUP]

    def _owner(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token, "heartbeat": time.time()}

    def check_owner(self) -> None:
        """Refuse to go on if another process has entered itself.

        Raises
        ------
        StoreError
            If it has.
        """
        found = _attributes(self.store, _GROUP)
        owner = None if found is None else found["owner"]
        if owner is None or owner["token"] != self.token:  # cannot be where there is a lock
            raise StoreError(
                f"The archive was taken over by {_told(owner)} while this process wrote it; nothing is lost, let that "
                "one go on."
            )

    def _put(self, entries: dict[str, Any]) -> None:
        _group(self.store, _GROUP).attrs.put(entries)
        self.entries = entries


def _beginning(identity: Mapping[str, Any], blocks: Mapping[str, int]) -> dict[str, Any]:
    """Return the entries of a run of which nothing is done."""
    return {"identity": dict(identity), "blocks": [[d, n] for d, n in blocks.items()], "done": 0, "cells": 0}


def _told(owner: Mapping[str, Any] | None) -> str:
    """Return an owner in words."""
    return "another process" if owner is None else f"process {owner['pid']} on {owner['host']}"


def stored_identity(store: Any) -> dict[str, Any] | None:
    """Return what identifies the run that wrote a finished archive; None where there is none."""
    attributes = _attributes(store, "")
    if attributes is None or IDENTITY not in attributes:
        return None
    return dict(json.loads(attributes[IDENTITY]))


def is_blank(store: Any) -> bool:
    """Return whether a store holds an empty group alone: all that was written before a process was killed."""
    root = _attributes(store, "")
    if root is None or root:
        return False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Object at")  # the journal's folder may be there already
        return not list(_group(store, "").members())


def sweep(folder: Path, *, ours: bool) -> None:
    """Delete what a killed process left half done in a local archive; whoever calls holds the lock, or owns it.

    Where nothing says that the archive is `ours`, only if there is nothing but the first files of one.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if ours or all(name in ("zarr.json", _GROUP) or name.endswith(_UNFINISHED) for name in names):
        for path in folder.rglob(f"*{_UNFINISHED}"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (folder / _GROUP).rmdir()  # if it is empty


def _group(store: Any, path: str) -> Any:
    import zarr

    return zarr.open_group(store, path=path, mode="r+", zarr_format=3, use_consolidated=False)


def _attributes(store: Any, path: str) -> dict[str, Any] | None:
    """Return the attributes of a group; None where there is none."""
    import zarr
    from zarr.errors import ContainsArrayError

    try:
        return dict(zarr.open_group(store, path=path, mode="r", zarr_format=3, use_consolidated=False).attrs)
    except (FileNotFoundError, ContainsArrayError):
        return None
    except OSError as error:
        raise StoreError(
            f"The store cannot be read ({error}); if it is there, nothing is lost: check connection and permissions, "
            "then call again."
        ) from error
    except ValueError as error:
        raise StoreError(f"The metadata of the store is damaged ({error}); delete it, or name another.") from error


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[bool]:
    """Hold the lock of a local store, on a file beside it that goes when there is nothing to go on with.

    Yields whether there is a lock: only folders have one, and not those of every file system.

    Raises
    ------
    StoreError
        If another process holds it, or it cannot be made.
    """
    if folder is None:
        yield False
        return
    from filelock import FileLock, Timeout

    path, held = folder.with_name(f"{folder.name}.lock"), True
    lock = FileLock(path, fallback_to_soft=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except OSError as error:
        held = error.errno not in _NO_LOCKS
        if isinstance(error, Timeout) and path.exists():
            raise StoreError(
                f"{str(folder)!r} is being written by {_holder(folder)}, which holds {str(path)!r}; wait for it to "
                "end, or write to another store."
            ) from error
        if held:
            raise StoreError(
                f"Cannot lock {str(folder)!r} with the file {str(path)!r} ({error}); name a store in a folder that you "
                "may write to."
            ) from error
    try:
        yield held
    finally:
        with contextlib.suppress(OSError):  # while it is held: who comes next finds nothing unfinished
            if _in_folder(folder) is None:
                path.unlink()
        lock.release()


def _in_folder(folder: Path) -> Journal | None:
    """Return the journal of a local store, if it has one."""
    from zarr.storage import LocalStore

    return Journal.find(LocalStore(folder))


def _holder(folder: Path) -> str:
    """Return who writes to a local store, in words."""
    journal = _in_folder(folder)
    return _told(None if journal is None else journal.entries["owner"])


@contextlib.contextmanager
def owned(journal: Journal, *, leased: bool) -> Iterator[None]:
    """Enter this process as the owner of an archive; where there is no lock (`leased`), if no other is alive.

    Raises
    ------
    StoreError
        If another owner is, or entered itself at the same moment.
    """
    if leased:
        _outlive(journal)
    journal.own()
    stop = threading.Event()
    pulse = threading.Thread(target=_beat, args=(journal, stop), daemon=True)
    if leased:
        time.sleep(_SETTLE)
        journal.check_owner()
        pulse.start()
    try:
        yield
    finally:
        stop.set()
        if leased:
            pulse.join()
        try:
            journal.release()
        except Exception as error:  # what went wrong before, and ends in this too, matters more
            logger.debug("The owner could not be taken out of the archive: %s", error)


def _outlive(journal: Journal) -> None:
    """Watch the heartbeat of another owner for as long as one that lives may be silent.

    Raises
    ------
    StoreError
        If it changes.
    """
    owner = journal.entries["owner"]
    if owner is None:
        return
    logger.warning("%s began this archive; waiting %.0f s for a sign of it.", _told(owner).capitalize(), _LEASE)
    end = time.monotonic() + _LEASE
    while time.monotonic() < end:
        time.sleep(min(_BEAT, _LEASE) / 10)
        found = _attributes(journal.store, _GROUP)
        if found is None or found["owner"] != owner:
            raise StoreError(
                f"The archive is being written by {_told(owner)}, which was heard of just now. Wait for it to end, "
                "then call again."
            )


def _beat(journal: Journal, stop: threading.Event) -> None:
    """Renew the heartbeat until told to stop."""
    while not stop.wait(_BEAT):
        try:
            journal.note({})
        except Exception as error:  # whoever writes the next region meets it too, and can say so
            logger.warning("The heartbeat in the archive could not be renewed: %s", error)
