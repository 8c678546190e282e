"""The horizontal grid of a DataArray: cells, areas, canonical order, coordinates of coarser and finer grids.

Labelled arrays in and out; the only module that asks cf-xarray how a grid is told from coordinates.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from xsuperres.errors import GridError
from xsuperres.fields.axes import SAME_CELL, Axis, locate, make_axis
from xsuperres.fields.frame import Frame, displaced, grid_mapping, length_unit
from xsuperres.fields.leads import INIT_NAMES
from xsuperres.fields.sphere import coarsen_lonlat, refine_lonlat
from xsuperres.fields.times import is_dated

__all__ = [
    "AxisNames",
    "Grid",
    "Location",
    "check_scale",
    "find_axes",
    "fine_index",
    "grid_along",
    "grid_of",
    "in_convention",
    "named_like",
    "native",
]

V = TypeVar("V", xr.DataArray, xr.Variable)

_NAMES = {
    "y": ("lat", "latitude", "y", "rlat", "projection_y_coordinate", "south_north", "nlat", "j", "nj"),
    "x": ("lon", "longitude", "x", "rlon", "projection_x_coordinate", "west_east", "nlon", "i", "ni"),
    "time": ("time", "valid_time", *INIT_NAMES),
}


def check_scale(scale: Any) -> int:
    """Return `scale` as an int; anything but a whole number of at least 2 is an error."""
    number = isinstance(scale, (int, float, np.integer, np.floating)) and not isinstance(scale, bool)
    if not number or not np.isfinite(scale) or scale != int(scale):
        raise GridError(f"scale must be a whole number of at least 2, got {scale!r}.")
    if scale < 2:
        raise GridError(f"scale must be at least 2 (fine cells per coarse cell and axis), got {scale!r}.")
    return int(scale)


@dataclass(frozen=True)
class Location:
    """Where a grid lies on a stored one: indices of its rows and columns."""

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def whole(cls, grid: Grid) -> Location:
        """Return the location of a grid on itself."""
        return cls(np.arange(grid.y.size), np.arange(grid.x.size))

    def refined(self, scale: int) -> Location:
        """Return the fine cells of these coarse ones."""
        return Location(fine_index(self.rows, scale), fine_index(self.columns, scale))


def fine_index(index: np.ndarray, scale: int) -> np.ndarray:
    """Return the fine indices of coarse cells along one axis.

    Examples
    --------
    >>> fine_index(np.array([0, 2]), 2)
    array([0, 1, 4, 5])
    """
    return (index[:, None] * scale + np.arange(scale)).ravel()


@dataclass(frozen=True)
class Grid:
    """A horizontal grid in canonical order (south to north, west to east).

    Parameters
    ----------
    y, x : Axis
        The axes.
    coords : mapping of str to Variable
        Coordinate variables that lie on y and x alone, in canonical order: the axes' own, 2-D latitude and
        longitude, and whatever else rides along.
    mapping : mapping
        Name and parameters of the CF grid mapping, as far as they are told.
    """

    y: Axis
    x: Axis
    coords: Mapping[str, xr.Variable]
    mapping: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y.size, self.x.size

    @property
    def dims(self) -> tuple[str, str]:
        """Names of the dimensions y and x."""
        return self.y.dim, self.x.dim

    @cached_property
    def area(self) -> np.ndarray:
        """Cell areas (y, x), float64, mean 1: |sin(north) - sin(south)| x width."""
        area = self.y.lengths()[:, None] * self.x.lengths()[None, :]
        return area / area.mean()

    def weights(self) -> xr.DataArray:
        """Return the cell areas as a DataArray without coordinates."""
        return xr.DataArray(self.area, dims=self.dims)

    def canonical(self, da: xr.DataArray) -> xr.Variable:
        """Return the values of `da` with dims (..., y, x) in canonical order, without coordinates; lazy."""
        lead = [dim for dim in da.dims if dim not in self.dims]
        variable = native(da).variable.transpose(*lead, *self.dims)
        return variable.isel({self.y.dim: self.y.order, self.x.dim: self.x.order})

    def restored(self, da: V, dims: tuple[Hashable, ...]) -> V:
        """Return canonical data, on this grid or a refined one, in the user's orientation and order of dims."""
        flips = {axis.dim: slice(None, None, -1) for axis in (self.y, self.x) if axis.flipped}
        return da.isel(flips).transpose(*dims)

    def coarsen(self, scale: int) -> Grid:
        """Return the grid of scale x scale groups of cells."""
        y, x = self.y.coarsen(scale), self.x.coarsen(scale)
        return replace(self, y=y, x=x, coords=coarsen_lonlat(self.coords, self.dims, scale) | self._lines(y, x))

    def refine(self, scale: int) -> Grid:
        """Return the grid of cells cut into scale x scale parts."""
        y, x = self.y.refine(scale), self.x.refine(scale)
        return replace(self, y=y, x=x, coords=refine_lonlat(self.coords, self.dims, scale) | self._lines(y, x))

    def _lines(self, y: Axis, x: Axis) -> dict[str, xr.Variable]:
        """Return the 1-D coordinates of new axes with this grid's names, attributes and longitude convention."""
        lines = {}
        for old, new in ((self.y, y), (self.x, x)):
            variable = self.coords[old.name]
            values = in_convention(new.centres, old, variable) if old.kind == "longitude" else new.centres
            dtype = variable.dtype if variable.dtype.kind == "f" else np.dtype(float)
            attrs = {key: value for key, value in variable.attrs.items() if key != "bounds"}
            lines[old.name] = xr.Variable(old.dim, values.astype(dtype), attrs)
        return lines

    def locate(self, wanted: Grid, scale: int = 1) -> Location | None:
        """Return where the cells of `wanted` are this grid's, or groups of scale x scale of them; None if they are not.

        Grids whose coordinates mean different things, as far as is known, have no cell in common; see `mismatch`.
        """
        rows, columns = locate(self.y, wanted.y, scale), locate(self.x, wanted.x, scale)
        if rows is None or columns is None or self.mismatch(wanted) is not None:
            return None
        return Location(rows, columns)

    def mismatch(self, other: Grid) -> str | None:
        """Return how coordinates of `other` mean something else than these: kind, units, mapping, place; else None."""
        return self.frame.mismatch(other.frame) or displaced(self, other)

    @cached_property
    def frame(self) -> Frame:
        """What is told of the coordinates."""
        (y, south), (x, west) = ((self.kind(axis), self._unit(axis)) for axis in (self.y, self.x))
        return Frame((y, x), (south, west), self.mapping)

    def _unit(self, axis: Axis) -> str | None:
        told = self.coords[axis.name].attrs.get("units") if axis.name in self.coords else None
        return length_unit(told) if axis.kind == "other" else None

    def crop(self, location: Location) -> Grid:
        """Return the grid of some of the rows and columns, coordinates bit for bit."""
        if _is_all(location.rows, self.y) and _is_all(location.columns, self.x):
            return self
        index = {self.y.dim: location.rows, self.x.dim: location.columns}
        coords = {name: v.isel({str(dim): index[str(dim)] for dim in v.dims}) for name, v in self.coords.items()}
        return replace(self, y=self.y.take(location.rows), x=self.x.take(location.columns), coords=coords)

    def stored_like(self, other: Grid) -> Grid:
        """Return this canonical grid as one whose data are stored in the orientation of another's."""
        y, x = (
            replace(ours, order=slice(None, None, -1) if theirs.flipped else slice(None))
            for ours, theirs in ((self.y, other.y), (self.x, other.x))
        )
        return replace(self, y=y, x=x)

    def kind(self, axis: Axis) -> str:
        """Return the kind of an axis, which also tells rotated latitudes and longitudes from true ones."""
        told = self.coords[axis.name].attrs.get("standard_name", "") if axis.name in self.coords else ""
        rotated = str(told).startswith("grid_") or axis.name.lower() in ("rlat", "rlon")
        return f"rotated {axis.kind}" if rotated and axis.kind != "other" else axis.kind

    def parts(self) -> list[slice]:
        """Return the connected stretches of columns."""
        return self.x.parts

    def describe(self) -> str:
        """Return one line a person can read."""
        south, north, west, east = (c for axis in (self.y, self.x) for c in self.coords[axis.name].values[[0, -1]])
        wrap = ", periodic" if self.x.periodic else ""
        gaps = f", {len(self.x.breaks)} gap(s)" if self.x.breaks else ""
        return (
            f"{self.y.dim} {self.y.size} x {self.x.dim} {self.x.size}, "
            f"{south:g} to {north:g} by {self.y.spacing:.4g}, {west:g} to {east:g} by {self.x.spacing:.4g}{wrap}{gaps}"
        )


def _is_all(index: np.ndarray, axis: Axis) -> bool:
    """Return whether an index takes every cell of a canonical axis, in order."""
    canonical = isinstance(axis.order, slice) and not axis.flipped and not axis.breaks
    return canonical and np.array_equal(index, np.arange(axis.size))


def in_convention(values: np.ndarray, axis: Axis, given: xr.Variable) -> np.ndarray:
    """Return longitudes in the convention of given ones.

    Parameters
    ----------
    values : ndarray
        Unwrapped, in the turn of `axis`; those east of it begin anew at its west.
    axis : Axis
        That of the given longitudes.
    given : xr.Variable
        As the user wrote them, in canonical order: in one turn that increases, or wrapped at 180 or 360.
    """
    told = np.asarray(given.values, dtype=np.float64)
    values = np.where(values > axis.upper[-1] + SAME_CELL * axis.spacing, values - 360.0, values)
    values = values + 360.0 * np.round((told[0] - axis.centres[0]) / 360.0)
    if not (np.diff(told) < 0).any():
        return values
    ceiling = 180.0 if told.min() < 0 else 360.0
    return np.where(values >= ceiling, values - 360.0, values)


def named_like(fine: Grid, coarse: Grid, stored: Grid | None = None) -> Grid:
    """Return the fine grid with the dims and coordinate names of the user's coarse one.

    Parameters
    ----------
    fine : Grid
        Cut to the user's domain.
    coarse : Grid
        The user's.
    stored : Grid, optional
        Cells inside the user's that belong to `fine`, or are these. Where the user has their longitudes in another
        turn, the fine ones follow the user; else, and where that would cut them in two, they stay bit for bit.
    """
    coords = fine.coords if stored is None else _turned(fine, coarse, stored)
    pairs = ((fine.y, coarse.y), (fine.x, coarse.x))
    names = {ours.name: theirs.name for ours, theirs in pairs if ours.name != theirs.name}
    dims = {ours.dim: theirs.dim for ours, theirs in pairs if ours.dim != theirs.dim}
    if names or dims:
        coords = {
            names.get(name, name): xr.Variable(tuple(dims.get(str(d), d) for d in v.dims), v.values, v.attrs)
            for name, v in coords.items()
        }
    y, x = (replace(ours, dim=theirs.dim, name=theirs.name) for ours, theirs in pairs)
    return replace(fine, y=y, x=x, coords=coords)


def _turned(fine: Grid, coarse: Grid, stored: Grid) -> Mapping[str, xr.Variable]:
    """Return the fine coordinates with longitudes in the turn of the user's."""
    axis = coarse.x
    if axis.kind != "longitude" or axis.name not in coarse.coords:
        return fine.coords
    given, ours = coarse.coords[axis.name], stored.coords[stored.x.name]
    rounding = SAME_CELL * axis.spacing
    lap = -360.0 * np.floor((stored.x.centres[0] - axis.west + rounding) / 360.0)
    wanted = in_convention(stored.x.centres + lap, axis, given)
    cut = _wraps(wanted) and not _wraps(given.values)  # at the seam of a globe
    if cut or np.allclose(ours.values, wanted, rtol=0, atol=rounding):
        return fine.coords
    values = fine.coords[fine.x.name]
    turned = in_convention(fine.x.centres + lap, axis, given).astype(values.dtype)
    return {**fine.coords, fine.x.name: values.copy(data=turned)}


def _wraps(longitudes: np.ndarray) -> bool:
    return bool((np.diff(longitudes) < 0).any())


@dataclass(frozen=True)
class AxisNames:
    """The names of the dimensions y, x and, where there is one, time."""

    y: str
    x: str
    time: str | None


def find_axes(da: xr.DataArray) -> AxisNames:
    """Return the horizontal dimensions and the time dimension of `da`.

    CF attributes count first (axis, standard_name, units, by cf-xarray's table), then common names; a time dimension of
    another name is one that says it counts initial times, or whose coordinate is of dates.

    Raises
    ------
    GridError
        If no latitude and longitude, or y and x, can be told.
    """
    lines = _lines_of(da)
    found = {which: _by_cf(lines, which) or _by_name(da, which) for which in ("y", "x", "time")}
    found["time"] = found["time"] or _by_dates(da)
    if found["y"] is None or found["x"] is None or found["y"] == found["x"]:
        raise GridError(
            f"No latitude and longitude found on dims {tuple(map(str, da.dims))}. Expected 1-D coordinates with "
            "CF attributes (axis, standard_name or units) or one of the names "
            f"{_NAMES['y'][:4]} and {_NAMES['x'][:4]}; rename or annotate yours."
        )
    return AxisNames(found["y"], found["x"], found["time"])


def _lines_of(da: xr.DataArray) -> list[xr.Variable]:
    """Return the 1-D coordinates: of those that the attribute `coordinates` names, and of the dims; else of all."""
    named = str({**da.encoding, **da.attrs}.get("coordinates") or "").split()
    return [c.variable for n, c in da.coords.items() if c.ndim == 1 and (not named or n in named or n in da.dims)]


def _by_cf(lines: list[xr.Variable], which: str) -> str | None:
    """Return the dimension of the first 1-D coordinate that CF attributes put on this axis."""
    from cf_xarray.criteria import coordinate_criteria

    for key in {"y": ("Y", "latitude"), "x": ("X", "longitude"), "time": ("T",)}[which]:
        for variable in lines:
            if any(variable.attrs.get(name) in values for name, values in coordinate_criteria[key].items()):
                return str(variable.dims[0])
    return None


def _by_name(da: xr.DataArray, which: str) -> str | None:
    lowered = {str(dim).lower(): str(dim) for dim in da.dims}
    return next((lowered[name] for name in _NAMES[which] if name in lowered), None)


def _by_dates(da: xr.DataArray) -> str | None:
    """Return the dimension whose own coordinate is of initial times, or of dates."""
    own = [da.coords[dim] for dim in da.dims if dim in da.coords]
    told = [c for c in own if c.attrs.get("standard_name") == "forecast_reference_time"]
    told += [c for c in own if is_dated(c.variable)]
    return next((str(c.name) for c in told), None)


def native(da: xr.DataArray) -> xr.DataArray:
    """Return `da` in the byte order of this machine; netCDF-3 files are big-endian."""
    return da if da.dtype.isnative else da.astype(da.dtype.newbyteorder("="))


def grid_of(da: xr.DataArray, *, gaps: bool = False, bounds: xr.Dataset | None = None) -> Grid:
    """Return the horizontal grid of `da`; see `grid_along`."""
    return grid_along(da, find_axes(da), gaps=gaps, bounds=bounds)


def grid_along(da: xr.DataArray, axes: AxisNames, *, gaps: bool = False, bounds: xr.Dataset | None = None) -> Grid:
    """Return the horizontal grid of `da` along known dims.

    Parameters
    ----------
    da : xr.DataArray
        With 1-D coordinates along y and x.
    axes : AxisNames
        Its dims, as `find_axes` tells them.
    gaps : bool
        Whether longitudes may have gaps wider than 1.5 cells.
    bounds : xr.Dataset, optional
        Where the coordinates' bounds may be found.

    Raises
    ------
    GridError
        If coordinates are repeated, not monotonic or have a gap.
    """
    y = make_axis(da, axes.y, "y", bounds=bounds)
    x = make_axis(da, axes.x, "x", gaps=gaps, bounds=bounds)
    order = {axes.y: y.order, axes.x: x.order}
    coords = {
        str(name): native(coordinate).variable.isel({dim: order[str(dim)] for dim in coordinate.dims})
        for name, coordinate in da.coords.items()
        if coordinate.dims and set(coordinate.dims) <= set(order)
    }
    return Grid(y, x, coords, grid_mapping(da))
