"""What is refused or warned about before any work: dtypes, unknown chunks, units, names."""

from __future__ import annotations

import dask.array
import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError, UnitsError, XSuperResWarning
from xsuperres.fields.checks import check_units, check_values, check_variable
from xsuperres.testing import toy_field

OPERATIONS = {
    "coarsen": lambda da: da.sr.coarsen(2),
    "interpolate": lambda da: da.sr.interpolate(2),
    "fit": lambda da: da.sr.fit(2, progress=False),
}
everywhere = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


@everywhere
@pytest.mark.parametrize("dtype", ["int16", "uint8", "int64"])
def test_integers_look_packed(operation, dtype):
    da = toy_field(time=1, y=8, x=8).astype(dtype)
    with pytest.raises(DataError, match=r"looks like packed values.*mask_and_scale"):
        operation(da)


@everywhere
@pytest.mark.parametrize("dtype", ["float16", "complex64", "bool", "datetime64[ns]", "U3", "object"])
def test_other_dtypes_are_refused(operation, dtype):
    da = xr.zeros_like(toy_field(time=1, y=8, x=8)).astype("int64").astype(dtype)
    with pytest.raises(DataError, match="expected float32 or float64"):
        operation(da)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "<f8"])
def test_floats_of_either_byte_order_are_fine(dtype):
    check_values(toy_field(time=1, y=8, x=8).astype(dtype))


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_big_endian_data_from_old_files_work(dtype):
    """NetCDF-3 holds big-endian floats, which torch does not take."""
    da = toy_field(time=1, y=8, x=8)
    expected = da.astype(np.dtype(dtype).newbyteorder("="))
    np.testing.assert_array_equal(da.astype(dtype).sr.coarsen(2), expected.sr.coarsen(2))
    np.testing.assert_array_equal(da.astype(dtype).sr.interpolate(2), expected.sr.interpolate(2))


def test_big_endian_data_are_downscaled(make_model):
    toy = make_model()
    swapped = toy.coarse.astype(">f4", keep_attrs=True)
    np.testing.assert_array_equal(swapped.sr.downscale(toy.model), toy.coarse.sr.downscale(toy.model))


@everywhere
def test_unknown_chunk_sizes_are_refused(operation):
    da = toy_field(time=6, y=8, x=8).chunk(time=2)
    unknown = da.copy(data=da.data)
    lazy = da.data[dask.array.from_array(np.arange(6) % 2 == 0)]
    unknown = xr.DataArray(lazy, dims=da.dims, coords={"lat": da.lat, "lon": da.lon}, name="tas")
    with pytest.raises(DataError, match=r"unknown chunk sizes.*compute_chunk_sizes"):
        operation(unknown)


@pytest.mark.parametrize(
    "aliases",
    [
        ("K", "kelvin", "degK", "Kelvin"),
        ("degC", "Celsius", "degree_Celsius", "°C"),
        ("kg m-2 s-1", "mm/s", "kg/m^2/s", "kg  m-2   s-1"),
        ("m s-1", "m/s", "m s**-1"),
        ("Pa", "pascal"),
        ("hPa", "mbar", "millibar"),
        ("1", "", "-"),
        ("furlong", "furlong"),
    ],
)
def test_one_unit_by_many_names(aliases):
    for first in aliases:
        for second in aliases:
            check_units(xr.DataArray(0.0, attrs={"units": first}), second, what="test")


@pytest.mark.parametrize(
    ("given", "expected"), [("degC", "K"), ("hPa", "Pa"), ("mm day-1", "kg m-2 s-1"), ("mK", "K"), ("k", "m")]
)
def test_other_units_are_an_error(given, expected):
    with pytest.raises(UnitsError, match="convert"):
        check_units(xr.DataArray(0.0, attrs={"units": given}), expected, what="test")


@pytest.mark.parametrize(("given", "expected"), [("mPa", "MPa"), ("mW m-2", "MW m-2")])
def test_the_case_of_a_prefix_counts(given, expected):
    """A millipascal is no megapascal."""
    with pytest.raises(UnitsError):
        check_units(xr.DataArray(0.0, attrs={"units": given}), expected, what="test")


@pytest.mark.parametrize(("given", "expected"), [(None, "K"), ("K", None)])
def test_missing_units_are_a_warning(given, expected):
    da = xr.DataArray(0.0, attrs={} if given is None else {"units": given})
    with pytest.warns(XSuperResWarning, match="taken as the same"):
        check_units(da, expected, what="test")


def test_no_units_on_either_side_are_fine(recwarn):
    check_units(xr.DataArray(0.0), None, what="test")
    assert not recwarn.list


def test_downscaling_checks_units_and_names(make_model):
    toy = make_model()
    with pytest.raises(UnitsError, match=r"'K'.*'degC'"):
        toy.coarse.assign_attrs(units="degC").sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="name is 'pr'"):
        toy.coarse.rename("pr").sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="standard_name is 'surface_temperature'"):
        toy.coarse.assign_attrs(standard_name="surface_temperature").sr.downscale(toy.model)
    toy.coarse.assign_attrs(units="kelvin").sr.downscale(toy.model)


def test_warnings_point_at_the_caller(make_model):
    """The line a user sees is one she wrote."""
    toy = make_model()
    with pytest.warns(XSuperResWarning) as caught:
        toy.coarse.rename("pr").sr.downscale(toy.model)
    assert caught[0].filename == __file__


def test_names_that_are_absent_are_not_compared(recwarn):
    check_variable(xr.DataArray(0.0), "tas", "air_temperature")
    check_variable(xr.DataArray(0.0, name="tas"), None, None)
    assert not recwarn.list
