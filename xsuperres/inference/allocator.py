"""What the C library does with the memory of one layer's result until the next layer asks for it.

glibc learns from what a process frees how much of it to keep. Where it has not learned yet, or is told not to, as
dask's nannies tell it in their workers, every layer's result is given back to the system and fetched again page by
page, which takes as long as the arithmetic of a small network. Knows neither torch nor numpy.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST = 2**25  # bytes; glibc learns to keep results up to this size
_BY_NANNY = "65536"  # what dask sets where the user has not


def keep_freed_memory() -> bool:
    """Let this process keep up to 32 MiB of freed memory per thread, half of what glibc would learn to keep.

    Whoever has set the allocator by its environment variables keeps what was set.

    Returns
    -------
    bool
        Whether anything was set: not on other systems, nor where the user has.
    """
    told = os.environ.get("MALLOC_TRIM_THRESHOLD_", _BY_NANNY) != _BY_NANNY or "MALLOC_MMAP_THRESHOLD_" in os.environ
    if sys.platform != "linux" or told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    return mallopt is not None and bool(mallopt(_MMAP, _LARGEST)) and bool(mallopt(_TRIM, _LARGEST))
