"""The embedded data sets are what they claim; downloads are verified, cached and explained."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from threading import Thread

import numpy as np
import pooch
import pytest
import xarray as xr

from xsuperres import tutorial
from xsuperres.errors import TutorialDataError, UnknownNameError, XSuperResError

EMBEDDED = ["era5_global_1deg", "hadgem2_north_america"]
# standard name, units, and the extremes of the atmosphere and of the Earth
VARIABLES = {
    "tas": ("air_temperature", "K", 180, 330),
    "pr": ("precipitation_flux", "kg m-2 s-1", 0, 0.05),
    "psl": ("air_pressure_at_mean_sea_level", "Pa", 87000, 109000),
    "uas": ("eastward_wind", "m s-1", -60, 60),
    "vas": ("northward_wind", "m s-1", -60, 60),
    "elevation": ("surface_altitude", "m", -100, 7000),
    "land_fraction": ("land_area_fraction", "1", 0, 1),
}


def packed(name: str) -> xr.Dataset:
    """The file as any user of plain xarray would see its storage."""
    path = resources.files("xsuperres") / "data" / f"{name}.nc"
    return xr.open_dataset(str(path), engine="h5netcdf", mask_and_scale=False)


@pytest.fixture(params=EMBEDDED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def era5() -> xr.Dataset:
    return tutorial.open_dataset("era5_global_1deg")


@pytest.fixture
def hadgem2() -> xr.Dataset:
    return tutorial.open_dataset("hadgem2_north_america")


def area_mean(field: xr.DataArray, ds: xr.Dataset) -> float:
    area = np.abs(np.sin(np.deg2rad(ds.lat_bnds)).diff("bnds").squeeze("bnds"))
    return float(field.weighted(area).mean())


class TestEmbedded:
    def test_the_files_are_small_enough_for_a_wheel(self) -> None:
        files = [resources.files("xsuperres") / "data" / f"{name}.nc" for name in EMBEDDED]
        assert sum(Path(str(file)).stat().st_size for file in files) <= 12 * 2**20

    def test_opening_warns_of_nothing_and_reads_nothing(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ds = tutorial.open_dataset(name)
        # _in_memory is private, yet the only way to see that xarray has not read the values
        assert not any(ds[v].variable._in_memory for v in ds.data_vars)

    def test_names_and_units(self, name: str) -> None:
        ds = tutorial.open_dataset(name)
        for variable in set(VARIABLES) & set(ds.variables):
            assert (ds[variable].standard_name, ds[variable].units) == VARIABLES[variable][:2]
        assert (ds.lat.standard_name, ds.lat.units) == ("latitude", "degrees_north")
        assert (ds.lon.standard_name, ds.lon.units) == ("longitude", "degrees_east")
        assert {"elevation", "land_fraction"} <= set(ds.tas.coords)

    def test_values_are_complete_and_plausible(self, name: str) -> None:
        ds = tutorial.open_dataset(name)
        for variable in set(VARIABLES) & set(ds.variables):
            lowest, highest = VARIABLES[variable][2:]
            values = ds[variable].values
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert lowest <= values.min() < values.max() <= highest, variable

    def test_bounds_enclose_the_centres_and_touch(self, name: str) -> None:
        ds = tutorial.open_dataset(name)
        for axis in ("lat", "lon"):
            assert ds[axis].dtype == np.float64
            bounds = ds.coords[ds[axis].attrs["bounds"]].values
            np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, 1])
            assert (bounds.min(axis=1) <= ds[axis].values).all()
            assert (bounds.max(axis=1) >= ds[axis].values).all()

    def test_attribution(self, name: str) -> None:
        attrs = tutorial.open_dataset(name).attrs
        assert all(attrs[key] for key in ("title", "institution", "source", "license", "history"))
        assert attrs["Conventions"].startswith("CF-1.")

    def test_packing_has_the_resolution_it_claims(self, name: str) -> None:
        ds, stored = tutorial.open_dataset(name), packed(name)
        coarsest = {"tas": 0.01, "pr": 2e-7, "psl": 1.0, "uas": 0.01, "vas": 0.01}
        for variable in ds.data_vars:
            raw, scale = stored[variable], stored[variable].attrs["scale_factor"]
            assert scale <= coarsest[str(variable)] * (1 + 1e-6)
            assert raw.dtype in ("int16", "uint16")
            assert not (raw == raw.attrs["_FillValue"]).any()
            steps = np.diff(np.unique(ds[variable].values.astype(float)))
            assert steps.min() == pytest.approx(scale, rel=0.02)

    def test_written_again_it_is_not_packed(self, name: str, tmp_path: Path) -> None:
        ds = tutorial.open_dataset(name).isel(time=slice(0, 2))
        # beyond what the packing of the file can hold; copy keeps the encoding
        ds["tas"] = ds.tas.copy(data=ds.tas.values + 500)
        ds.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "again.nc", engine="h5netcdf") as again:
            np.testing.assert_array_equal(again.tas, ds.tas)
            assert again.time.dt.calendar == ds.time.dt.calendar


class TestERA5:
    def test_grid(self, era5: xr.Dataset) -> None:
        assert list(era5.data_vars) == ["tas", "pr", "psl", "uas", "vas"]
        assert dict(era5.tas.sizes) == {"time": 24, "lat": 180, "lon": 360}
        assert all(size % scale == 0 for scale in (2, 3, 4, 5, 6) for size in (180, 360))
        np.testing.assert_array_equal(era5.lat, np.arange(90, -90, -1.0))
        np.testing.assert_array_equal(era5.lon, np.arange(360.0))

    def test_bounds_are_clipped_at_the_pole(self, era5: xr.Dataset) -> None:
        np.testing.assert_array_equal(era5.lat_bnds[0], [90.0, 89.5])
        np.testing.assert_array_equal(era5.lat_bnds[-1], [-88.5, -89.5])
        np.testing.assert_array_equal(era5.lon_bnds[0], [-0.5, 0.5])

    def test_times(self, era5: xr.Dataset) -> None:
        assert era5.time.values[0] == np.datetime64("2026-03-25T00")
        assert era5.time.values[-1] == np.datetime64("2026-03-31T23")
        assert set(np.diff(era5.time.values) // np.timedelta64(1, "h")) == {7, 8}

    def test_global_means(self, era5: xr.Dataset) -> None:
        assert area_mean(era5.pr, era5) * 86400 == pytest.approx(2.9, rel=0.1)
        assert area_mean(era5.tas, era5) == pytest.approx(287.5, abs=1.5)
        assert area_mean(era5.psl, era5) == pytest.approx(101100, abs=150)
        assert area_mean(era5.land_fraction, era5) == pytest.approx(0.29, abs=0.01)
        assert area_mean(era5.elevation, era5) == pytest.approx(235, abs=10)

    def test_dry_is_exactly_zero(self, era5: xr.Dataset) -> None:
        assert float((era5.pr == 0).mean()) > 0.1

    @pytest.mark.parametrize(("field", "sign"), [("elevation", -1), ("land_fraction", 1)])
    def test_static_fields_are_registered(self, era5: xr.Dataset, field: str, sign: int) -> None:
        """High ground is cold and land swings with the day: most clearly without any shift."""
        signal = era5.tas.mean("time") if sign < 0 else era5.tas.std("time")
        signal, static = detail(signal), era5[field]
        correlations = {
            (dy, dx): sign * np.corrcoef(signal, detail(static.roll(lat=dy, lon=dx)))[0, 1]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        }
        best = max(correlations, key=lambda shift: correlations[shift])
        assert best == (0, 0)
        assert correlations[best] > 0.5

    @pytest.mark.parametrize(
        ("lat", "lon", "height", "land"),
        [
            (33, 88, 5000, 1),
            (0, 230, 0, 0),
            (72, 322, 3000, 1),
            (-25, 135, 300, 1),
            (0, 24, 400, 1),
        ],
        ids=["Tibet", "Pacific", "Greenland", "Australia", "Congo"],
    )
    def test_known_places(self, era5: xr.Dataset, lat: int, lon: int, height: float, land: float) -> None:
        place = era5.sel(lat=lat, lon=lon)
        assert float(place.elevation) == pytest.approx(height, abs=250)
        assert float(place.land_fraction) == land


def detail(field: xr.DataArray) -> np.ndarray:
    """What a 3 x 3 mean leaves out, away from the poles, flat."""
    wrapped = field.pad(lon=1, mode="wrap")
    smooth = wrapped.rolling(lat=3, lon=3, center=True).mean().isel(lon=slice(1, -1))
    return (field - smooth.values).isel(lat=slice(20, -20)).values.ravel()


class TestHadGEM2:
    def test_grid(self, hadgem2: xr.Dataset) -> None:
        assert list(hadgem2.data_vars) == ["tas"]
        assert dict(hadgem2.tas.sizes) == {"scenario": 2, "time": 240, "lat": 36, "lon": 48}
        np.testing.assert_array_equal(hadgem2.lat, 15 + 1.25 * np.arange(36))
        np.testing.assert_array_equal(hadgem2.lon, 225 + 1.875 * np.arange(48))

    def test_scenarios_are_text_and_part_in_2000(self, hadgem2: xr.Dataset) -> None:
        assert list(hadgem2.scenario.values) == ["A1B", "E1"]
        difference = hadgem2.tas.sel(scenario="A1B") - hadgem2.tas.sel(scenario="E1")
        largest = np.abs(difference).max(("lat", "lon"))
        assert float(largest.sel(time=slice("1860", "1999")).max()) == 0
        assert float(largest.sel(time=slice("2000", "2099")).min()) > 0

    def test_calendar(self, hadgem2: xr.Dataset) -> None:
        assert hadgem2.time.dt.calendar == "360_day"
        assert hadgem2.time.dt.year.values.tolist() == list(range(1860, 2100))
        assert set(hadgem2.time.dt.dayofyear.values) == {151}
        start, end = hadgem2.coords[hadgem2.time.attrs["bounds"]].values[0]
        assert (end - start).days == 360
        assert start < hadgem2.time.values[0] < end

    def test_grid_mapping_is_a_coordinate(self, hadgem2: xr.Dataset) -> None:
        mapping = hadgem2.tas.coords[hadgem2.tas.attrs["grid_mapping"]]
        assert mapping.attrs["grid_mapping_name"] == "latitude_longitude"

    def test_the_rockies_are_high_and_the_atlantic_is_flat(self, hadgem2: xr.Dataset) -> None:
        assert float(hadgem2.elevation.sel(lat=40, lon=253.125)) > 2000
        assert float(hadgem2.elevation.sel(lat=35, lon=300)) == 0
        assert float(hadgem2.land_fraction.sel(lat=40, lon=253.125)) == 1


class Silent(SimpleHTTPRequestHandler):
    """Serves a folder without writing to the terminal."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A web server for the folder `site`, reached without any proxy of the environment."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = tmp_path / "site"
    site.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site)))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    stop(server)


def stop(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny data set on the server, registered under the name `tiny`; returns the served file."""
    file = tmp_path / "site/served.nc"
    xr.Dataset({"sst": ("time", np.arange(3.0))}).to_netcdf(file, engine="h5netcdf")
    entry = tutorial.RemoteFile(
        url=f"http://127.0.0.1:{server.server_port}/{file.name}",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        description="three numbers",
    )
    monkeypatch.setitem(tutorial.REMOTE, "tiny", entry)
    return file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XSUPERRES_CACHE", str(folder))
    return folder


@pytest.mark.usefixtures("published")
class TestRemote:
    def test_second_opening_needs_no_server(self, server: ThreadingHTTPServer, cache: Path) -> None:
        with tutorial.open_dataset("tiny") as first:
            assert first.sst.values.tolist() == [0, 1, 2]
        stop(server)
        with tutorial.open_dataset("tiny") as second:
            assert second.sst.values.tolist() == [0, 1, 2]
        assert [file.name for file in cache.iterdir()] == ["tiny.nc"]

    def test_the_argument_wins_over_the_environment(self, cache: Path, tmp_path: Path) -> None:
        tutorial.open_dataset("tiny", cache_dir=tmp_path / "other").close()
        assert (tmp_path / "other/tiny.nc").is_file()
        assert not cache.exists()

    def test_default_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("XSUPERRES_CACHE", raising=False)
        monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
        tutorial.open_dataset("tiny").close()
        assert (tmp_path / "xsuperres" / "tiny.nc").is_file()

    def test_corrupt_download_is_refused(self, published: Path, cache: Path) -> None:
        content = bytearray(published.read_bytes())
        content[len(content) // 2] ^= 1
        published.write_bytes(content)
        with pytest.raises(TutorialDataError, match="refused.*sha256") as caught:
            tutorial.open_dataset("tiny")
        assert tutorial.REMOTE["tiny"].url in str(caught.value)
        assert list(cache.iterdir()) == []

    def test_corrupt_cache_is_fetched_again(self, cache: Path) -> None:
        cache.mkdir()
        (cache / "tiny.nc").write_bytes(b"not the file")
        with tutorial.open_dataset("tiny") as ds:
            assert ds.sst.values.tolist() == [0, 1, 2]

    def test_no_server(self, server: ThreadingHTTPServer, cache: Path) -> None:
        stop(server)
        with pytest.raises(TutorialDataError) as caught:
            tutorial.open_dataset("tiny")
        assert {XSuperResError, OSError} <= set(type(caught.value).__mro__)
        for part in (str(cache), tutorial.REMOTE["tiny"].url, *EMBEDDED):
            assert part in str(caught.value)

    def test_no_such_file(self, published: Path, cache: Path) -> None:
        published.unlink()
        with pytest.raises(TutorialDataError, match="404"):
            tutorial.open_dataset("tiny")
        assert list(cache.iterdir()) == []


class TestNames:
    def test_every_name_has_a_one_line_description(self) -> None:
        listed = tutorial.list_datasets()
        assert set(listed) == {*EMBEDDED, *tutorial.REMOTE}
        assert all(line and "\n" not in line for line in listed.values())

    def test_remote_files_are_pinned(self) -> None:
        for remote in tutorial.REMOTE.values():
            assert remote.url.startswith("https://")
            assert len(bytes.fromhex(remote.sha256)) == 32

    def test_unknown_name(self) -> None:
        with pytest.raises(UnknownNameError, match="era5_global_1deg") as caught:
            tutorial.open_dataset("era5_global")
        assert "Did you mean" in str(caught.value)

    def test_a_misplaced_file_is_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(tutorial.EMBEDDED, "lost", "was never there")
        with pytest.raises(TutorialDataError, match="lost.*[Rr]einstall"):
            tutorial.open_dataset("lost")

    def test_importing_is_light(self) -> None:
        code = (
            "import sys, xsuperres.tutorial;"
            "print([m for m in ('torch', 'dask.array', 'cf_xarray', 'pooch') if m in sys.modules])"
        )
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, check=True, capture_output=True).stdout.strip() == b"[]"
