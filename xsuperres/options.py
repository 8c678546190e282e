"""Process-wide options, changed for a while by the context manager `set_options`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from xsuperres.errors import ConfigError

__all__ = ["Options", "cache_folder", "current_options", "set_options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `set_options` can change.

    Parameters
    ----------
    memory_budget : int
        Bytes that one block of `downscale` may use for the network's activations: a larger one is cut into tiles. Also
        the bytes of the result that `downscale_to_zarr` writes at once, unless it is told others.
    cache_dir : str or None
        Folder of downloaded data and of model files that dask workers read. None: the environment
        variable ``XSUPERRES_CACHE``, else the user's cache folder.
    """

    memory_budget: int = 512 * 2**20
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        budget = self.memory_budget
        if not isinstance(budget, Real) or not budget >= 2**20:
            raise ConfigError(f"memory_budget is in bytes and at least 1 MiB (1048576), got {budget!r}.")


_OPTIONS: ContextVar[Options] = ContextVar("xsuperres_options", default=Options())  # noqa: B039


def current_options() -> Options:
    """Return the options in force."""
    return _OPTIONS.get()


@contextlib.contextmanager
def set_options(*, memory_budget: int | None = None, cache_dir: str | None = None) -> Iterator[Options]:
    """Change options within a ``with`` block.

    Parameters
    ----------
    memory_budget : int, optional
        Bytes that one block of `downscale` may use for the network's activations, and that `downscale_to_zarr` writes
        at once.
    cache_dir : str, optional
        Folder of downloaded data and of model files that dask workers read.

    Examples
    --------
    >>> with set_options(memory_budget=2**28):
    ...     current_options().memory_budget == 2**28
    True
    """
    given = {"memory_budget": memory_budget, "cache_dir": cache_dir}
    changed = {name: value for name, value in given.items() if value is not None}
    token = _OPTIONS.set(replace(_OPTIONS.get(), **changed))  # type: ignore[arg-type]
    try:
        yield _OPTIONS.get()
    finally:
        _OPTIONS.reset(token)


def cache_folder() -> Path:
    """Return the cache folder: option, else ``XSUPERRES_CACHE``, else the user's cache folder."""
    named = current_options().cache_dir or os.environ.get("XSUPERRES_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    import pooch

    return Path(pooch.os_cache("xsuperres"))
