"""What the numbers of horizontal coordinates mean: kinds of axes, their units, the grid mapping, places on Earth.

Labelled arrays in, words out. What is not known on both sides is not compared; the figure of the Earth never is, for
it moves a cell by less than its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xsuperres.fields.axes import SAME_CELL, Axis, lonlat_names, wrap_longitude
from xsuperres.fields.sphere import unit_vectors

if TYPE_CHECKING:
    from xsuperres.fields.grid import Grid

__all__ = ["Frame", "displaced", "grid_mapping", "length_unit"]

_PARAMETERS = (  # of CF appendix F, those that say where cells are
    "grid_north_pole_latitude",
    "grid_north_pole_longitude",
    "north_pole_grid_longitude",
    "standard_parallel",
    "latitude_of_projection_origin",
    "longitude_of_projection_origin",
    "longitude_of_central_meridian",
    "straight_vertical_longitude_from_pole",
    "scale_factor_at_central_meridian",
    "scale_factor_at_projection_origin",
    "azimuth_of_central_line",
    "perspective_point_height",
    "false_easting",
    "false_northing",
)
_LENGTHS = {"m": ("m", "metre", "metres", "meter", "meters"), "km": ("km", "kilometre", "kilometres", "kilometer")}
_ALIKE = 1e-6  # relative difference of parameters, float32 in some files
_APART = 0.1  # of a cell


def grid_mapping(da: xr.DataArray) -> dict[str, Any]:
    """Return the name and the parameters of the CF grid mapping of `da`, as far as they are told; else nothing.

    The variable is the one that the attribute ``grid_mapping`` names, else the only coordinate that is one.

    Examples
    --------
    >>> crs = xr.Variable((), 0, {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25})
    >>> grid_mapping(xr.DataArray(0.0, coords={"crs": crs}))
    {'grid_mapping_name': 'rotated_latitude_longitude', 'grid_north_pole_latitude': [39.25]}
    """
    told = str(da.attrs.get("grid_mapping", da.encoding.get("grid_mapping", "")))
    names = [word.rstrip(":") for word in told.split()]  # may be "crs: x y"
    names = names or [str(n) for n, c in da.coords.items() if not c.dims and "grid_mapping_name" in c.attrs]
    there = [name for name in names if name in da.coords]
    attrs = da.coords[there[0]].attrs if there and (told or len(there) == 1) else {}
    numbers = {name: _numbers(attrs[name]) for name in _PARAMETERS if name in attrs}
    found: dict[str, Any] = {name: values for name, values in numbers.items() if values is not None}
    if "grid_mapping_name" in attrs:
        found = {"grid_mapping_name": str(attrs["grid_mapping_name"])} | found
    return found


def _numbers(value: Any) -> list[float] | None:
    """Return one or several numbers, each once, in order; None for text."""
    values = np.asarray(value)
    return np.unique(values.astype(np.float64)).tolist() if values.dtype.kind in "fiu" else None


@dataclass(frozen=True)
class Frame:
    """What is told of coordinates.

    Parameters
    ----------
    kinds : tuple of str
        Of the axes y and x: latitude, rotated latitude, ..., other.
    units : tuple of str or None
        Of axes that are neither latitude nor longitude.
    mapping : mapping
        Name and parameters of the grid mapping.
    """

    kinds: tuple[str, str]
    units: tuple[str | None, str | None]
    mapping: Mapping[str, Any]

    def mismatch(self, other: Frame) -> str | None:
        """Return how the coordinates of `other` differ from these, or None.

        Examples
        --------
        >>> metres, unknown = (Frame(("other", "other"), (unit, unit), {}) for unit in ("m", None))
        >>> metres.mismatch(Frame(("other", "other"), ("km", "km"), {}))
        'expected axes in m x m, got km x km; convert the coordinates'
        >>> metres.mismatch(unknown)
        """
        if self.kinds != other.kinds:
            return f"expected axes that are {' x '.join(self.kinds)}, got {' x '.join(other.kinds)}"
        if any(a != b for a, b in zip(self.units, other.units, strict=True) if a and b):
            told = (" x ".join(unit or "unknown" for unit in units) for units in (self.units, other.units))
            return "expected axes in {}, got {}; convert the coordinates".format(*told)
        for name in self.common(other):
            a, b = self.mapping[name], other.mapping[name]
            if not _same(name, a, b):
                return f"another grid mapping: expected {name} {_text(a)}, got {_text(b)}"
        return None

    def common(self, other: Frame) -> list[str]:
        """Return what is told of the grid mapping on both sides."""
        return [name for name in self.mapping if name in other.mapping]


def _same(name: str, a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    if len(a) != len(b):
        return False
    apart = np.subtract(a, b)
    if "longitude" in name:
        apart = wrap_longitude(apart)
    return bool((np.abs(apart) <= _ALIKE * np.maximum(1.0, np.abs(a))).all())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(f"{number:g}" for number in value)


def length_unit(told: Any) -> str | None:
    """Return units under one name; None if they are not told."""
    text = str(told or "").strip().lower()
    return next((unit for unit, names in _LENGTHS.items() if text in names), text or None)


def displaced(ours: Grid, theirs: Grid) -> str | None:
    """Return where 2-D latitudes and longitudes put cells of `theirs` elsewhere than `ours` does, or None.

    Corners and centre of what both have in common are compared, to a tenth of a cell; lazy coordinates are not, for
    nothing lazy is computed before it is asked for.
    """
    names = [lonlat_names(grid.coords, grid.dims) for grid in (ours, theirs)]
    if None in names or min(*ours.shape, *theirs.shape) < 2:
        return None
    if _is_lazy(ours) or _is_lazy(theirs):
        return None
    rows, columns = _common(ours.y, theirs.y), _common(ours.x, theirs.x)
    if not len(rows[0]) or not len(columns[0]):
        return None
    (expected, size), (got, _) = _places(ours, rows[1], columns[1]), _places(theirs, rows[0], columns[0])
    coarser = max(theirs.y.spacing / ours.y.spacing, theirs.x.spacing / ours.x.spacing, 1.0)
    apart = np.linalg.norm(got - expected, axis=0) > _APART * size * coarser
    if not apart.any():
        return None
    at = tuple(np.argwhere(apart)[0])
    cell = theirs.y.centres[int(rows[0][at[0]])], theirs.x.centres[int(columns[0][at[1]])]
    return (
        f"2-D latitudes and longitudes lie elsewhere: the cell at {theirs.y.dim}={cell[0]:g}, {theirs.x.dim}="
        f"{cell[1]:g} lies at {_degrees(got[(slice(None), *at)])}, expected {_degrees(expected[(slice(None), *at)])}"
    )


def _is_lazy(grid: Grid) -> bool:
    names = lonlat_names(grid.coords, grid.dims) or ()
    return any(grid.coords[name].chunks is not None for name in names)


def _common(ours: Axis, theirs: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Return the first, a middle and the last cell of `theirs` between centres of `ours`, and where they are there."""
    at = theirs.centres
    if ours.kind == "longitude":
        at = at - 360.0 * np.round((at - (ours.lower[0] + ours.upper[-1]) / 2) / 360.0)
    rounding = SAME_CELL * ours.spacing
    inside = np.flatnonzero((at >= ours.centres[0] - rounding) & (at <= ours.centres[-1] + rounding))
    chosen = inside[np.unique([0, len(inside) // 2, len(inside) - 1])] if len(inside) else inside
    return chosen.astype(float), np.interp(at[chosen], ours.centres, np.arange(ours.size))


def _places(grid: Grid, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (3, row, column) at fractions of cells, and the smaller side of a cell there."""
    names = lonlat_names(grid.coords, grid.dims)
    assert names is not None
    first = [np.minimum(at.astype(int), size - 2) for at, size in zip((rows, columns), grid.shape, strict=True)]
    index = {dim: np.concatenate([at, at + 1]) for dim, at in zip(grid.dims, first, strict=True)}
    planes = [grid.coords[name].transpose(*grid.dims).isel(index).values for name in names]
    count = len(rows), len(columns)
    corners = unit_vectors(*planes).reshape(3, 2, count[0], 2, count[1])
    south, north = corners[:, 0], corners[:, 1]
    sides = np.linalg.norm(north - south, axis=0)[:, 0], np.linalg.norm(south[:, :, 1] - south[:, :, 0], axis=0)
    share = (rows - first[0])[:, None, None], columns - first[1]
    line = south * (1 - share[0]) + north * share[0]
    point = line[:, :, 0] * (1 - share[1]) + line[:, :, 1] * share[1]
    return point / np.linalg.norm(point, axis=0), np.minimum(*sides)


def _degrees(vector: np.ndarray) -> str:
    lat, lon = np.rad2deg(np.arcsin(vector[2])), np.rad2deg(np.arctan2(vector[1], vector[0]))
    return f"lat {lat:.4g}, lon {lon:.4g}"
