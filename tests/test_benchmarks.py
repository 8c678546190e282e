"""Benchmark scripts: the one that is run on data of others, with any names, sizes, gaps, and few times; `house.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from xsuperres.testing import toy_field

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def skill(monkeypatch, make_model):
    """The script as a module; it sets the number of torch threads."""
    make_model()  # what the first training of a process imports is not to be paid from the budget
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    import skill as module

    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("skill")


@pytest.fixture
def house(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import house as module

    yield module
    sys.modules.pop("house")


def run(skill, tmp_path, da, *options: str) -> dict:
    """Write `da` to netCDF, run the script on it, and return the JSON it wrote."""
    names = [n for n in ("elevation", "land_fraction") if n in da.coords]
    da.reset_coords(names).to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    out = tmp_path / "score.json"
    told = ["--data", str(tmp_path / "data.nc"), "--variable", "tas", "--budget-seconds", "0.7", "--json", str(out)]
    skill.main([*told, *options])
    return json.loads(out.read_text())


KEYS = {"rmse", "ratio_to_bicubic", "cpu_seconds", "wall_seconds", "steps", "seed", "versions"}


def test_a_time_split_of_a_size_that_the_scale_does_not_divide(skill, tmp_path):
    da = toy_field(time=12, y=25, x=33).rename(lat="latitude", lon="longitude")
    record = run(skill, tmp_path, da, "--scale", "4", "--split", "time:0.7", "--static", "elevation", "--seed", "3")
    assert record.keys() >= KEYS and record["seed"] == 3
    assert set(record["rmse"]) == {
        *("network", "bilinear", "bicubic", "lapse", "static_regression", "delta", "regression")
    }
    assert record["sizes"]["train"] == {"time": 8, "latitude": 24, "longitude": 32}
    assert record["sizes"]["test"] == {"time": 3, "latitude": 24, "longitude": 32}
    assert record["cpu_seconds"] <= 1.2


def test_a_band_split_of_a_domain_too_small_for_validation_in_space(skill, tmp_path):
    da = toy_field(time=6, y=24, x=41)
    west, east = da.lon.values[[30, 40]]
    record = run(skill, tmp_path, da, "--scale", "3", "--split", f"band:{west},{east + 1e-6}", "--static", "elevation")
    assert record["sizes"]["train"]["lon"] == 30 and record["sizes"]["test"]["lon"] == 9
    assert record["rmse"].keys() == {"network", "bilinear", "bicubic", "lapse", "static_regression"}


def test_a_band_split_with_gaps_in_the_data_and_no_statics(skill, tmp_path):
    da = toy_field(time=5, y=20, x=72, periodic=True).drop_vars(["elevation", "land_fraction"])
    da = da.where((da.lat > da.lat[6]) | (da.lon > 100))
    record = run(skill, tmp_path, da, "--scale", "2", "--split", "band:180,260")
    assert np.isfinite(list(record["rmse"].values())).all()
    assert record["rmse"].keys() == {"network", "bilinear", "bicubic"}


@pytest.mark.parametrize("split", ["space", "time:0.5"])
def test_a_split_that_means_nothing(skill, tmp_path, split):
    with pytest.raises(SystemExit, match="--split"):
        run(skill, tmp_path, toy_field(time=1, y=8, x=8), "--scale", "2", "--split", split)


def test_the_house_compares_two_builds(house, monkeypatch, tmp_path):
    """Here a build with itself, so that results are equal; `--small` judges no limit."""

    class Here(house.Build):
        """A build in this process."""

        def __init__(self, root: Path, folder: Path, *, small: bool) -> None:
            folder.mkdir()
            self.folder, self.measures = folder, {}

        def ask(self, command: str, section: str) -> object:
            if command == "open":
                self.measures[section] = house.SECTIONS[section](house.SMALL, self.folder)
            return {"time": 0.5}.get(command) or self.measures[section].facts()

        def close(self) -> None: ...

    monkeypatch.setattr(house, "Build", Here)
    arguments = ["--against", str(FOLDER.parent), "--small", "--trials", "3", "--json", str(tmp_path / "house.json")]
    with pytest.raises(SystemExit) as end:
        house.main([*arguments, "--only", "lazy,weights,files"])
    record = json.loads((tmp_path / "house.json").read_text())
    assert end.value.code == 0 and record["lazy"]["cpu_ratio"] == 1
    assert record["lazy"]["files_entered"] == record["lazy"]["files"]["of_the_other"] > 5
    assert record["weights"] | {"limits": 0} == {"equal": 2, "networks": 2, "differing": {}, "limits": 0}
    assert record["files"]["equal"] is True


def test_a_build_of_the_house_is_a_process_of_its_own(house, tmp_path):
    build = house.Build(FOLDER.parent, tmp_path / "this", small=True)
    try:
        build.ask("open", "memory")
        assert build.ask("time", "memory") > 0
        assert build.ask("facts", "memory") == {}
    finally:
        build.close()
    assert build.process.returncode == 0


def test_the_house_measures_its_own_package_only(house, tmp_path):
    with pytest.raises(SystemExit, match="Expected to import the package of"):
        house.serve(str(tmp_path), str(tmp_path), house.SMALL)


@pytest.mark.parametrize("section", ["score", "archive", "fit", "memory", "derivations"])
def test_every_section_of_the_house_measures_something(house, tmp_path, section):
    measure = house.SECTIONS[section](house.SMALL, tmp_path)
    measure.work()
    if section == "score":
        calls = measure.facts()["calls"]
        assert calls > 0
        same = house.differences(tmp_path / "score.nc", tmp_path / "score.nc")
        assert same["largest_relative_difference"] == 0 and "rmse" in same["relative_difference_by_metric"]
    if section == "derivations":
        assert set(measure.facts()) >= {
            "fit",
            "coarsen",
            "interpolate",
            "downscale, lazy",
            "score",
            "downscale_to_zarr",
        }


def test_the_house_says_which_limits_are_missed(house):
    record = {
        "lazy": {"cpu_ratio": 0.5, "files_entered": 16},
        "memory": {"speed_ratio": 0.98},
        "weights": {"equal": 47},
    }
    assert [line.split(" is ")[0] for line in house.missed(record)] == [
        "lazy: cpu_ratio",
        "memory: speed_ratio",
        "weights: equal",
    ]
    assert not house.missed({"lazy": {"cpu_ratio": 0.4, "files_entered": 16}, "files": {"equal": True}})


def test_the_house_sees_another_number(house, tmp_path):
    table = xr.Dataset({"rmse": ("product", [1.0, 2.0]), "bias": ("product", [0.0, np.nan])}, {"product": ["a", "b"]})
    table.to_netcdf(tmp_path / "one.nc", engine="h5netcdf")
    other = table.isel(product=[1, 0])
    other.assign(rmse=other.rmse * (1 + 1e-6)).to_netcdf(tmp_path / "two.nc", engine="h5netcdf")
    apart = house.differences(tmp_path / "two.nc", tmp_path / "one.nc")
    assert apart["relative_difference_by_metric"] == {"rmse": pytest.approx(1e-6, rel=0.1), "bias": 0}
    assert apart["largest_relative_difference"] == pytest.approx(1e-6, rel=0.1)
    table.fillna(0).to_netcdf(tmp_path / "whole.nc", engine="h5netcdf")
    with pytest.raises(SystemExit, match="Values of bias are missing in other places"):
        house.differences(tmp_path / "whole.nc", tmp_path / "one.nc")
