"""Horizontal axes: their order, their cells, where one lies on another.

Labelled arrays in, numbers out. The canonical order of an axis is south to north or west to east, longitudes
unwrapped so that they increase; blocks of data always run that way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr

from xsuperres.errors import GridError

__all__ = [
    "SAME_CELL",
    "Axis",
    "check_divisible",
    "locate",
    "lonlat_names",
    "make_axis",
    "stored_cells",
    "wrap_longitude",
]

Kind = Literal["latitude", "longitude", "other"]

_SPHERICAL: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "y": ("latitude", ("latitude", "grid_latitude", "lat", "rlat", "degrees_north", "degree_north")),
    "x": ("longitude", ("longitude", "grid_longitude", "lon", "rlon", "degrees_east", "degree_east")),
}
SAME_CELL = 1e-3  # of the spacing: closer centres are one cell; float32 coordinates of a 0.01 degree grid stay below


@dataclass(frozen=True)
class Axis:
    """One horizontal axis in canonical order.

    Parameters
    ----------
    dim, name : str
        Its dimension, and the coordinate that holds its values (most often of the same name).
    centres : ndarray (n,)
        Increasing cell centres; longitudes unwrapped.
    lower, upper : ndarray (n,)
        Cell bounds; latitudes end at the poles.
    order : slice or ndarray
        ``stored values[order]`` is canonical.
    breaks : tuple of int
        Cells that a gap separates from the one before.
    """

    dim: str
    name: str
    kind: Kind
    centres: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    order: slice | np.ndarray = field(default_factory=lambda: slice(None))
    periodic: bool = False
    breaks: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.centres)

    @cached_property
    def spacing(self) -> float:
        """Median width of the cells."""
        return float(np.median(self.upper - self.lower))

    @property
    def parts(self) -> list[slice]:
        """The stretches between gaps."""
        edges = [0, *self.breaks, self.size]
        return [slice(a, b) for a, b in itertools.pairwise(edges)]

    @property
    def flipped(self) -> bool:
        """Whether the stored order is the reverse of the canonical one."""
        return isinstance(self.order, slice) and self.order.step == -1

    @property
    def west(self) -> float:
        """Where its turn begins: its west end; of a circle the meridian of 0 or 180, if its first cell is there."""
        seam = 180.0 * np.floor(self.centres[0] / 180.0)
        return float(seam if self.periodic and seam >= self.lower[0] else self.lower[0])

    def lengths(self) -> np.ndarray:
        """Return what each cell contributes to the cell area: |sin north - sin south|, or its width."""
        if self.kind == "latitude":
            return np.abs(np.sin(np.deg2rad(self.upper)) - np.sin(np.deg2rad(self.lower)))
        return self.upper - self.lower

    def take(self, index: np.ndarray) -> Axis:
        """Return the axis of the cells `index`, consecutive, in canonical order; a full turn stays periodic."""
        turns = np.where(np.diff(index, prepend=index[0]) < 0, 360.0, 0.0).cumsum()
        values = {name: getattr(self, name)[index] + turns for name in ("centres", "lower", "upper")}
        whole = self.periodic and len(index) == self.size
        return replace(self, **values, order=slice(None), periodic=whole, breaks=())

    def coarsen(self, scale: int) -> Axis:
        """Return the axis of groups of `scale` cells; the centre is the mean of the fine centres."""
        check_divisible(self, scale)
        groups = slice(None, None, scale), slice(scale - 1, None, scale)
        return replace(
            self,
            centres=self.centres.reshape(-1, scale).mean(axis=1),
            lower=self.lower[groups[0]],
            upper=self.upper[groups[1]],
            order=slice(None, None, -1) if self.flipped else slice(None),
            breaks=tuple(at // scale for at in self.breaks),
        )

    def refine(self, scale: int) -> Axis:
        """Return the axis of the cells cut into `scale` equal parts, through their bounds."""
        lower, upper = self._unclipped(scale)
        steps = np.arange(scale)[None, :]
        width = ((upper - lower) / scale)[:, None]
        edges = (lower[:, None] + width * steps).ravel(), (lower[:, None] + width * (steps + 1)).ravel()
        centres = (lower[:, None] + width * (steps + 0.5)).ravel()
        if self.kind == "latitude":
            edges = np.clip(edges[0], -90.0, 90.0), np.clip(edges[1], -90.0, 90.0)
        return replace(
            self,
            centres=centres,
            lower=edges[0],
            upper=edges[1],
            order=slice(None, None, -1) if self.flipped else slice(None),
            breaks=tuple(at * scale for at in self.breaks),
        )

    def _unclipped(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bounds symmetric about the centre for cells cut at a pole, if their parts stay on the globe.

        Four rows centred on 87..90 degrees make a coarse cell of 86.5..90 whose parts are those rows again; a row
        centred on the pole itself is half a cell, and so are its parts.
        """
        lower, upper = self.lower.copy(), self.upper.copy()
        if self.kind == "latitude":
            high, low = 2 * self.centres - lower, 2 * self.centres - upper
            north = (upper >= 90.0) & (high - (self.centres - lower) / scale <= 90.0 + 1e-9)
            south = (lower <= -90.0) & (low + (upper - self.centres) / scale >= -90.0 - 1e-9)
            upper[north] = np.maximum(upper, high)[north]
            lower[south] = np.minimum(lower, low)[south]
        return lower, upper


def wrap_longitude(difference: Any) -> Any:
    """Return a difference of longitudes as the shorter way around: -180 to 180 degrees.

    Examples
    --------
    >>> wrap_longitude(350.0), wrap_longitude(-190.0)
    (-10.0, 170.0)
    """
    return (difference + 180.0) % 360.0 - 180.0


def stored_cells(axis: Axis, index: np.ndarray) -> np.ndarray:
    """Return the stored positions of canonical cells, in the stored orientation.

    Examples
    --------
    >>> north_first = Axis("lat", "lat", "latitude", *np.array([[-1, 0, 1.0], [-1.5, -0.5, 0.5], [-0.5, 0.5, 1.5]]),
    ...                    slice(None, None, -1))
    >>> stored_cells(north_first, np.array([0, 1]))
    array([1, 2])
    """
    cells = np.arange(axis.size)[axis.order][index]
    return cells[::-1] if axis.flipped else cells


def check_divisible(axis: Axis, scale: int) -> None:
    """Raise the error that names a crop unless every part of the axis is a multiple of `scale` cells."""
    for part in axis.parts:
        size = part.stop - part.start
        if size % scale or size < scale:
            fits = size - size % scale
            what, crop = f"Dimension {axis.dim!r}", f".isel({axis.dim}=slice(0, {fits}))"
            if axis.breaks:
                ends = axis.centres[part.start], axis.centres[part.stop - 1]
                what = f"The part of {axis.dim!r} from {ends[0]:g} to {ends[1]:g}, between gaps,"
                crop = "the first of these cells"
            advice = f"crop it to {fits}, for instance {crop}" if fits else "use a larger domain"
            raise GridError(f"{what} has {size} cells, which scale={scale} does not divide; {advice}.")


def make_axis(
    da: xr.DataArray,
    dim: str,
    which: Literal["y", "x"],
    *,
    gaps: bool = False,
    bounds: xr.Dataset | None = None,
) -> Axis:
    """Return the axis along `dim`.

    Parameters
    ----------
    gaps : bool
        Whether a gap wider than 1.5 cells along x is allowed; the axis then starts after the widest one.
    bounds : xr.Dataset, optional
        Where the variable that the coordinate's ``bounds`` attribute names may be found; else cells reach half-way
        to their neighbours. (A DataArray cannot carry bounds: their second dimension is not its own.)
    """
    coordinate = _coordinate(da, dim, which)
    kind = _kind(coordinate, which)
    values = np.asarray(coordinate.values, dtype=np.float64)
    values, order = _increasing(values, dim, kind)
    if gaps and kind == "longitude":
        values, order = _after_widest_gap(values, order)
    lower, upper = _bounds(bounds, coordinate, values, order, kind)
    axis = Axis(dim, str(coordinate.name), kind, values, lower, upper, order)
    axis = replace(axis, breaks=_gaps(axis, which, allowed=gaps and which == "x"))
    if kind == "longitude" and not axis.breaks:
        turn = abs(upper[-1] - lower[0] - 360.0)
        if upper[-1] - lower[0] > 360.0 + 0.5 * axis.spacing:
            raise GridError(
                f"Coordinate {dim!r} covers {upper[-1] - lower[0]:g} degrees, more than a full turn; "
                "drop the repeated columns."
            )
        axis = replace(axis, periodic=bool(turn < 0.01 * axis.spacing))
    return axis


def _coordinate(da: xr.DataArray, dim: str, which: str) -> xr.DataArray:
    """Return the 1-D coordinate along `dim`, also when it bears another name than the dimension."""
    if dim in da.coords:
        found = da.coords[dim]
    else:
        lines = [c for c in da.coords.values() if c.dims == (dim,) and c.dtype.kind in "fiu"]
        if not lines:
            raise GridError(
                f"Dimension {dim!r} has no 1-D coordinate, so its cells are unknown; assign one "
                "(latitude or longitude, rotated or projected coordinates)."
            )
        found = next((c for c in lines if _kind(c, which) != "other"), lines[0])
    if found.dtype.kind not in "fiu":
        raise GridError(f"Coordinate {dim!r} must be numeric, got dtype {found.dtype}.")
    return found


def _kind(coordinate: xr.DataArray, which: str) -> Kind:
    kind, words = _SPHERICAL[which]
    attrs = coordinate.attrs
    told = [attrs.get("standard_name"), attrs.get("units"), coordinate.name, attrs.get("long_name")]
    projected = str(attrs.get("standard_name", "")).startswith("projection_")
    return kind if not projected and any(str(word).lower() in words for word in told) else "other"


def _increasing(values: np.ndarray, dim: str, kind: Kind) -> tuple[np.ndarray, slice | np.ndarray]:
    """Return strictly increasing values and the order that makes them so."""
    if not np.isfinite(values).all():
        raise GridError(f"Coordinate {dim!r} has missing values; drop or fill them.")
    order: slice | np.ndarray = slice(None)
    steps = np.diff(values)
    if kind == "longitude":
        steps = wrap_longitude(steps)
    if len(steps) and np.sum(steps < 0) > len(steps) / 2:
        values, order = values[::-1], slice(None, None, -1)
    told = values
    if kind == "longitude" and len(values):
        turns = 360.0 * np.concatenate([[0], np.cumsum(np.diff(values) < 0)])
        values = values + turns
    if len(np.unique(values)) < len(values):
        raise GridError(f"Coordinate {dim!r} has repeated values; keep each cell once (drop_duplicates).")
    wound = kind == "longitude" and len(values) and values[-1] - values[0] > 360.0
    if wound and not (np.diff(told) < 0).any():
        raise GridError(f"Coordinate {dim!r} covers more than a full turn; drop the repeated columns.")
    if wound or (np.diff(values) <= 0).any():
        raise GridError(f"Coordinate {dim!r} is not monotonic, also when longitudes are unwrapped; sort it (sortby).")
    return values, order


def _after_widest_gap(values: np.ndarray, order: slice | np.ndarray) -> tuple[np.ndarray, slice | np.ndarray]:
    """Turn a circle of longitudes so that its widest gap, if there is one, lies at the ends."""
    if len(values) < 3:
        return values, order
    steps = np.diff(values, append=values[0] + 360.0)
    at = int(np.argmax(steps)) + 1
    closing = steps[-1] <= 1.5 * np.median(steps)
    if at == len(values) or not closing or steps[at - 1] <= 1.5 * np.median(steps):
        return values, order
    index = np.arange(len(values))[order]
    return np.concatenate([values[at:], values[:at] + 360.0]), np.roll(index, -at)


def _bounds(
    source: xr.Dataset | None,
    coordinate: xr.DataArray,
    values: np.ndarray,
    order: slice | np.ndarray,
    kind: Kind,
) -> tuple[np.ndarray, np.ndarray]:
    """Return given bounds, brought to the canonical order, or bounds half-way between the centres."""
    name = coordinate.attrs.get("bounds", coordinate.encoding.get("bounds"))
    if source is not None and name in source.variables and source[name].shape == (len(values), 2):
        pairs = np.sort(np.asarray(source[name].values, dtype=np.float64)[order], axis=1)
        if kind == "longitude":  # to the turn of the centres
            pairs = pairs + 360.0 * np.round((values - pairs.mean(axis=1)) / 360.0)[:, None]
        if not ((pairs[:, 0] <= values) & (values <= pairs[:, 1])).all():
            raise GridError(f"Bounds {name!r} do not contain the values of {coordinate.name!r}; correct them.")
        return pairs[:, 0].copy(), pairs[:, 1].copy()
    return _inferred_bounds(values, kind, str(coordinate.name))


def _inferred_bounds(values: np.ndarray, kind: Kind, name: str) -> tuple[np.ndarray, np.ndarray]:
    if len(values) < 2:
        raise GridError(f"Coordinate {name!r} has {len(values)} cells; at least 2, or bounds, are needed.")
    steps = np.diff(values)
    usual = np.median(steps)
    steps = np.where((kind == "longitude") & (steps > 1.5 * usual), usual, steps)  # a gap is no wide cell
    lower = values - np.concatenate([steps[:1], steps]) / 2
    upper = values + np.concatenate([steps, steps[-1:]]) / 2
    if kind == "latitude":
        if np.abs(values).max() > 90.0:
            raise GridError(f"Latitudes {name!r} go beyond the poles: {values.min():g} to {values.max():g}.")
        lower, upper = np.clip(lower, -90.0, 90.0), np.clip(upper, -90.0, 90.0)
    return lower, upper


def _gaps(axis: Axis, which: str, *, allowed: bool) -> tuple[int, ...]:
    if axis.size < 3 or (which == "y" and axis.kind == "other"):
        return ()
    steps = np.diff(axis.centres)
    found = np.flatnonzero(steps > 1.5 * np.median(steps) + 1e-9)
    if len(found) and not allowed:
        at = int(found[0])
        raise GridError(
            f"Coordinate {axis.dim!r} has a gap between {axis.centres[at]:g} and {axis.centres[at + 1]:g}, wider than "
            "1.5 cells. Select a connected part and take the parts one by one, or fill the missing cells with NaN "
            "(reindex)."
        )
    return tuple(int(at) + 1 for at in found)


def locate(stored: Axis, wanted: Axis, scale: int = 1) -> np.ndarray | None:
    """Return the indices of the stored cells whose groups of `scale` are the cells of `wanted`, or None if none are.

    Centres are compared to 1e-3 of the spacing, longitudes modulo a turn; a stretch may wrap on a periodic axis, and
    never crosses a gap. Of a group the mean of the centres is compared, so that uneven spacing and rows cut at a pole
    are found too.
    """
    count = wanted.size * scale
    if wanted.kind != stored.kind or count > stored.size:
        return None
    tolerance = SAME_CELL * stored.spacing
    laps = 2 if stored.periodic else 1
    centres = np.concatenate([stored.centres + 360.0 * lap for lap in range(laps)])
    means = np.lib.stride_tricks.sliding_window_view(centres, scale).mean(axis=1)

    def off(start: np.ndarray | int, cells: np.ndarray) -> np.ndarray:
        gap = means[start + scale * cells] - wanted.centres[cells]
        return np.abs(wrap_longitude(gap) if stored.kind == "longitude" else gap) > tolerance

    starts = np.arange(min(stored.size, len(centres) - count + 1))
    hits = starts[~off(starts, np.zeros(1, int))]
    if not len(hits) or off(int(hits[0]), np.arange(wanted.size)).any():
        return None
    index = int(hits[0]) + np.arange(count)
    crosses = any(index[0] < at <= index[-1] for at in stored.breaks)
    return None if crosses else index % stored.size


def lonlat_names(coords: Mapping[str, xr.Variable], dims: tuple[str, str]) -> tuple[str, str] | None:
    """Return the names of the 2-D longitude and latitude among `coords`, if both are there."""
    found = {}
    for which in ("longitude", "latitude"):
        for name, variable in coords.items():
            told = (variable.attrs.get("standard_name"), str(name), variable.attrs.get("long_name"))
            if set(variable.dims) == set(dims) and {which, which[:3]} & {str(t).lower() for t in told}:
                found[which] = str(name)
                break
    return (found["longitude"], found["latitude"]) if len(found) == 2 else None
