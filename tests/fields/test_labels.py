"""Labels of results: coordinates and their encodings, history, cell bounds; what netCDF and Zarr make of them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.testing import toy_field

CF_ENCODINGS = {"units", "calendar", "dtype", "_FillValue"}
QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1},
    "validation": None,
    "progress": False,
    "activate": False,
}


def annotated(field: xr.DataArray) -> xr.DataArray:
    """Return a field with a grid mapping, a scalar coordinate, and times whose bounds it does not carry."""
    field = field.assign_coords(crs=((), 0, {"grid_mapping_name": "latitude_longitude"}), height=((), 2.0))
    field.time.attrs["bounds"] = "time_bnds"
    return field


# Encodings.


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_comes_from_zarr_can_be_written_to_zarr(tmp_path, zarr_format):
    """Compressors and filters belong to one version of the format; times stay as they were written."""
    field = toy_field(time=4, y=16, x=16).assign_coords(run=("time", np.array(["a", "b", "c", "d"], object)))
    field.time.encoding = {"units": "hours since 1990-01-01", "calendar": "standard", "dtype": "int32"}
    field.to_dataset().to_zarr(tmp_path / "source", zarr_format=zarr_format, consolidated=False)
    source = xr.open_zarr(tmp_path / "source", consolidated=False).tas
    assert "filters" in source.time.encoding or "compressors" in source.time.encoding
    model = source.sr.fit(2, **QUICK)
    results = {
        "downscale": source.sr.coarsen(2).sr.downscale(model),
        "interpolate": source.sr.interpolate(2),
        "coarsen": source.sr.coarsen(2),
    }
    for name, result in results.items():
        for coordinate in result.coords.values():
            assert set(coordinate.encoding) <= CF_ENCODINGS
        assert result.time.encoding["units"] == "hours since 1990-01-01"
        result.to_dataset(name="tas").to_zarr(tmp_path / name, consolidated=False)
        again = xr.open_zarr(tmp_path / name, decode_times=False, consolidated=False)
        assert again.time.attrs["units"] == "hours since 1990-01-01"
        assert again.time.dtype == np.int32
    assert "compressors" in source.time.encoding or "filters" in source.time.encoding  # the user's own is left alone


def test_a_packed_coordinate_is_not_written_without_its_packing(tmp_path):
    field = toy_field(time=2, y=8, x=8).assign_coords(lead=("time", np.array([0.25, 0.75])))
    field.lead.encoding = {"dtype": np.dtype("int16"), "scale_factor": 0.25, "add_offset": 0.0, "_FillValue": -1}
    field.lat.encoding = {"dtype": np.dtype("int16"), "scale_factor": 0.1}
    result = field.sr.interpolate(2)
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    again = xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf")
    np.testing.assert_array_equal(again.lead, field.lead)
    np.testing.assert_array_equal(again.lat, result.lat)
    assert field.lead.encoding["scale_factor"] == 0.25


# History.


def test_history_names_the_version():
    field = toy_field(time=2, y=8, x=8)
    model = field.sr.fit(2, **QUICK)
    fine = field.sr.coarsen(2).sr.downscale(model)
    first, second = fine.attrs["history"].split("\n")
    assert first == f"xsuperres {xsr.__version__}: area-weighted coarsening, scale 2"
    assert second.startswith(f"xsuperres {xsr.__version__}: super-resolution, scale 2, model {model.digest[:16]}")


# Bounds.


def test_bounds_that_are_not_there_are_not_named():
    field = annotated(toy_field(time=2, y=8, x=8))
    field.time.encoding["bounds"] = "time_bnds"
    ds = field.sr.with_bounds()
    assert "bounds" not in ds.time.attrs and "bounds" not in ds.time.encoding
    assert ds.lat.attrs["bounds"] == "lat_bnds" and ds.lon.attrs["bounds"] == "lon_bnds"
    assert field.time.attrs == {"bounds": "time_bnds"}  # the user's own is left alone
    assert "bounds" not in field.lat.attrs and not field.lat.encoding


def test_every_name_in_the_file_is_there(tmp_path):
    """Bounds, grid mappings and coordinates that attributes name exist; none is named in two roles."""
    for place in ("attrs", "encoding"):
        field = annotated(toy_field(time=2, y=8, x=8))
        getattr(field, place)["grid_mapping"] = "crs"
        path = tmp_path / f"{place}.nc"
        field.sr.coarsen(2).sr.with_bounds().to_netcdf(path, engine="h5netcdf")
        told = xr.open_dataset(path, engine="h5netcdf", decode_coords=False, decode_times=False)
        assert told.tas.attrs["grid_mapping"] == "crs"
        assert set(told.tas.attrs["coordinates"].split()) == {"elevation", "height", "land_fraction"}
        assert not {"coordinates", "grid_mapping"} & {*told.lat_bnds.attrs, *told.lon_bnds.attrs, *told.attrs}
        assert {v.attrs["bounds"] for v in told.variables.values() if "bounds" in v.attrs} == {"lat_bnds", "lon_bnds"}
        assert getattr(field, place)["grid_mapping"] == "crs"
        again = xr.open_dataset(path, engine="h5netcdf", decode_coords="all")
        assert {"crs", "lat_bnds", "lon_bnds"} <= set(again.coords)


def test_bounds_of_several_variables(tmp_path):
    field = annotated(toy_field(time=2, y=8, x=8)).assign_attrs(grid_mapping="crs")
    ds = xr.Dataset({"tas": field, "tasmax": field + 1}).sr.with_bounds()
    assert set(ds.data_vars) == {"tas", "tasmax", "lat_bnds", "lon_bnds"}
    assert "bounds" not in ds.time.attrs
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")


@pytest.mark.parametrize("lazy", [False, True])
def test_what_has_no_name_gets_none(lazy):
    """xarray would take that of the dask array."""
    field = toy_field(time=2, y=8, x=8).rename(None)
    field = field.chunk(time=1) if lazy else field
    assert field.sr.coarsen(2).name is None
    assert field.sr.interpolate(2).name is None
