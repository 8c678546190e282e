"""A Zarr store that asks whose archive it holds before it writes into it.

Imported only where zarr is in use; importable on workers, which write through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zarr.abc.store import Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import WrapperStore

__all__ = ["ClaimedStore"]


class ClaimedStore(WrapperStore[Store]):
    """A store in which objects are set as long as another object says so; all else goes through.

    A writer that was stopped for hours, and goes on with what it has in memory, is refused that way.

    Parameters
    ----------
    store : Store
        Of Zarr.
    key : str
        Of the object that is read before another one is written.
    check : callable
        Gets its content, None where there is none, and raises if nothing may be written. It must be picklable.
    """

    def __init__(self, store: Store, key: str, check: Callable[[bytes | None], Any]) -> None:
        super().__init__(store)
        self.key, self.check = key, check

    def _with_store(self, store: Store) -> ClaimedStore:
        return type(self)(store, self.key, self.check)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, if that is still allowed."""
        found = await self._store.get(self.key, default_buffer_prototype())
        self.check(None if found is None else found.to_bytes())
        await self._store.set(key, value)
