"""What is known of the surface of a scored domain, and the regions that follow from it.

Fields in, planes (y, x) in canonical order out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from xsuperres.errors import StaticFieldError
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location
from xsuperres.fields.static import ELEVATION, LAND, find_static, named
from xsuperres.model.artefact import SRModel

__all__ = ["elevation_of", "land_of", "region_areas", "surface_of"]

_CLASS_EDGES = (500.0, 1500.0)  # m
_STANDARD_GRAVITY = 9.80665  # m s-2


def surface_of(
    sources: Sequence[Field], grid: Grid, model: SRModel | None = None, location: Location | None = None
) -> tuple[xr.Dataset, list[str]]:
    """Return the static fields that are known on `grid`, and why others are not used.

    Parameters
    ----------
    sources : sequence of Field
        On the cells of `grid`; static fields ride on them; those of the first source come first.
    model, location : SRModel, Location, optional
        The model's static fields fill in, where `grid` lies on its grid.

    Returns
    -------
    Dataset, list of str
        Planes (y, x) in canonical order; notes.
    """
    planes: dict[str, xr.DataArray] = {}
    notes: list[str] = []
    wanted = set(model.static_scaling.names) if model else set()
    for source in sources:
        here = source.grid.locate(grid)
        for name, carrier in _riding(source, wanted).items() if here else []:
            try:
                plane = find_static(carrier, source.grid, [name])[name]
            except StaticFieldError as error:
                notes.append(str(error))
                continue
            if here and name not in planes:
                planes[name] = _cut(plane, source.grid, here, grid)
    if model is not None and location is not None:
        trained = {str(name): plane for name, plane in model.static.data_vars.items()}
        planes |= {n: _cut(plane, model.grid, location, grid) for n, plane in trained.items() if n not in planes}
    return xr.Dataset(planes), list(dict.fromkeys(notes))


def _riding(field: Field, wanted: set[str]) -> dict[str, xr.DataArray]:
    """Return arrays with one coordinate each: the planes that ride on a field and are elevation, land, or wanted."""
    dims, variables = set(field.grid.dims), field.array.coords.variables
    planes = {str(name): variable for name, variable in variables.items() if set(variable.dims) == dims}
    return {
        name: xr.DataArray(plane, {name: plane})
        for name, plane in planes.items()
        if name in wanted or named(xr.Dataset({name: plane}), (*ELEVATION, *LAND)) is not None
    }


def _cut(plane: xr.DataArray, source: Grid, location: Location, grid: Grid) -> xr.DataArray:
    """Return a canonical plane of the grid `source` on `grid`, without coordinates."""
    values = plane.transpose(*source.dims).values[np.ix_(location.rows, location.columns)]
    return xr.DataArray(values, dims=grid.dims, attrs=dict(plane.attrs))


def elevation_of(surface: xr.Dataset) -> xr.DataArray | None:
    """Return the elevation in metres, if it is known: altitude, or geopotential / standard gravity."""
    plane = named(surface, ELEVATION)
    if plane is None:
        return None
    factor = 1e3 if str(plane.attrs.get("units", "m")).lower() in ("km", "kilometre", "kilometers") else 1.0
    if plane.attrs.get("standard_name") == "surface_geopotential":
        factor = 1 / _STANDARD_GRAVITY
    return plane.astype(np.float64) * factor


def land_of(surface: xr.Dataset) -> xr.DataArray | None:
    """Return the fraction of land, 0 to 1, if it is known; CMIP's sftlf comes in percent."""
    plane = named(surface, LAND)
    if plane is None:
        return None
    return plane.astype(np.float64) / (100.0 if float(plane.max()) > 1.5 else 1.0)


def region_areas(grid: Grid, surface: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the cell areas (y, x) within each region, 0 outside: regions without cells are left out.

    "all"; "land" (at least half land) and "sea" where the land fraction is known; classes of elevation over land
    where elevation is known (without a land fraction, cells above 0 m count as land).

    Examples
    --------
    >>> import xsuperres as xsr
    >>> field = Field(xsr.testing.toy_field(time=1, y=8, x=12))
    >>> surface, _ = surface_of([field], field.grid)
    >>> list(region_areas(field.grid, surface))
    ['all', 'land', 'sea', '0-500 m', '500-1500 m', '>1500 m']
    """
    elevation, land = elevation_of(surface), land_of(surface)
    inside: dict[str, np.ndarray] = {"all": np.ones(grid.shape, bool)}
    if land is not None:
        inside |= {"land": land.values >= 0.5, "sea": land.values < 0.5}
    if elevation is not None:
        low, high = _CLASS_EDGES
        height = np.where(inside.get("land", elevation.values > 0), elevation.values, np.nan)
        inside |= {
            f"0-{low:g} m": height < low,
            f"{low:g}-{high:g} m": (height >= low) & (height < high),
            f">{high:g} m": height >= high,
        }
    return {name: np.where(cells, grid.area, 0.0) for name, cells in inside.items() if cells.any()}
