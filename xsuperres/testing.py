"""Toy fields and checks for tests, doctests and notebooks."""

from __future__ import annotations

import numpy as np
import xarray as xr

__all__ = ["toy_field"]


def toy_field(
    *,
    time: int = 8,
    y: int = 24,
    x: int = 32,
    periodic: bool = False,
    seed: int = 0,
    dtype: str = "float32",
) -> xr.DataArray:
    """Return a smooth temperature-like field over mountains, with elevation and land fraction riding along.

    Parameters
    ----------
    time, y, x : int
        Sizes.
    periodic : bool
        Whether longitude covers the full turn.
    seed : int
        Of the random waves.

    Returns
    -------
    DataArray
        ``tas`` [K], dims (time, lat, lon), coordinates elevation [m] and land_fraction [1].

    Examples
    --------
    >>> toy_field(time=2, y=8, x=8).sizes["lat"]
    8
    """
    rng = np.random.default_rng(seed)
    width = 360.0 / x if periodic else 1.0
    lat = -0.4 * y + 0.8 * np.arange(y) + 20.0
    lat = np.linspace(-60, 60, y) if periodic else lat
    lon = width * (np.arange(x) + 0.5)
    waves = _waves(rng, y, x, 12, highest=max(2, min(y, x) // 3))
    elevation = np.clip(900 * waves[:6].sum(axis=0), 0, None)
    land = (waves[6:9].sum(axis=0) > 0).astype(float)
    weather = _waves(rng, y, x, time, highest=4) * 6
    detail = _waves(rng, y, x, time, highest=max(4, y // 3)) * 0.3
    tas = 288 - 0.3 * np.abs(lat)[None, :, None] + weather + detail - 6e-3 * elevation + 2 * land
    return xr.DataArray(
        tas.astype(dtype),
        dims=("time", "lat", "lon"),
        coords={
            "time": np.datetime64("2001-01-01", "ns") + np.arange(time) * np.timedelta64(1, "D"),
            "lat": ("lat", lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": ("lon", lon, {"standard_name": "longitude", "units": "degrees_east"}),
            "elevation": (("lat", "lon"), elevation, {"standard_name": "surface_altitude", "units": "m"}),
            "land_fraction": (
                ("lat", "lon"),
                land,
                {"standard_name": "land_area_fraction", "units": "1"},
            ),
        },
        name="tas",
        attrs={"units": "K", "standard_name": "air_temperature", "long_name": "Air temperature"},
    )


def _waves(rng: np.random.Generator, y: int, x: int, count: int, *, highest: int) -> np.ndarray:
    """Return `count` random plane waves (count, y, x), periodic in x, amplitude about 1."""
    rows, columns = np.arange(y)[None, :, None] / y, np.arange(x)[None, None, :] / x
    ky, kx = rng.integers(1, highest + 1, (2, count, 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    return np.sin(2 * np.pi * (ky * rows * rng.choice([-0.5, 0.5], (count, 1, 1)) + kx * columns) + phase)
