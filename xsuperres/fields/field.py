"""A field understood once: its array, axes, cells, times, units and name; and results labelled like it.

Labelled arrays in and out; lazy. A public method makes a `Field` of each DataArray at its door, and everything below it
takes Fields: what a coordinate means is asked here, and once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from xsuperres._version import __version__
from xsuperres.errors import DataError
from xsuperres.fields.checks import check_values, is_lazy
from xsuperres.fields.forecasts import TimeAxes
from xsuperres.fields.grid import AxisNames, Grid, find_axes, grid_along

__all__ = ["Field", "check_together", "encoded", "with_history"]

_CF_ENCODINGS = ("units", "calendar", "dtype", "_FillValue")  # what any format can write
_PACKING = ("scale_factor", "add_offset")


class Field:
    """A DataArray with what its coordinates say, each part derived when it is first asked for.

    Parameters
    ----------
    array : DataArray
        Dims y and x and any others, in any order and orientation; lazy if dask-backed.
    axes : AxisNames, optional
        Its horizontal dims and its time dim, where they are known already.
    grid : Grid, optional
        Its horizontal grid, where it is known already.
    gaps : bool
        Whether longitudes may have gaps wider than 1.5 cells.
    cells_of : Field, optional
        One on the same cells, whose grid is this field's.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> field = Field(xsr.testing.toy_field(time=2, y=8, x=12))
    >>> field.name, field.units, field.axes.time, field.grid.shape, field.lead
    ('tas', 'K', 'time', (8, 12), ['time'])
    """

    def __init__(
        self,
        array: xr.DataArray,
        *,
        axes: AxisNames | None = None,
        grid: Grid | None = None,
        gaps: bool = False,
        cells_of: Field | None = None,
    ) -> None:
        self.array, self.gaps, self._cells_of = array, gaps, cells_of
        if axes is not None:
            self.axes = axes
        if grid is not None:
            self.grid = grid

    @classmethod
    def of(cls, array: xr.DataArray, *, gaps: bool = False) -> Field:
        """Return the field of an array that passes `check_values`: float, with known chunk sizes."""
        check_values(array)
        return cls(array, gaps=gaps)

    @cached_property
    def axes(self) -> AxisNames:
        """Names of the dims y and x, and of the time dim."""
        return find_axes(self.array)

    @cached_property
    def grid(self) -> Grid:
        """The horizontal grid."""
        if self._cells_of is not None:
            return self._cells_of.grid
        return grid_along(self.array, self.axes, gaps=self.gaps)

    @cached_property
    def times(self) -> TimeAxes:
        """What is known of the times: initial and valid ones, leads, along which dim windows run."""
        return TimeAxes.of(self.array, self.axes.time)

    @property
    def name(self) -> Any:
        """Name of the variable, or None."""
        return self.array.name

    @property
    def units(self) -> str | None:
        """The attribute `units`, as it is."""
        return self.array.attrs.get("units")

    @property
    def lazy(self) -> bool:
        """Whether the values are a dask array."""
        return is_lazy(self.array)

    @property
    def lead(self) -> list[str]:
        """The dims outside the horizontal, in the order of the array."""
        return [str(dim) for dim in self.array.dims if dim not in (self.axes.y, self.axes.x)]

    @property
    def sample_dim(self) -> str | None:
        """The dim along which samples are counted: time, else the first that is not horizontal."""
        return self.axes.time if self.axes.time in self.lead else next(iter(self.lead), None)

    def canonical(self) -> xr.Variable:
        """Return the values as (..., y, x), south to north and west to east, without coordinates; lazy."""
        return self.grid.canonical(self.array)

    def with_array(self, array: xr.DataArray) -> Field:
        """Return another array on the same cells as a field: other values, labels, or steps of the other dims."""
        return Field(array, axes=self.axes, gaps=self.gaps, cells_of=self)

    def renamed(self, dim: Any, name: Any) -> Field:
        """Return the field with one of its dims outside the horizontal called `name`."""
        axes = replace(self.axes, time=name if self.axes.time == dim else self.axes.time)
        return Field(self.array.rename({dim: name}), axes=axes, gaps=self.gaps, cells_of=self)

    def labelled(
        self,
        data: Any,
        target: Grid,
        *,
        note: str,
        dims: Sequence[Any] | None = None,
        planes: Mapping[str, xr.Variable] | None = None,
    ) -> Field:
        """Return data on another grid as a field like this one.

        Name, attributes, coordinates that do not lie on the horizontal grid, orientation and order of dims stay.
        Horizontal coordinates become those of `target`, `history` gains a line. Encodings of packing, chunks and
        compression are dropped, of coordinates too (they belong to one format, and fail in another), and so is the
        digest of a model that made this field.

        Parameters
        ----------
        data : array (..., y, x)
            Canonical, on `target`.
        target : Grid
            With this field's names of dims and coordinates.
        note : str
            What was done, for the history.
        dims : sequence of str, optional
            Of the data; by default those of the canonical array.
        planes : mapping of str to Variable (y, x), optional
            Further coordinates, canonical, on `target`.
        """
        dims = (*self.lead, *target.dims) if dims is None else tuple(dims)
        source, grid = self.array, self.grid
        attrs = {name: value for name, value in source.attrs.items() if not str(name).startswith("xsuperres_")}
        flips = {axis.dim: slice(None, None, -1) for axis in (grid.y, grid.x) if axis.flipped}
        variable = xr.Variable(dims, data, attrs).isel(flips).transpose(*source.dims)
        coords: dict[Any, xr.Variable] = {
            n: _portable(c.variable) for n, c in source.coords.items() if not set(c.dims) & set(grid.dims)
        }
        for name, plane in {**(planes or {}), **target.coords}.items():
            if name not in coords:
                coords[name] = encoded(plane, {}).isel({d: s for d, s in flips.items() if d in plane.dims})
        coords = {n: v.transpose(*(d for d in source.dims if d in v.dims)) for n, v in coords.items()}
        out = with_history(xr.DataArray(variable, coords).rename(source.name), note)  # name=None would be dask's
        out.encoding = {k: v for k, v in source.encoding.items() if k == "grid_mapping"}
        names = AxisNames(target.y.dim, target.x.dim, self.axes.time)
        return Field(out, axes=names, grid=target.stored_like(grid))


def _portable(variable: xr.Variable) -> xr.Variable:
    """Return a coordinate with those of its encodings that are CF's: times are written as they were read."""
    encoding = {name: variable.encoding[name] for name in _CF_ENCODINGS if name in variable.encoding}
    packed = any(name in variable.encoding for name in _PACKING)
    if packed or np.dtype(encoding.get("dtype", float)).kind not in "fiu":  # no dtype without its packing
        encoding = {name: value for name, value in encoding.items() if name in ("units", "calendar")}
    return encoded(variable, encoding)


def encoded(variable: xr.Variable, encoding: dict[Any, Any]) -> xr.Variable:
    """Return a shallow copy with other encodings: the variable may be shared with the user's data."""
    copied = variable.copy(deep=False)
    copied.encoding = encoding
    return copied


def with_history(da: xr.DataArray, note: str) -> xr.DataArray:
    """Return `da` with one more line in its history attribute, signed with the package's version."""
    before = da.attrs.get("history")
    line = f"xsuperres {__version__}: {note}"
    return da.assign_attrs(history=f"{before}\n{line}" if before else line)


def check_together(fields: Sequence[Field]) -> None:
    """Refuse variables that do not share their dims and coordinates.

    Raises
    ------
    DataError
        With the first that differs.
    """
    first = fields[0].array
    for field in fields[1:]:
        other = field.array
        if set(other.dims) != set(first.dims):
            raise DataError(
                f"{other.name!r} has dims {tuple(map(str, other.dims))}, {first.name!r} has "
                f"{tuple(map(str, first.dims))}; the variables of one network share their dims."
            )
        try:
            xr.align(first, other, join="exact", copy=False)
        except ValueError as error:
            raise DataError(
                f"{other.name!r} and {first.name!r} lie on different coordinates ({error}); align them first."
            ) from error
