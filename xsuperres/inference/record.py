"""The record of an archive: whose it is from its first object on, and how far it is until it is finished.

Both are attributes of the root of its store, an object that is replaced whole: what identifies the run stays, how far
it is goes in the same moment as the archive is finished. So there is no state between two of them to be killed in. The
same run writes the same bytes, so that two writers of one run do no harm; those of other runs are refused, whether or
not anything is done. Local folders have a lock besides, which the system releases when its process dies.
"""

from __future__ import annotations

import contextlib
import errno
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from xsuperres.errors import StoreError
from xsuperres.inference.identity import difference
from xsuperres.inference.target import UNSEEN, ArchiveTarget

__all__ = ["ROOT", "ArchiveRecord", "Progress", "Root", "archive_root", "locked", "marks"]

ROOT = "zarr.json"  # the object that holds the record
_IDENTITY = "xsuperres_archive"  # attribute: what identifies the run, as JSON
_RECORD = "xsuperres_record"  # attribute of an unfinished archive: how far it is, as JSON
_FORMAT = 2
_GROUP = "xsuperres_journal/zarr.json"  # where format 1 had it
_NOT_OURS = "{!r} exists, but downscale_to_zarr did not write it; name another store, or delete what is there."
_FINISHED = "{!r} was finished by another process of the same run."
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True)
class Progress:
    """How far an unfinished archive is.

    `blocks` are sizes by dim, in the order of writing, `done` and `cells` how many blocks and cells are there, `range`
    is what the guard counted of them.
    """

    blocks: Mapping[str, int]
    done: int = 0
    cells: int = 0
    range: list[list[float | None]] | None = None

    @property
    def text(self) -> str:
        """What is stored of it."""
        return json.dumps({"format": _FORMAT, **asdict(self), "blocks": list(self.blocks.items())})

    @classmethod
    def of(cls, text: str) -> Progress:
        """Return what `text` was made from.

        Raises
        ------
        StoreError
            If another version wrote it.
        """
        entries = json.loads(text)
        found = entries.pop("format")
        if found != _FORMAT:
            raise StoreError(_other_format(found))
        return cls(**entries | {"blocks": dict(entries["blocks"])})


def _other_format(found: object) -> str:
    return (
        f"The archive was begun in format {found!r}, but this version of xsuperres writes {_FORMAT}; go on with the "
        "version that began it, or delete the archive."
    )


@dataclass(frozen=True)
class Root:
    """What the root of a store says.

    `identity` is None where it is no archive's, `progress` where the archive is finished; `arrays` is the consolidated
    metadata of the arrays by name, None where there is none.
    """

    identity: dict[str, Any] | None
    progress: Progress | None
    arrays: dict[str, Any] | None

    @classmethod
    def of(cls, content: bytes) -> Root:
        """Return what a root object says.

        Raises
        ------
        StoreError
            If it is damaged, or of an archive that another version began.
        """
        try:
            found = json.loads(content)
            attributes = found.get("attributes", {})
            identity, record = (attributes.get(key) for key in (_IDENTITY, _RECORD))
            return cls(
                None if identity is None else dict(json.loads(identity)),
                None if record is None else Progress.of(record),
                (found.get("consolidated_metadata") or {}).get("metadata"),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"The metadata of the store is damaged ({error}); delete it, or name another.") from error


def marks(identity: Mapping[str, Any], blocks: Mapping[str, int]) -> dict[str, str]:
    """Return the attributes of the root of an archive of which nothing is done."""
    return {_IDENTITY: json.dumps(identity, sort_keys=True), _RECORD: Progress(blocks).text}


def archive_root(target: ArchiveTarget, identity: Mapping[str, Any], *, resume: bool) -> Root | None:
    """Return what a store says of an archive of this run; None where there is room for one. Nothing is touched.

    Raises
    ------
    StoreError
        If the store is of another run, of this one although it is not to be resumed, or holds something else.
    """
    content = target.read(ROOT)
    root = None if content is None else Root.of(content)
    if root is None or root.identity is None:
        if root is not None or target.strangers():
            raise StoreError(_NOT_OURS.format(target.name))
        return None
    if root.progress is None and root.arrays is None and target.read(_GROUP) is not None:
        raise StoreError(_other_format(1))
    other = difference(root.identity, identity)
    if other is not None:
        raise StoreError(f"{target.name!r} holds an archive of {other}. Name another store, or delete that one.")
    if not resume:
        raise StoreError(
            f"{target.name!r} holds an archive of this run already, but resume=False expects an empty place; pass "
            "resume=True to go on with it, or delete it."
        )
    if root.progress is None or root.progress.done:
        _check_whole(target, root, identity)
    return root


def _check_whole(target: ArchiveTarget, root: Root, identity: Mapping[str, Any]) -> None:
    """Refuse a part of an archive: xarray copies the attributes of a whole one."""
    for name, labels in identity["fields"].items():
        stored = target.read(f"{name}/{ROOT}") if root.arrays is None else root.arrays.get(name)
        array = json.loads(stored) if isinstance(stored, bytes) else stored or {}
        found = dict(zip(array.get("dimension_names") or (), array.get("shape", ()), strict=False))
        wanted = {dim: size for dim, size in labels.items() if dim != "dtype"}
        if found != wanted:
            raise StoreError(
                f"{target.name!r} has the mark of an archive, but {name!r} of {found}, not {wanted}: it is a part of "
                "one, or a copy of a part. Name another store, or delete that one."
            )


class ArchiveRecord:
    """The record of an archive that this process writes, asked for in the store whenever it is wanted.

    `writer` is the target to write through: it asks before each object whether the archive is still of this run. Each
    method raises StoreError if the archive is gone, or another run's.
    """

    def __init__(self, target: ArchiveTarget, identity: Mapping[str, Any]) -> None:
        from xsuperres.inference.claimed import ClaimedStore

        self.target, self.identity = target, dict(identity)
        check = partial(_check_claim, target.name, self.identity)
        self.writer = replace(target, store=ClaimedStore(target.store, ROOT, check))

    @classmethod
    def claim(
        cls,
        target: ArchiveTarget,
        identity: Mapping[str, Any],
        template: Mapping[str, bytes],
        *,
        resume: bool,
        alone: bool,
    ) -> ArchiveRecord:
        """Return the record of the archive of this run, which is begun where there is none.

        Parameters
        ----------
        template : mapping
            Objects of a new archive, see `template_of`; the root is its first one.
        alone : bool
            Whether no other process writes there: files that a killed one has not written to the end are deleted then.

        Raises
        ------
        StoreError
            As `archive_root`, or if another run was faster.
        """
        if archive_root(target, identity, resume=resume) is None:
            _begin(target, template[ROOT], alone=alone)
        record = cls(target, identity)
        if record.progress() is not None and alone:
            for path in target.half_written(key.removesuffix(f"/{ROOT}") for key in template if key != ROOT):
                path.unlink()
        return record

    def progress(self) -> Progress | None:
        """Return how far the archive is; None if it is finished."""
        return self._stored()[1]

    def unfinished(self) -> Progress:
        """Return how far the archive is; refuse one that is finished."""
        progress = self.progress()
        if progress is None:
            raise StoreError(_FINISHED.format(self.target.name))
        return progress

    def note(self, done: int, cells: int, range: list[list[float | None]] | None = None) -> None:
        """Note that more is done; nothing where another process of the same run was faster."""
        content, progress = self._stored()
        if progress is not None and progress.done < done:
            self._replace(content, replace(progress, done=done, cells=cells, range=range))

    def finish(self) -> None:
        """Write all metadata into the root, and have it say no more how far the archive is: it is finished."""
        import zarr

        self.unfinished()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            warnings.filterwarnings("ignore", message="Object at")  # files that another writer has not finished yet
            zarr.consolidate_metadata(self.writer.store, zarr_format=3)
        self._replace(self._stored()[0], None)

    def _stored(self) -> tuple[bytes, Progress | None]:
        """Return the root, and how far it says that the archive is."""
        content = self.target.read(ROOT)
        progress = _progress(self.target.name, self.identity, content)
        return content or b"", progress

    def _replace(self, content: bytes, progress: Progress | None) -> None:
        """Replace a root by one that says how far the archive is."""
        root = json.loads(content)
        root["attributes"].pop(_RECORD, None)
        if progress is not None:
            root["attributes"][_RECORD] = progress.text
        self.target.write({ROOT: json.dumps(root, indent=2).encode()})


def _progress(name: str, identity: Mapping[str, Any], content: bytes | None) -> Progress | None:
    """Return what a root says of an archive of this run; refuse one that is gone, or of another run."""
    root = None if content is None else Root.of(content)
    if root is None or root.identity is None:
        raise StoreError(
            f"{name!r} was deleted, or something else written in its place, while this process wrote to it. Call "
            "again to begin anew."
        )
    other = difference(root.identity, identity)
    if other is not None:
        raise StoreError(
            f"{name!r} holds an archive of {other}, which took the place while this process wrote to it and was left "
            "as it is. Name another store, or delete that one."
        )
    return root.progress


def _check_claim(name: str, identity: Mapping[str, Any], content: bytes | None) -> None:
    """Refuse to write into what is not an unfinished archive of this run, as it is where its chunks are written."""
    if content is None:  # deleted, it is missed by the process that asks for the record too
        raise StoreError(f"{name!r} is not there where its chunks are written: {UNSEEN}")
    if _progress(name, identity, content) is None:
        raise StoreError(_FINISHED.format(name))


def _begin(target: ArchiveTarget, root: bytes, *, alone: bool) -> None:
    """Write the root of an archive into an empty store; what a killed process has of this very root gives way."""
    halves = target.half_written(()) if alone else []
    strangers = target.strangers() + [path.name for path in halves if not root.startswith(path.read_bytes())]
    if strangers:
        raise StoreError(_NOT_OURS.format(target.name))
    for path in halves:
        path.unlink()
    target.write_new(ROOT, root)


@contextlib.contextmanager
def locked(target: ArchiveTarget) -> Iterator[bool]:
    """Hold the lock of a local store, on a file beside it that goes when there is nothing to go on with.

    Yields whether there is a lock: only folders have one, and not those of every file system.

    Raises
    ------
    StoreError
        If another process holds it, or it cannot be made.
    """
    if target.folder is None:
        yield False
        return
    from filelock import FileLock, Timeout

    path, held = target.folder.with_name(f"{target.folder.name}.lock"), True
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except OSError as error:
        held = error.errno not in _NO_LOCKS
        if isinstance(error, Timeout) and path.exists():
            raise StoreError(
                f"{target.name!r} is being written by another process, which holds {str(path)!r}; wait for it to end, "
                "or write to another store."
            ) from error
        if held:
            raise StoreError(
                f"Cannot lock {target.name!r} with the file {str(path)!r} ({error}); name a store in a folder that you "
                "may write to."
            ) from error
    try:
        yield held
    finally:
        with contextlib.suppress(OSError, StoreError):  # while it is held: who comes next finds nothing unfinished
            content = target.read(ROOT)
            if content is None or Root.of(content).progress is None:
                path.unlink()
        lock.release()
