"""Elevation and land fraction of any lat-lon cells, from two global data sets of public origin.

Used by build_sample_data.py. Conservative: a mean is the exact area-weighted mean of a field that
is constant in each source cell, whatever the alignment of the two grids.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOWEST_LAND = -430.0  # m, the shore of the Dead Sea


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it (some imports are slow)."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is missing; see the head of this script")
    return Path(spec.origin).parent


def cumulative_at(values: Floats, edges: Floats, at: Floats, *, period: float | None) -> Floats:
    """Integral of a cell-wise constant field along the first axis, from edges[0] to `at`."""
    integral = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values * np.diff(edges)[:, None], axis=0)])
    turns = np.zeros_like(at) if period is None else np.floor((at - edges[0]) / period)
    inside = at - turns * (period or 0.0)
    cell = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, len(values) - 1)
    part = ((inside - edges[cell]) / (edges[cell + 1] - edges[cell]))[:, None]
    partial = (1 - part) * integral[cell] + part * integral[cell + 1]
    return partial + turns[:, None] * integral[-1]


def mean_along(values: Floats, edges: Floats, bounds: Floats, *, period: float | None = None) -> Floats:
    """Conservative mean along the first axis over each of `bounds` (n, 2), lower bound first."""
    lower, upper = (cumulative_at(values, edges, side, period=period) for side in bounds.T)
    return (upper - lower) / (bounds[:, 1] - bounds[:, 0])[:, None]


def area_mean(field: NDArray[Any], *, edges: tuple[Floats, Floats], bounds: tuple[Floats, Floats]) -> Floats:
    """Area-weighted mean of a global (lat, lon) field, south to north, over lat-lon cells.

    `edges` and `bounds` are (latitude, longitude) in degrees. Longitude is periodic. Columns are
    taken in blocks because the land mask has 933 million cells.
    """
    sin_edges = np.sin(np.deg2rad(edges[0]))
    sin_bounds = np.sin(np.deg2rad(np.sort(bounds[0], axis=1)))
    columns = range(0, field.shape[1], 720)
    bands = [mean_along(field[:, c : c + 720].astype(float), sin_edges, sin_bounds) for c in columns]
    by_longitude = np.concatenate(bands, axis=1).T
    return mean_along(by_longitude, edges[1], np.sort(bounds[1], axis=1), period=360.0).T


class Earth:
    """Elevation and land on their own fine grids, averaged onto any lat-lon cells."""

    def __init__(self, etopo5: Path) -> None:
        mask_file = package_folder("global_land_mask") / "globe_combined_mask_compressed.npz"
        # The mask is True over the ocean and runs from the north-west corner (90 N, 180 W).
        self._land = ~np.load(mask_file)["mask"][::-1]
        self._land_edges = (np.arange(21601) / 120 - 90, np.arange(43201) / 120 - 180)
        with xr.open_dataset(etopo5, decode_times=False) as source:
            relief = source["ROSE"].values
        # ETOPO5 has nodes at multiples of 5': each stands for the 5' cell around it.
        lat = np.clip((np.arange(2162) - 0.5) / 12 - 90, -90, 90)
        self._relief_edges = (lat, (np.arange(4321) - 0.5) / 12)
        self._elevation = self._height_of_land(relief)

    def _height_of_land(self, relief: NDArray[Any]) -> Floats:
        """Height, with sea as 0 m, also where the coasts differ and ETOPO5 has bathymetry."""
        lat, lon = self._relief_edges
        land = self.land_fraction(np.stack([lat[:-1], lat[1:]], 1), np.stack([lon[:-1], lon[1:]], 1))
        inland = land > 1 - 1e-6
        height = np.where(inland, np.maximum(relief, LOWEST_LAND), np.maximum(relief, 0.0))
        return np.where(land >= 0.5, height, 0.0)

    def land_fraction(self, lat_bnds: Floats, lon_bnds: Floats) -> Floats:
        mean = area_mean(self._land, edges=self._land_edges, bounds=(lat_bnds, lon_bnds))
        return np.clip(mean, 0.0, 1.0)

    def elevation(self, lat_bnds: Floats, lon_bnds: Floats) -> Floats:
        return area_mean(self._elevation, edges=self._relief_edges, bounds=(lat_bnds, lon_bnds))
