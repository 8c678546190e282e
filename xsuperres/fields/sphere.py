"""2-D latitudes and longitudes of rotated and projected grids, coarsened and refined on the sphere.

Labelled arrays in and out. Points are averaged and interpolated as unit vectors, so the date line and the
poles are places like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.fields.axes import lonlat_names

Change = Callable[[np.ndarray], np.ndarray]

__all__ = ["coarsen_lonlat", "refine_lonlat", "unit_vectors"]


def coarsen_lonlat(coords: Mapping[str, xr.Variable], dims: tuple[str, str], scale: int) -> dict[str, xr.Variable]:
    """Return 2-D longitude and latitude of scale x scale groups of cells, or nothing; lazy."""
    return _through_vectors(coords, dims, lambda vectors: _block_mean(vectors, scale))


def refine_lonlat(coords: Mapping[str, xr.Variable], dims: tuple[str, str], scale: int) -> dict[str, xr.Variable]:
    """Return 2-D longitude and latitude of cells cut into scale x scale parts, or nothing; lazy."""
    return _through_vectors(coords, dims, lambda vectors: _refined(_refined(vectors, scale, 1), scale, 2))


def _through_vectors(
    coords: Mapping[str, xr.Variable], dims: tuple[str, str], change: Change
) -> dict[str, xr.Variable]:
    names = lonlat_names(coords, dims)
    if names is None:
        return {}
    lon, lat = (coords[name].transpose(*dims) for name in names)
    if lon.chunks is None and lat.chunks is None:
        planes = _changed(lon.values, lat.values, change)
    else:
        planes = _changed_lazily(lon, lat, change)
    pairs = zip(names, planes, (lon, lat), strict=True)
    return {name: xr.Variable(dims, plane.astype(old.dtype), old.attrs) for name, plane, old in pairs}


def _changed(lon: np.ndarray, lat: np.ndarray, change: Change) -> np.ndarray:
    """Return new longitude and latitude (2, y, x), longitudes in the convention (0..360, -180..180) of the old."""
    vectors = change(unit_vectors(lon, lat))
    longitude = np.rad2deg(np.arctan2(vectors[1], vectors[0]))
    if lon.max() > 180.0:
        longitude = longitude % 360.0
    return np.stack([longitude, np.rad2deg(np.arctan2(vectors[2], np.hypot(vectors[0], vectors[1])))])


def unit_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Return the unit vectors (3, y, x) of places given in degrees."""
    u, v = np.deg2rad(lon.astype(float)), np.deg2rad(lat.astype(float))
    return np.stack([np.cos(v) * np.cos(u), np.cos(v) * np.sin(u), np.sin(v)])


def _changed_lazily(lon: xr.Variable, lat: xr.Variable, change: Change) -> Any:
    """Return the same as a dask array: one task, since planes are small."""
    import dask
    import dask.array

    shape = change(np.empty((3, *lon.shape))).shape
    return dask.array.from_delayed(
        dask.delayed(_changed, pure=False)(lon.data, lat.data, change), (2, *shape[1:]), dtype=float
    )


def _block_mean(vectors: np.ndarray, scale: int) -> np.ndarray:
    c, ny, nx = vectors.shape
    return vectors.reshape(c, ny // scale, scale, nx // scale, scale).mean(axis=(2, 4))


def _refined(vectors: np.ndarray, scale: int, axis: int) -> np.ndarray:
    """Interpolate linearly along one axis, and extrapolate in the outer halves of the outermost cells."""
    lines = np.moveaxis(vectors, axis, 0)
    if len(lines) == 1:
        return np.repeat(vectors, scale, axis=axis)
    padded = np.concatenate([2 * lines[:1] - lines[1:2], lines, 2 * lines[-1:] - lines[-2:-1]])
    out = np.empty((len(lines) * scale, *lines.shape[1:]))
    for phase in range(scale):
        offset = (phase + 0.5) / scale - 0.5
        neighbour = padded[:-2] if offset < 0 else padded[2:]
        out[phase::scale] = (1 - abs(offset)) * lines + abs(offset) * neighbour
    return np.moveaxis(out, 0, axis)
