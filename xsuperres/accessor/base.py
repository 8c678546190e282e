"""What the accessors of DataArrays and Datasets share: the object as a list of fields, and back.

An accessor stores its object and nothing else: xarray drops it with the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import xarray as xr

__all__ = ["Accessor", "T"]

T = TypeVar("T", xr.DataArray, xr.Dataset)


class Accessor(ABC, Generic[T]):
    """Base of the accessors."""

    def __init__(self, obj: T) -> None:
        self._obj: T = obj

    @abstractmethod
    def _fields(self, names: Sequence[Any] | None = None) -> list[xr.DataArray]:
        """Return the fields of the object, in the order of `names` if these are given."""

    @abstractmethod
    def _returned(self, fields: Sequence[xr.DataArray]) -> T:
        """Return fields, in the order of the last names asked for, as an object of the same kind."""

    @abstractmethod
    def _beside(self) -> dict[Hashable, xr.Variable]:
        """Return the variables beside the fields that results keep."""

    @abstractmethod
    def _like(self, names: Iterable[Any], data: T | None, what: str) -> list[Any]:
        """Return the fields of other data that belong to the object's, None for each where there are no data.

        Other data are of the same kind as the object, those of Datasets have the same names.
        """

    @abstractmethod
    def _joined(self, tables: Sequence[xr.Dataset]) -> xr.Dataset:
        """Return one table of one table per field."""
