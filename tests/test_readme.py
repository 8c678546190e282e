"""What the README shows works: its code runs as it stands, on files like those it names, with shorter training."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.testing import toy_field
from xsuperres.training.budget import Budget

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)


def rotated() -> xr.Dataset:
    """Return a small field as EURO-CORDEX has it: rotated pole, 2-D latitude and longitude, scalar height, bounds."""
    toy = toy_field(time=8, y=16, x=24)
    rlat = ("rlat", -10 + 0.11 * np.arange(16), {"standard_name": "grid_latitude", "units": "degrees", "axis": "Y"})
    rlon = ("rlon", -9 + 0.11 * np.arange(24), {"standard_name": "grid_longitude", "units": "degrees", "axis": "X"})
    lat, lon = np.meshgrid(40 + 0.1 * np.arange(16), 5 + 0.15 * np.arange(24), indexing="ij")
    plane = ("rlat", "rlon")
    tas = ("time", *plane), toy.values, {**toy.attrs, "grid_mapping": "rotated_pole"}
    orog = plane, toy.elevation.values, {"standard_name": "surface_altitude", "units": "m"}
    bounds = ("time", "bnds"), np.stack([toy.time.values, toy.time.values + np.timedelta64(1, "D")], axis=1)
    return xr.Dataset(
        {"tas": tas, "orog": orog, "time_bnds": bounds},
        coords={
            "time": ("time", toy.time.values, {"bounds": "time_bnds"}),
            "rlat": rlat,
            "rlon": rlon,
            "lat": (plane, lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": (plane, lon, {"standard_name": "longitude", "units": "degrees_east"}),
            "height": ((), 2.0, {"units": "m"}),
            "rotated_pole": ((), 0, {"grid_mapping_name": "rotated_latitude_longitude"}),
        },
    )


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Write small files under the names that the README opens, and work there; training takes two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Budget, "default_steps", 2)
    cordex = rotated()
    cordex.time.encoding = {"units": "days since 1949-12-01"}
    cordex[["tas", "time_bnds"]].to_netcdf("tas_EUR-11.nc", engine="h5netcdf")
    cordex[["orog"]].to_netcdf("orog_EUR-11.nc", engine="h5netcdf")
    sst = toy_field(time=8, y=89, x=24).rename("sst").drop_vars(["elevation", "land_fraction"])
    sst.where(sst.lon > 9).to_dataset().to_netcdf("sst.nc", engine="h5netcdf")
    coarse = xsr.tutorial.open_dataset("era5_global_1deg").tas.isel(time=slice(17, None)).sr.coarsen(4)
    coarse.to_dataset().to_zarr("coarse.zarr", zarr_format=2)
    yield tmp_path
    xsr.deactivate()
    plt.close("all")


@pytest.mark.slow
def test_the_code_of_the_readme_runs(files):
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(re.sub(r'"max_steps": \d+', '"max_steps": 2', block), str(README), "exec"), names)
    assert (files / "tas_x4.safetensors").exists()
    with xr.open_zarr(files / "fine.zarr") as fine:
        assert dict(fine.tas.sizes) == {"time": 7, "lat": 180, "lon": 360}
    assert names["ensemble"].sizes["member"] == 10
    assert names["both"].names == ("tas", "pr")


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 170


def test_the_default_number_of_steps_is_told():
    assert f"trains for {Budget.default_steps} steps" in README.read_text()
