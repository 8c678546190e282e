"""The linear baselines as fields: what a network's field is compared with.

Labelled arrays in and out; lazy if the coarse field is dask-backed. Coefficients come from `xsuperres.fields.baselines`
by way of the model; bilinear, bicubic and lapse need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, UnitsError
from xsuperres.fields.baselines import LAPSE_RATE
from xsuperres.fields.checks import check_units, check_values
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location, grid_of
from xsuperres.fields.resample import interpolate
from xsuperres.fields.static import anomalies
from xsuperres.model.artefact import SRModel, Target
from xsuperres.registry import Registry
from xsuperres.verify.alignment import loaded_coords, on_grid, scale_between, with_dims_of
from xsuperres.verify.regions import elevation_of, surface_of

__all__ = [
    "BASELINES",
    "Ground",
    "UndefinedBaselineError",
    "baseline_fields",
    "evaluated",
    "is_temperature",
    "model_location",
]

_TEMPERATURES = (
    "air_temperature",
    "surface_temperature",
    "surface_air_temperature",
    "air_temperature_at_2m",
    "skin_temperature",
)
_TEMPERATURE_NAMES = ("tas", "tasmax", "tasmin", "ts", "t2m", "2t", "t2", "skt", "tmean", "tmax", "tmin", "temp")
_TEMPERATURE_UNITS = ("k", "kelvin", "degk", "degc", "celsius", "degree_celsius", "degrees_celsius", "°c")


class UndefinedBaselineError(ConfigError):
    """A baseline does not exist here; the message says why."""


@dataclass(frozen=True, eq=False)
class Ground:
    """All that the baselines of one domain are made of.

    Parameters
    ----------
    coarse : DataArray
        The coarse field.
    like : DataArray
        A field on the fine grid, whose coordinates the baselines get.
    grid : Grid
        That of `like`.
    scale : int
        Fine cells per coarse cell along each axis.
    surface : Dataset
        Static fields, planes (y, x) in canonical order.
    model : SRModel or None
        Holds the trained coefficients.
    why_no_model : str
        Reason that is given where a model is needed and there is none.
    """

    coarse: xr.DataArray
    like: xr.DataArray
    grid: Grid
    scale: int
    surface: xr.Dataset
    model: SRModel | None = None
    why_no_model: str = "no model was given"
    cache: dict[str, xr.DataArray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        coarse: xr.DataArray,
        like: xr.DataArray,
        *,
        model: SRModel | None = None,
        surface: xr.Dataset | None = None,
        why_no_model: str = "no model was given",
    ) -> Ground:
        """Return the ground of a coarse field and one on its fine grid, with the static fields that ride on it."""
        check_values(coarse)
        grid = grid_of(like)
        coarse, like = with_dims_of(loaded_coords(coarse), grid), loaded_coords(like)
        scale = scale_between(grid, grid_of(coarse))
        if surface is None:
            location = model_location(model, grid, scale) if model else None
            surface, _ = surface_of([like], grid, model, location)
        return cls(coarse, like, grid, scale, surface, model, why_no_model)

    def interpolated(self, method: str) -> xr.DataArray:
        """Return the coarse field interpolated: (..., y, x) in canonical order, no coordinates; lazy."""
        if method not in self.cache:
            fine = interpolate(Field(self.coarse), self.scale, method=method, like=self.like).array
            self.cache[method] = on_grid(fine, self.grid, what="coarse")
        return self.cache[method]

    def plus(self, plane: np.ndarray) -> xr.DataArray:
        """Return bicubic plus a plane (y, x), in the dtype of the coarse field."""
        bicubic = self.interpolated("bicubic")
        return (bicubic + xr.DataArray(plane, dims=self.grid.dims)).astype(bicubic.dtype)

    def trained_on(self, change: Callable[[xr.DataArray], xr.DataArray]) -> xr.DataArray:
        """Return a change of bicubic in the model's transformed units, brought back; dtype of the coarse field."""
        bicubic, target = self.interpolated("bicubic"), self.target
        plain = target.transform.kind is None and target.climatology is None
        transformed = bicubic if plain else self._transformed()
        changed = change(transformed).transpose(*bicubic.dims)
        if not plain:
            changed = changed + self._climatology(1)
            changed = xr.apply_ufunc(target.transform.back, changed, dask="parallelized", output_dtypes=[changed.dtype])
        low, high = target.bounds
        changed = changed if low is None and high is None else changed.clip(low, high)  # as the network is
        return changed.astype(bicubic.dtype)

    def _transformed(self) -> xr.DataArray:
        """Return the interpolation of the transformed coarse field, canonical."""
        forth = self.target.transform.forth
        coarse = xr.apply_ufunc(forth, self.coarse, dask="parallelized", output_dtypes=[self.coarse.dtype])
        own = grid_of(self.coarse)
        below = self._climatology(0).rename(dict(zip(self.grid.dims, own.dims, strict=True)))
        restored = own.restored(below, tuple(dim for dim in self.coarse.dims if dim in own.dims))
        coarse = (coarse - restored.drop_vars(list(restored.coords))).transpose(*self.coarse.dims)
        fine = interpolate(Field(coarse.astype(self.coarse.dtype)), self.scale, method="bicubic", like=self.like).array
        return on_grid(fine, self.grid, what="coarse")

    def _climatology(self, which: int) -> xr.DataArray:
        """Return the climatology on the coarse (0) or the fine (1) cells of this grid, 0 where there is none."""
        shape = self.grid.shape if which else tuple(size // self.scale for size in self.grid.shape)
        plane = np.zeros(shape)
        if self.target.climatology is not None and self.location is not None:
            step = 1 if which else self.scale
            rows, columns = (index[::step] // step for index in (self.location.rows, self.location.columns))
            plane = self.target.climatology[which][np.ix_(rows, columns)]
        return xr.DataArray(plane, dims=self.grid.dims)

    @property
    def target(self) -> Target:
        """The model's part for this variable."""
        return self.trained().target(self.coarse.name)

    def trained(self) -> SRModel:
        """Return the model, or say why there is none."""
        if self.model is None:
            raise UndefinedBaselineError(self.why_no_model)
        return self.model

    @cached_property
    def location(self) -> Location | None:
        """Where the grid lies on the model's."""
        return model_location(self.model, self.grid, self.scale) if self.model else None

    def per_cell(self, *names: str) -> list[np.ndarray]:
        """Return planes of the model's per-cell baselines on this grid."""
        model = self.trained()
        if not model.fixed_domain:
            raise UndefinedBaselineError("the model is not bound to one domain, so it has no values per cell")
        if self.location is None:
            raise UndefinedBaselineError("the domain is not (a crop of) the model's own grid")
        where = np.ix_(self.location.rows, self.location.columns)
        return [getattr(self.target.baselines, name)[where] for name in names]

    def labelled(self, values: xr.DataArray) -> xr.DataArray:
        """Return a canonical field with the coordinates, orientation and order of dims of `like`."""
        out = values.assign_attrs(self.coarse.attrs).rename(self.coarse.name)
        out = out.assign_coords({n: c for n, c in self.coarse.coords.items() if set(c.dims) <= set(values.dims[:-2])})
        out = out.assign_coords(self.grid.coords.coords)
        return self.grid.restored(out, with_dims_of(self.coarse, self.grid).dims)


def model_location(model: SRModel, grid: Grid, scale: int) -> Location | None:
    """Return where `grid` lies on the model's fine grid with the same coarse cells, or None."""
    location = model.grid.locate(grid) if model.scale == scale else None
    if location is None or location.rows[0] % scale or location.columns[0] % scale:
        return None
    return location


BASELINES: Registry[Callable[[Ground], xr.DataArray]] = Registry("baseline")


@BASELINES.add("bilinear")
def _bilinear(ground: Ground) -> xr.DataArray:
    return ground.interpolated("bilinear")


@BASELINES.add("bicubic")
def _bicubic(ground: Ground) -> xr.DataArray:
    return ground.interpolated("bicubic")


@BASELINES.add("lapse")
def _lapse(ground: Ground) -> xr.DataArray:
    """Bicubic - 6.5 K/km x elevation anomaly."""
    if not is_temperature(ground.coarse):
        raise UndefinedBaselineError("the variable is not a temperature")
    elevation = elevation_of(ground.surface)
    if elevation is None:
        raise UndefinedBaselineError("elevation is not known (a 2-D coordinate with standard_name surface_altitude)")
    anomaly = anomalies(xr.Dataset({"elevation": elevation}), ground.grid, ground.scale)[0]
    return ground.plus(LAPSE_RATE * anomaly)


@BASELINES.add("static_regression")
def _static_regression(ground: Ground) -> xr.DataArray:
    """Bicubic + the model's pooled coefficients x static anomalies."""
    model = ground.trained()
    if not model.static_scaling.names:
        raise UndefinedBaselineError("the model was trained without static fields")
    planes = xr.Dataset({name: _static_of(ground, model, name) for name in model.static_scaling.names})
    anomaly = anomalies(planes, ground.grid, ground.scale)
    correction = np.einsum("s,syx->yx", ground.target.baselines.coefficients, anomaly)
    return ground.trained_on(lambda bicubic: bicubic + xr.DataArray(correction, dims=ground.grid.dims))


def _static_of(ground: Ground, model: SRModel, name: str) -> xr.DataArray:
    """Return the plane of the model's static field `name`, by name, else by standard name, in the model's units."""
    there, own = ground.surface, model.static[name].attrs
    told = own.get("standard_name")
    alike = [n for n, plane in there.data_vars.items() if told is not None and plane.attrs.get("standard_name") == told]
    found = [name] if name in there else alike[:1]
    if not found:
        raise UndefinedBaselineError(f"the model's static field {name!r} is not known here (use .assign_coords)")
    try:
        check_units(there[found[0]], own.get("units"), what=f"static field {name!r}")
    except UnitsError as error:
        raise UndefinedBaselineError(str(error).rstrip(".")) from error
    return there[found[0]]


@BASELINES.add("delta")
def _delta(ground: Ground) -> xr.DataArray:
    """Bicubic + the mean training residual of each cell."""
    (delta,) = ground.per_cell("delta")
    plane = xr.DataArray(np.nan_to_num(delta), dims=ground.grid.dims)
    return ground.trained_on(lambda bicubic: bicubic + plane)


@BASELINES.add("regression")
def _regression(ground: Ground) -> xr.DataArray:
    """Per-cell linear regression on bicubic; bicubic itself where none was fitted."""
    slope, intercept = ground.per_cell("slope", "intercept")
    known = np.isfinite(slope) & np.isfinite(intercept)
    a, b = (
        xr.DataArray(np.where(known, plane, neutral), dims=ground.grid.dims)
        for plane, neutral in ((slope, 1.0), (intercept, 0.0))
    )
    return ground.trained_on(lambda bicubic: a * bicubic.astype(np.float64) + b)


def is_temperature(da: xr.DataArray) -> bool:
    """Return whether `da` is a temperature that falls with height: by standard name, else by units and name.

    Examples
    --------
    >>> is_temperature(xr.DataArray(0.0, name="t2m", attrs={"units": "K"}))
    True
    >>> is_temperature(xr.DataArray(0.0, name="sst", attrs={"units": "K", "standard_name": "sea_surface_temperature"}))
    False
    """
    told = da.attrs.get("standard_name")
    if told is not None:
        return told in _TEMPERATURES
    units = str(da.attrs.get("units", "")).lower()
    return units in _TEMPERATURE_UNITS and str(da.name).lower() in _TEMPERATURE_NAMES


def evaluated(
    ground: Ground, names: str | Iterable[str] | None = None
) -> tuple[dict[str, xr.DataArray], dict[str, str]]:
    """Return baselines as canonical fields, and why others are not defined.

    Parameters
    ----------
    names : str, list of str or None
        None: every one that is defined.

    Raises
    ------
    ConfigError
        If one that was named is not defined here.
    """
    asked = [names] if isinstance(names, str) else names
    wanted = list(BASELINES) if asked is None else [BASELINES.canonical(name) for name in asked]
    fields: dict[str, xr.DataArray] = {}
    absent: dict[str, str] = {}
    for name in wanted:
        try:
            fields[name] = BASELINES.get(name)(ground)
        except UndefinedBaselineError as reason:
            absent[name] = str(reason)
    if asked is not None and absent:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise ConfigError(f"Baselines that were asked for are not defined here ({reasons}); leave them out.")
    return fields, absent


def baseline_fields(
    coarse: xr.DataArray,
    like: xr.DataArray,
    *,
    model: SRModel | None = None,
    names: str | Iterable[str] | None = None,
) -> dict[str, xr.DataArray]:
    """Return the baselines of a coarse field as DataArrays on the fine grid of `like`.

    Parameters
    ----------
    coarse : DataArray
        Dims (..., y, x) in any order.
    like : DataArray
        On the fine grid of the same domain; static fields ride on it as coordinates.
    model : SRModel, optional
        For the trained ones: static_regression, delta, regression.
    names : str or list of str, optional
        By default every one that is defined here.

    Returns
    -------
    dict of str to DataArray
        Units and dtype of `coarse`, coordinates of `like`; lazy if dask-backed.

    Raises
    ------
    XSuperResError
        If the grids do not fit, or a baseline that was named is not defined.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> fine = xsr.testing.toy_field(time=1, y=8, x=12)
    >>> list(baseline_fields(fine.sr.coarsen(2), fine))
    ['bilinear', 'bicubic', 'lapse']
    """
    ground = Ground.of(coarse, like, model=model)
    fields, _ = evaluated(ground, names)
    return {name: ground.labelled(values) for name, values in fields.items()}
