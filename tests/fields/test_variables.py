"""Which variables of a Dataset are fields: not the bounds of times, not a grid mapping, not cell areas."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import GridError
from xsuperres.fields import variables
from xsuperres.fields.variables import fields_of, numeric_names
from xsuperres.testing import toy_field


def off_grid(ds):
    """Return the variables apart from the fields of a Dataset."""
    return variables.off_grid(ds, fields_of(ds).values())


@pytest.fixture
def archive() -> xr.Dataset:
    """Return a Dataset as CF archives are."""
    field = toy_field(time=2, y=4, x=6)
    ds = xr.Dataset({"tas": field.assign_attrs(grid_mapping="crs", cell_measures="area: areacella"), "pr": field})
    ds["time_bnds"] = ("time", "bnds"), np.stack([field.time.values, field.time.values], axis=1)
    ds["lat_bnds"] = ("lat", "bnds"), np.zeros((4, 2))
    ds["corners"] = ("lat", "lon", "nv"), np.zeros((4, 6, 4))
    ds["areacella"] = ("lat", "lon"), np.ones((4, 6))
    ds["when"] = ("lat", "lon"), np.full((4, 6), np.datetime64("2001-01-01", "ns"))
    ds["co2"] = "time", np.ones(2)
    ds["crs"] = ((), 0, {"grid_mapping_name": "latitude_longitude"})
    ds.time.attrs["bounds"], ds.lat.attrs["bounds"] = "time_bnds", "lat_bnds"
    ds.lon.encoding["bounds"] = "corners"  # where xarray puts what it has decoded
    return ds


def test_fields_lie_on_both_horizontal_dims(archive):
    assert list(fields_of(archive)) == ["tas", "pr"]
    assert numeric_names(archive) == ["tas", "pr", "co2"], "an index of the day is a number, but no field"


def test_what_holds_on_other_cells(archive):
    assert sorted(off_grid(archive)) == ["co2", "crs", "time_bnds"]
    decoded = archive.set_coords(["time_bnds", "lat_bnds", "crs"]).assign_coords(bnds=[0, 1])
    assert sorted(off_grid(decoded)) == ["bnds", "co2", "time_bnds"], "a scalar coordinate rides on the fields"


def test_nothing_is_computed(archive):
    def refuse(graph, keys, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        assert list(fields_of(archive.chunk())) == ["tas", "pr"]


def test_no_fields(archive):
    assert fields_of(xr.Dataset()) == {} and off_grid(xr.Dataset()) == {}
    with pytest.raises(GridError, match=r"dims \('time', 'y', 'u'\)"):
        fields_of(xr.Dataset({"crs": 0, "tas": (("time", "y", "u"), np.ones((1, 2, 3)))}))
