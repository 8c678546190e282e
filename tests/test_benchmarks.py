"""The benchmark script that is run on data of others: any names, sizes, gaps, and few times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from xsuperres.testing import toy_field

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def skill(monkeypatch):
    """The script as a module; it sets the number of torch threads."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    import skill as module

    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("skill")


def run(skill, tmp_path, da, *options: str) -> dict:
    """Write `da` to netCDF, run the script on it, and return the JSON it wrote."""
    names = [n for n in ("elevation", "land_fraction") if n in da.coords]
    da.reset_coords(names).to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    out = tmp_path / "score.json"
    told = ["--data", str(tmp_path / "data.nc"), "--variable", "tas", "--budget-seconds", "2", "--json", str(out)]
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
    assert record["cpu_seconds"] <= 2.5


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
