"""Static fields: found on a DataArray or given, brought to a grid, made into network channels.

Labelled arrays in; static fields come out as a Dataset of planes (y, x) in canonical order, dtypes kept. Each gives
two channels: its anomaly (fine minus interpolated coarse of the same field) and its value, both scaled by what
the training domain showed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from xsuperres.errors import StaticFieldError, warn
from xsuperres.fields.checks import check_decoded, check_units
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid
from xsuperres.fields.resample import coarsen_array, interpolate_array

__all__ = [
    "ELEVATION",
    "LAND",
    "StaticScaling",
    "anomalies",
    "find_static",
    "fit_static_scaling",
    "named",
    "planes_on",
    "riding_statics",
    "static_channels",
    "static_fields",
    "without_statics",
]

ELEVATION = ("surface_altitude", "surface_geopotential")
LAND = ("land_binary_mask", "land_area_fraction")
_STANDARD_NAMES = {
    *ELEVATION,
    *LAND,
    "sea_binary_mask",
    "sea_area_fraction",
    "sea_floor_depth_below_geoid",
    "soil_type",
    "surface_roughness_length",
    "vegetation_area_fraction",
    "slope",
    "aspect",
}
_COMMON_NAMES = {
    "elevation": ELEVATION[0],
    "orography": ELEVATION[0],
    "orog": ELEVATION[0],
    "topography": ELEVATION[0],
    "altitude": ELEVATION[0],
    "land_mask": LAND[0],
    "land_sea_mask": LAND[0],
    "lsm": LAND[0],
    "land_fraction": LAND[1],
    "sftlf": LAND[1],
}

StaticLike = xr.Dataset | xr.DataArray | Sequence[str]


def find_static(da: xr.DataArray, grid: Grid, static: StaticLike | None) -> xr.Dataset:
    """Return the static fields for `grid`, the fine grid, as planes in canonical order, dtypes kept.

    Parameters
    ----------
    da : xr.DataArray
        Its coordinates are searched when `static` is None (CF standard names) or a list of names.
    grid : Grid
        The fine grid that must be covered.
    static : Dataset, DataArray, list of str or None
        Fields with coordinates of their own may cover more than the grid.

    Raises
    ------
    StaticFieldError
        If one is missing, not a plane, on another grid, or NaN somewhere on the grid.
    """
    if isinstance(static, str):
        static = [static]
    if isinstance(static, (xr.Dataset, xr.DataArray)):
        return planes_on(grid, static_fields(static))
    names = riding_statics(da, grid) if static is None else _asked(da, grid, static)
    return xr.Dataset({name: _plane(name, grid.canonical(da.coords[name]), grid) for name in names})


def planes_on(grid: Grid, fields: Mapping[str, Field]) -> xr.Dataset:
    """Return static fields that cover `grid`, and maybe more, as planes on it; see `find_static` for the errors."""
    return xr.Dataset({name: _plane(name, _on_grid(name, field, grid), grid) for name, field in fields.items()})


def static_fields(static: xr.Dataset | xr.DataArray, like: xr.Dataset | None = None) -> dict[str, Field]:
    """Return the fields of ``static=``, each with coordinates of its own.

    Parameters
    ----------
    static : Dataset or DataArray
        Planes as data variables, or riding as coordinates on whatever this is.
    like : Dataset, optional
        The fields that are needed, as the model holds them: found by name, else by CF standard name, and then called
        like these. By default all planes, else the static fields that ride along.

    Raises
    ------
    StaticFieldError
        If one that is needed is not there, or several could be it.
    UnitsError
        If its units are not those of `like`.
    """
    ds = static if isinstance(static, xr.Dataset) else static.to_dataset(name=_free_name(static))
    there = {str(n): ds[n] for n, v in ds.variables.items() if v.ndim >= 2 and not str(n).endswith("_bnds")}
    if like is not None:
        return {name: Field(_without_single_dims(da)) for name, da in _needed(there, like).items()}
    planes = [n for n, field in there.items() if n in ds.data_vars and field.squeeze().ndim == 2]
    names = planes or [n for n, field in there.items() if n in ds.coords and _is_static(n, field)]
    names = names or [n for n in there if n in ds.data_vars]
    return {name: Field(_without_single_dims(there[name])) for name in names}


def _without_single_dims(field: xr.DataArray) -> xr.DataArray:
    """Return a field of more than two dims without those of size 1."""
    extra = [dim for dim in field.dims if field.sizes[dim] == 1 and field.ndim > 2]
    return field.squeeze(extra, drop=True) if extra else field


def _needed(there: Mapping[str, xr.DataArray], like: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the fields that `like` names, by name, else by standard name, among those given, in its units."""
    called = {str(name): _called(str(name), field, there, like) for name, field in like.data_vars.items()}
    missing = [name for name, given in called.items() if given is None]
    if missing:
        told = [str(_standard_name(name, like[name])) for name in missing]
        raise StaticFieldError(
            f"Static fields {missing} are needed (or others of standard_name {told}), not among those given: "
            f"{sorted(there)}; pass a Dataset, or data on which they ride as coordinates."
        )
    found = {name: there[given] for name, given in called.items() if given is not None}
    for name, field in found.items():
        check_units(field, like[name].attrs.get("units"), what=f"static field {name!r}")
    return found


def _called(name: str, field: xr.DataArray, there: Mapping[str, xr.DataArray], like: xr.Dataset) -> str | None:
    """Return what a field is called among those given: the same, else the name of the one of its standard name."""
    if name in there:
        return name
    told = _standard_name(name, field)
    others = [n for n, given in there.items() if n not in like and told and _standard_name(n, given) == told]
    if len(others) > 1:
        raise StaticFieldError(
            f"Static field {name!r} is needed; those given hold several of standard_name {told!r}: {sorted(others)}. "
            f"Rename the one that is meant to {name!r}."
        )
    return others[0] if others else None


def _standard_name(name: str, field: xr.DataArray) -> str | None:
    """Return the CF standard name by attribute, else by usual name."""
    told = field.attrs.get("standard_name") or _COMMON_NAMES.get(name.lower())
    return None if told is None else str(told)


def _free_name(da: xr.DataArray) -> str:
    """Return the DataArray's name, or one that no coordinate of it bears."""
    name = str(da.name or "static")
    return name if name not in da.coords else f"{name}_"


def riding_statics(da: xr.DataArray, grid: Grid) -> list[str]:
    """Return the names of 2-D coordinates that are static fields by their standard name."""
    return [
        str(name)
        for name, field in da.coords.items()
        if set(field.dims) == set(grid.dims) and _is_static(str(name), field)
    ]


def without_statics(grid: Grid) -> Grid:
    """Return the grid without the static fields that ride among its coordinates: a model holds them itself."""
    return replace(grid, coords={n: v for n, v in grid.coords.items() if v.ndim < 2 or not _is_static(n, v)})


def _is_static(name: str, field: xr.DataArray | xr.Variable) -> bool:
    return field.dtype.kind in "fbiu" and (
        field.attrs.get("standard_name") in _STANDARD_NAMES or name.lower() in _COMMON_NAMES
    )


def _asked(da: xr.DataArray, grid: Grid, names: Iterable[str]) -> list[str]:
    names = list(names)
    missing = [name for name in names if name not in da.coords]
    if missing:
        there = [str(n) for n, c in da.coords.items() if set(c.dims) == set(grid.dims)]
        raise StaticFieldError(
            f"Static fields {missing} are not coordinates of the data; 2-D coordinates there: {there}. "
            "Attach them with .assign_coords(name=field) or pass static=Dataset."
        )
    return names


def _on_grid(name: str, field: Field, grid: Grid) -> xr.Variable:
    """Return a field with coordinates of its own, cut to `grid`."""
    if field.array.ndim != 2:
        raise StaticFieldError(
            f"Static field {name!r} must have the two horizontal dims, got {tuple(field.array.dims)}; "
            "select one time (.isel(time=0, drop=True))."
        )
    own = field.grid
    location = own.locate(grid)
    if location is None:
        why = grid.mismatch(own)
        raise StaticFieldError(
            f"Static field {name!r} lies on another grid: expected {grid.describe()}, or more of the same cells, "
            f"got {own.describe()}{'' if why is None else ': ' + why}."
        )
    cut = field.canonical().isel({own.y.dim: location.rows, own.x.dim: location.columns})
    return xr.Variable(grid.dims, cut.data, cut.attrs)


def _plane(name: str, field: xr.Variable, grid: Grid) -> xr.DataArray:
    if set(field.dims) != set(grid.dims):
        raise StaticFieldError(f"Static field {name!r} must have dims {grid.dims}, got {tuple(field.dims)}.")
    if field.dtype.kind not in "fbiu":
        raise StaticFieldError(f"Static field {name!r} must be numeric, got dtype {field.dtype}.")
    values = field.values
    check_decoded(values, name, error=StaticFieldError)
    if not np.isfinite(values).all():
        share = 100 * float(np.mean(~np.isfinite(values)))
        raise StaticFieldError(
            f"Static field {name!r} is NaN on {share:.2g} % of the domain; fill it, for instance .fillna(0) for "
            "elevation over the sea."
        )
    return xr.DataArray(values, dims=grid.dims, attrs=dict(field.attrs))


def named(static: xr.Dataset, standard_names: Iterable[str]) -> xr.DataArray | None:
    """Return the first static field with one of the CF standard names, by attribute or by its usual name."""
    wanted = set(standard_names)
    for name, field in static.data_vars.items():
        if _standard_name(str(name), field) in wanted:
            return field
    return None


@dataclass(frozen=True)
class StaticScaling:
    """How static fields become channels: each name's mean, sd and sd of the anomaly on the training domain."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    anomaly_sd: tuple[float, ...]


def anomalies(static: xr.Dataset, grid: Grid, scale: int) -> np.ndarray:
    """Return each static field minus the interpolation of its own coarsening, float64 (static, y, x)."""
    if not static.data_vars:
        return np.zeros((0, *grid.shape))
    fields = np.stack([static[name].values.astype(np.float64) for name in static.data_vars])
    out = np.empty_like(fields)
    for part in grid.parts():
        fine = fields[..., part]
        coarse = coarsen_array(fine, grid.area[:, part], scale)
        out[..., part] = fine - interpolate_array(coarse, scale, "bicubic", periodic=grid.x.periodic)
    return out


def fit_static_scaling(static: xr.Dataset, anomaly: np.ndarray, area: np.ndarray) -> StaticScaling:
    """Return the area-weighted statistics that scale static fields and their anomalies."""
    names = tuple(str(name) for name in static.data_vars)
    weight = area / area.sum()
    means, sds, anomaly_sds = [], [], []
    for index, name in enumerate(names):
        values = static[name].values.astype(np.float64)
        mean = float((values * weight).sum())
        sd = float(np.sqrt(((values - mean) ** 2 * weight).sum()))
        if not sd > 1e-12 * max(1.0, abs(mean)):
            warn(f"Static field {name!r} is constant on the training domain: the network learns nothing from it.")
        anomaly_sd = float(np.sqrt((anomaly[index] ** 2 * weight).sum()))
        means.append(mean)
        sds.append(sd if sd > 1e-12 * max(1.0, abs(mean)) else 1.0)
        anomaly_sds.append(anomaly_sd if anomaly_sd > 1e-9 * max(1.0, abs(mean)) else 1.0)
    return StaticScaling(names, tuple(means), tuple(sds), tuple(anomaly_sds))


def static_channels(static: xr.Dataset, anomaly: np.ndarray, scaling: StaticScaling) -> np.ndarray:
    """Return the network's static channels, float32 (2 x static, y, x): anomalies, then values."""
    if not scaling.names:
        return np.zeros((0, *anomaly.shape[-2:]), np.float32)
    fields = np.stack([static[name].values.astype(np.float64) for name in scaling.names])
    columns = [np.asarray(v)[:, None, None] for v in (scaling.mean, scaling.sd, scaling.anomaly_sd)]
    mean, sd, anomaly_sd = columns
    return np.concatenate([anomaly / anomaly_sd, (fields - mean) / sd]).astype(np.float32)
