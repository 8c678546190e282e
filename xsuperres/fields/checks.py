"""What is refused or warned about before any work: dtypes, chunk sizes, units, names; and numbers no field has.

Labelled arrays in; nothing is computed, but for `check_decoded`, which is given values.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, UnitsError, warn

__all__ = ["check_decoded", "check_units", "check_values", "check_variable", "is_lazy"]

_FILL = 0.999e15  # MERRA-2 fills with 1e15, in float32 a little less; CMIP with 1e20, netCDF with 9.97e36

_ONE_UNIT = {
    "K": ("k", "kelvin", "kelvins", "degk", "deg_k", "degrees_kelvin"),
    "degC": ("degc", "deg_c", "celsius", "degree_celsius", "degrees_celsius", "°c", "c"),
    "m": ("m", "meter", "meters", "metre", "metres"),
    "m s-1": ("m s-1", "m/s", "m s**-1", "ms-1", "m s^-1", "meter second-1"),
    "kg m-2 s-1": ("kg m-2 s-1", "kg/m2/s", "kg m**-2 s**-1", "kg/m^2/s", "mm/s", "mm s-1"),
    "mm day-1": ("mm day-1", "mm/day", "mm d-1", "mm/d"),
    "Pa": ("pa", "pascal", "pascals"),
    "hPa": ("hpa", "millibar", "millibars", "mbar", "mb"),
    "m2 s-2": ("m2 s-2", "m2/s2", "m**2 s**-2", "m^2/s^2", "m^2 s^-2"),
    "km": ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
    "1": ("1", "-", "dimensionless", "fraction", "(0 - 1)", ""),
    "%": ("%", "percent", "per cent"),
}
_CANONICAL = {alias: unit for unit, aliases in _ONE_UNIT.items() for alias in aliases}


def is_lazy(da: xr.DataArray) -> bool:
    """Return whether the data are a dask array; dask itself is not imported."""
    return hasattr(da.variable._data, "__dask_graph__")


def check_values(da: xr.DataArray) -> None:
    """Refuse dtypes other than float32 and float64, and dask arrays with unknown chunk sizes.

    Raises
    ------
    DataError
        With what to do instead.
    """
    kind, name = da.dtype.kind, da.name or "the data"
    if da.dtype.newbyteorder("=") in (np.float32, np.float64):
        pass
    elif kind in "iu":
        raise DataError(
            f"{name!r} has integer dtype {da.dtype}, which looks like packed values; decode it "
            "(xr.open_dataset(..., mask_and_scale=True)) or convert it with .astype('float32')."
        )
    else:
        raise DataError(
            f"{name!r} has dtype {da.dtype}; expected float32 or float64, convert it with .astype('float32')."
        )
    if is_lazy(da) and any(np.isnan(size) for sizes in da.chunks or () for size in sizes):
        raise DataError(
            f"{name!r} has unknown chunk sizes; compute them first with .data.compute_chunk_sizes() or load it."
        )


def check_decoded(values: np.ndarray, name: object, *, error: type[Exception] = DataError) -> None:
    """Refuse finite numbers of size 1e15 and more: fill values that were not decoded.

    Examples
    --------
    >>> check_decoded(np.array([1e20, 280.0]), "tas")
    Traceback (most recent call last):
    xsuperres.errors.DataError: 'tas' holds values of up to 1e+20, which look like fill values...
    """
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    if largest >= _FILL:
        raise error(
            f"{name!r} holds values of up to {largest:.3g}, which look like fill values that were not decoded: open "
            "the file with mask_and_scale=True, set the attribute _FillValue or missing_value and call "
            "xr.decode_cf(ds), or mask them, da.where(abs(da) < 1e15). If they are meant, use larger units."
        )


def check_units(da: xr.DataArray, expected: str | None, *, what: str, like: str = "the model") -> None:
    """Refuse units other than `expected`, those of `like`; warn where only one of the two is known."""
    given = da.attrs.get("units")
    if given is None or expected is None:
        if given != expected:
            warn(f"{what}: units are {given!r}, those of {like} {expected!r}; taken as the same.")
    elif _canonical(given) != _canonical(expected):
        raise UnitsError(
            f"{what}: expected units of {expected!r} like {like}, got {given!r}; convert the values and the units "
            "attribute first."
        )


def _canonical(unit: str) -> str:
    text = " ".join(str(unit).split())
    return _CANONICAL.get(text.lower(), text)


def check_variable(da: xr.DataArray, name: str | None, standard_name: str | None) -> None:
    """Warn when the variable is not the one the model was trained on."""
    pairs = (("name", da.name, name), ("standard_name", da.attrs.get("standard_name"), standard_name))
    for what, given, expected in pairs:
        if given is not None and expected is not None and given != expected:
            warn(f"The variable's {what} is {given!r}, the model was trained on {expected!r}.")
