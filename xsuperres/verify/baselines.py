"""The linear baselines: what a network's field is compared with.

A baseline is checked and its planes are made once, from `BaselineInputs`; what it returns makes the fine cells of any
block of the coarse field, in numpy. Coefficients come from `xsuperres.fields.baselines` by way of the model;
bilinear, bicubic and lapse need none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from xsuperres.errors import ConfigError, UnitsError
from xsuperres.fields.baselines import LAPSE_RATE
from xsuperres.fields.checks import check_units
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, Location
from xsuperres.fields.static import anomalies
from xsuperres.model.artefact import SRModel, Target
from xsuperres.registry import Registry
from xsuperres.verify.alignment import loaded_coords
from xsuperres.verify.coarse_cells import scale_between
from xsuperres.verify.sums import Baseline, CoarseBlock
from xsuperres.verify.surface import elevation_of, surface_of

__all__ = [
    "BASELINES",
    "BaselineInputs",
    "UndefinedBaselineError",
    "baseline_fields",
    "defined_baselines",
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


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineInputs:
    """What the baselines of one domain are made of, but for the values of the coarse field.

    Parameters
    ----------
    name, attrs : str or None, mapping
        Of the coarse field.
    grid : Grid
        The fine grid.
    scale : int
        Fine cells per coarse cell along each axis.
    surface : Dataset
        Static fields, planes (y, x) in canonical order.
    model : SRModel or None
        Holds the trained coefficients.
    location : Location or None
        Where the grid lies on the model's, with the same coarse cells.
    why_no_model : str
        The reason, where a model is needed and there is none.
    """

    name: Hashable
    attrs: Mapping[str, Any]
    grid: Grid
    scale: int
    surface: xr.Dataset
    model: SRModel | None = None
    location: Location | None = None
    why_no_model: str = "no model was given"

    @classmethod
    def of(
        cls,
        coarse: Field,
        fine: Sequence[Field],
        scale: int,
        *,
        model: SRModel | None = None,
        why_no_model: str = "no model was given",
    ) -> tuple[BaselineInputs, list[str]]:
        """Return the inputs of baselines on the grid of the first fine field, and why static fields are not used.

        Only the name and the attributes of `coarse` are read; static fields ride on the fine fields.
        """
        grid = fine[0].grid
        location = model_location(model, grid, scale) if model else None
        surface, notes = surface_of(fine, grid, model, location)
        inputs = cls(
            name=coarse.name,
            attrs=coarse.array.attrs,
            grid=grid,
            scale=scale,
            surface=surface,
            model=model,
            location=location,
            why_no_model=why_no_model,
        )
        return inputs, notes

    def trained(self) -> SRModel:
        """Return the model, or say why there is none."""
        if self.model is None:
            raise UndefinedBaselineError(self.why_no_model)
        return self.model

    @property
    def target(self) -> Target:
        """The model's part for this variable."""
        return self.trained().target(self.name)

    def anomalies_of(self, planes: Mapping[str, xr.DataArray]) -> np.ndarray:
        """Return each plane less the interpolation of its coarsening, float64 (plane, y, x)."""
        return anomalies(xr.Dataset(planes), self.grid, self.scale)

    def per_cell(self, *names: str) -> list[np.ndarray]:
        """Return planes of the model's per-cell baselines on this grid."""
        model = self.trained()
        if not model.fixed_domain:
            raise UndefinedBaselineError("the model is not bound to one domain, so it has no values per cell")
        if self.location is None:
            raise UndefinedBaselineError("the domain is not (a crop of) the model's own grid")
        where = np.ix_(self.location.rows, self.location.columns)
        return [getattr(self.target.baselines, name)[where] for name in names]

    @cached_property
    def trained_units(self) -> TrainedUnits:
        """The units in which the model's coefficients were fitted."""
        planes = None
        if self.target.climatology is not None:
            planes = (np.zeros([size // self.scale for size in self.grid.shape]), np.zeros(self.grid.shape))
            if self.location is not None:
                rows, columns = self.location.rows, self.location.columns
                coarse = np.ix_(rows[:: self.scale] // self.scale, columns[:: self.scale] // self.scale)
                planes = self.target.climatology[0][coarse], self.target.climatology[1][np.ix_(rows, columns)]
        return TrainedUnits(self.target, planes)

    def trained_on(self, change: Callable[[np.ndarray], np.ndarray]) -> Baseline:
        """Return the baseline that is a change of bicubic in the model's transformed units."""
        units = self.trained_units

        def baseline(coarse: CoarseBlock) -> np.ndarray:
            changed = change(coarse.interpolated("bicubic", units.forth))
            return units.back(changed).astype(coarse.values.dtype)

        return baseline


class TrainedUnits:
    """The transformed units of a model's target, about a climatology (coarse and fine planes) if there is one."""

    def __init__(self, target: Target, climatology: tuple[np.ndarray, np.ndarray] | None) -> None:
        self._transform, self._bounds, self._climatology = target.transform, target.bounds, climatology
        plain = target.transform.kind is None and climatology is None
        self.forth: Callable[[np.ndarray], np.ndarray] | None = None if plain else self._forth

    def _forth(self, coarse: np.ndarray) -> np.ndarray:
        """Return coarse values (..., Y, X) in these units, dtype kept."""
        values = self._transform.forth(coarse)
        return (values if self._climatology is None else values - self._climatology[0]).astype(coarse.dtype)

    def back(self, fine: np.ndarray) -> np.ndarray:
        """Return fine values (..., y, x) in units of the variable, within the bounds of the model's results."""
        values = self._transform.back(fine if self._climatology is None else fine + self._climatology[1])
        low, high = self._bounds
        return values if low is None and high is None else np.clip(values, low, high)


def model_location(model: SRModel, grid: Grid, scale: int) -> Location | None:
    """Return where `grid` lies on the model's fine grid with the same coarse cells, or None."""
    location = model.grid.locate(grid) if model.scale == scale else None
    if location is None or location.rows[0] % scale or location.columns[0] % scale:
        return None
    return location


BASELINES: Registry[Callable[[BaselineInputs], Baseline]] = Registry("baseline")


@BASELINES.add("bilinear")
def _bilinear(_: BaselineInputs) -> Baseline:
    return lambda coarse: coarse.interpolated("bilinear")


@BASELINES.add("bicubic")
def _bicubic(_: BaselineInputs) -> Baseline:
    return lambda coarse: coarse.interpolated("bicubic")


@BASELINES.add("lapse")
def _lapse(inputs: BaselineInputs) -> Baseline:
    """Bicubic - 6.5 K/km x elevation anomaly."""
    if not is_temperature(inputs.name, inputs.attrs):
        raise UndefinedBaselineError("the variable is not a temperature")
    elevation = elevation_of(inputs.surface)
    if elevation is None:
        raise UndefinedBaselineError("elevation is not known (a 2-D coordinate with standard_name surface_altitude)")
    change = LAPSE_RATE * inputs.anomalies_of({"elevation": elevation})[0]
    return lambda coarse: (coarse.interpolated("bicubic") + change).astype(coarse.values.dtype)


@BASELINES.add("static_regression")
def _static_regression(inputs: BaselineInputs) -> Baseline:
    """Bicubic + the model's pooled coefficients x static anomalies."""
    model = inputs.trained()
    if not model.static_scaling.names:
        raise UndefinedBaselineError("the model was trained without static fields")
    anomaly = inputs.anomalies_of({name: _static_of(inputs, model, name) for name in model.static_scaling.names})
    correction = np.einsum("s,syx->yx", inputs.target.baselines.coefficients, anomaly)
    return inputs.trained_on(lambda bicubic: bicubic + correction)


def _static_of(inputs: BaselineInputs, model: SRModel, name: str) -> xr.DataArray:
    """Return the plane of the model's static field `name`, by name, else by standard name, in the model's units."""
    there, trained = inputs.surface, model.static[name].attrs
    standard = trained.get("standard_name")
    alike = [n for n, plane in there.data_vars.items() if standard and plane.attrs.get("standard_name") == standard]
    if name not in there and not alike:
        raise UndefinedBaselineError(f"the model's static field {name!r} is not known here (use .assign_coords)")
    plane = there[name if name in there else alike[0]]
    try:
        check_units(plane, trained.get("units"), what=f"static field {name!r}")
    except UnitsError as error:
        raise UndefinedBaselineError(str(error).rstrip(".")) from error
    return plane


@BASELINES.add("delta")
def _delta(inputs: BaselineInputs) -> Baseline:
    """Bicubic + the mean training residual of each cell."""
    (delta,) = inputs.per_cell("delta")
    plane = np.nan_to_num(delta)
    return inputs.trained_on(lambda bicubic: bicubic + plane)


@BASELINES.add("regression")
def _regression(inputs: BaselineInputs) -> Baseline:
    """Per-cell linear regression on bicubic; bicubic itself where none was fitted."""
    slope, intercept = inputs.per_cell("slope", "intercept")
    known = np.isfinite(slope) & np.isfinite(intercept)
    a, b = np.where(known, slope, 1.0), np.where(known, intercept, 0.0)
    return inputs.trained_on(lambda bicubic: a * bicubic.astype(np.float64) + b)


def is_temperature(name: Hashable, attrs: Mapping[str, Any]) -> bool:
    """Return whether a variable is a temperature that falls with height: by standard name, else by units and name.

    Examples
    --------
    >>> is_temperature("t2m", {"units": "K"})
    True
    >>> is_temperature("sst", {"units": "K", "standard_name": "sea_surface_temperature"})
    False
    """
    standard = attrs.get("standard_name")
    if standard is not None:
        return standard in _TEMPERATURES
    return str(attrs.get("units", "")).lower() in _TEMPERATURE_UNITS and str(name).lower() in _TEMPERATURE_NAMES


def defined_baselines(
    inputs: BaselineInputs, names: str | Iterable[str] | None = None
) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Return the baselines that are defined, ready for blocks of the coarse field, and why others are not.

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
    defined: dict[str, Baseline] = {}
    absent: dict[str, str] = {}
    for name in wanted:
        try:
            defined[name] = BASELINES.get(name)(inputs)
        except UndefinedBaselineError as reason:
            absent[name] = str(reason)
    if asked is not None and absent:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise ConfigError(f"Baselines that were asked for are not defined here ({reasons}); leave them out.")
    return defined, absent


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
    source, target = loaded_coords(Field.of(coarse)), loaded_coords(Field(like))
    scale, cells = scale_between(target.grid, source)
    inputs, _ = BaselineInputs.of(source, [target], scale, model=model)
    defined, _ = defined_baselines(inputs, names)
    assert cells.values is not None
    whole = CoarseBlock(cells.values.data, scale, periodic=cells.periodic)
    return {name: _labelled(_everywhere(baseline, whole), source, target.grid) for name, baseline in defined.items()}


def _everywhere(baseline: Baseline, coarse: CoarseBlock) -> Any:
    """Return a baseline of a whole coarse field; of a dask array block by block, of whole planes."""
    values = coarse.values
    if isinstance(values, np.ndarray):
        return baseline(coarse)
    planes = values.rechunk({values.ndim - 2: -1, values.ndim - 1: -1})
    return planes.map_blocks(
        lambda block: baseline(CoarseBlock(block, coarse.scale, periodic=coarse.periodic)),
        chunks=(*planes.chunks[:-2], *((size * coarse.scale,) for size in planes.shape[-2:])),
        dtype=values.dtype,
        meta=np.empty((0,) * values.ndim, values.dtype),
    )


def _labelled(values: Any, coarse: Field, grid: Grid) -> xr.DataArray:
    """Return canonical fine values with the coordinates of `grid`, and the order of dims of the coarse field."""
    lead = {n: c for n, c in coarse.array.coords.items() if set(c.dims) <= set(coarse.lead)}
    out = xr.DataArray(values, dims=(*coarse.lead, *grid.dims), coords=lead, attrs=coarse.array.attrs)
    names = dict(zip(coarse.grid.dims, grid.dims, strict=True))
    out = out.rename(coarse.array.name).assign_coords(grid.coords)
    return grid.restored(out, tuple(names.get(str(dim), dim) for dim in coarse.array.dims))
