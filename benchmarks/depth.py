"""How deep a call goes: which files of the package it enters, and how often it asks a DataArray for its grid.

A library of `house.py` and of the tests; nothing of the package is imported here, so that any build can be traced.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import xarray as xr

__all__ = ["DERIVATIONS", "Trace", "traced"]

# Functions that find out what a DataArray is, by qualified name: those of any build, so that two can be compared.
DERIVATIONS = ("grid_of", "grid_along", "find_axes", "TimeAxes.of")


@dataclass
class Trace:
    """What a call went through.

    Parameters
    ----------
    files : set of str
        Files of the package whose functions were called, relative to it.
    calls : Counter
        Calls by function.
    derivations : dict of str to Counter
        For each of `DERIVATIONS`, how often it was called with each DataArray. DataArrays are one if they are one
        object, or in memory views of one array: renamed, transposed, cut in time.
    """

    files: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    derivations: dict[str, Counter[int]] = field(default_factory=dict)

    def most(self, name: str) -> int:
        """Return how often `name` was called with the DataArray it was called with most often."""
        return max(self.derivations.get(name, Counter()).values(), default=0)


def traced(work: Callable[[], object], package: Path) -> Trace:
    """Run `work` in this thread and return what it went through in the folder `package`.

    Examples
    --------
    A function that asks twice for the grid of one field:

    >>> trace = traced(lambda: (grid_of(da), grid_of(da.transpose())), Path(xsuperres.__file__).parent)
    >>> trace.most("grid_of"), "fields/grid.py" in trace.files
    (2, True)
    """
    trace, alive = Trace(), []
    inside: dict[CodeType, str | None] = {}

    def enter(frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in inside:
            path = Path(code.co_filename)
            inside[code] = str(path.relative_to(package)) if path.is_relative_to(package) else None
        path = inside[code]
        if path is None:
            return
        trace.files.add(path)
        trace.calls[f"{path}:{code.co_qualname}"] += 1
        if code.co_qualname in DERIVATIONS:
            names = [name for name in code.co_varnames[: code.co_argcount] if name not in ("self", "cls")]
            asked = frame.f_locals[names[0]]
            if isinstance(asked, xr.DataArray):
                alive.append(_identity(asked))  # the id of an object that is gone is given to another
                trace.derivations.setdefault(code.co_qualname, Counter())[id(alive[-1])] += 1

    before = sys.getprofile()
    sys.setprofile(enter)
    try:
        work()
    finally:
        sys.setprofile(before)
    return trace


def _identity(da: xr.DataArray) -> object:
    """Return the array that `da` is a view of; lazy data have none, there it is the DataArray."""
    data = da.variable._data
    if not isinstance(data, np.ndarray):
        return da
    while isinstance(data.base, np.ndarray):
        data = data.base
    return data
