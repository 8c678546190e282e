"""What `describe` says: of the data, of them as training data, of a model that fits and of one that does not."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.inference import describe as module
from xsuperres.testing import toy_field


@pytest.fixture(autouse=True)
def _no_models():
    xsr.deactivate()
    yield
    xsr.deactivate()


def rows(text: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


def test_chunks_are_counted(make_model):
    coarse = make_model().coarse
    lazy = coarse.chunk(time=1, lat=5, lon=9)
    assert rows(lazy.sr.describe())["data"] == "lazy, chunks 1 x 5 x 9, 18 blocks"
    assert rows(coarse.chunk().sr.describe())["data"] == "lazy, chunks 3 x 14 x 18, 1 block"
    assert rows(coarse.sr.describe())["data"] == "in memory, 3.02 kB"


def test_all_variables_of_a_dataset_are_named(make_model):
    coarse = make_model().coarse
    ds = xr.Dataset({"tas": coarse, "pr": (coarse * 2.0).astype("float64").assign_attrs(units="mm"), "crs": 0})
    lines = ds.sr.describe(2).splitlines()
    assert [line for line in lines if line.startswith("field")] == [
        "field             tas [K], float32",
        "field             pr [mm], float64",
    ]
    told = rows(ds.sr.describe(2))
    assert told["data"] == "in memory, 9.07 kB" and told["result"] == "36.3 kB", "of both"


def test_as_training_data_without_a_model():
    fine = toy_field(time=2, y=12, x=20)
    told = rows(fine.sr.describe(4))["as training data"]
    assert told.startswith("coarsened to lat 3 x lon 5, ")
    told = rows(fine.isel(lon=slice(0, 18)).sr.describe(4))["as training data"]
    assert "18 cells, which scale=4 does not divide" in told and ".isel(lon=slice(0, 16))" in told
    assert "as training data" not in fine.sr.describe()


def test_an_active_model_that_does_not_fit_takes_one_short_line(make_model):
    toy = make_model()
    xsr.activate(toy.model)
    told = rows(toy.fine.sr.describe(2))
    assert "looks like the model's fine grid; coarsen it first" in told["domain"]
    assert len(told["domain"]) < 160
    assert told["as training data"].startswith("coarsened to lat 14 x lon 18")
    assert toy.model.digest[:12] in told["model"]
    assert not {"halo", "memory", "time"} & set(told)
    assert "as training data" not in toy.coarse.sr.describe(2)


def test_an_open_model_elsewhere_names_its_static_fields(make_model):
    toy = make_model(domain="open")
    there = toy.coarse.assign_coords(lon=toy.coarse.lon + 40)
    told = rows(there.sr.describe(model=toy.model))
    assert told["domain"].startswith("elsewhere (outside: 'lon' reaches from 41 to 75, the model's from 1 to 35)")
    assert "pass static= with elevation, land_fraction" in told["domain"]
    assert {"halo", "memory", "time"} <= set(told)


def projected(field: xr.DataArray, x: np.ndarray) -> xr.DataArray:
    y = ("y", 25.0 * np.arange(field.sizes["lat"]))
    return field.drop_vars(["lat", "lon"]).rename(lat="y", lon="x").assign_coords(x=("x", x), y=y)


def test_areas_of_projected_cells():
    field = toy_field(time=1, y=8, x=12)
    even = 25.0 * np.arange(12)
    assert "areas taken as equal" in rows(projected(field, even).sr.describe())["grid"]
    uneven = rows(projected(field, even**1.1).sr.describe())["grid"]
    assert "areas taken as the product of spacings" in uneven
    assert "areas" not in field.sr.describe()


def test_the_estimate_of_time_is_the_best_of_three(make_model, monkeypatch):
    """One run that is held up by other processes does not count."""
    toy, clock = make_model(), iter([0.0, 50.0, 100.0, 100.25, 200.0, 290.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    cells = min(12, toy.coarse.sizes["lat"]) * min(12, toy.coarse.sizes["lon"])
    expected = 3 * 14 * 18 * 0.25 / cells
    assert rows(toy.coarse.sr.describe(model=toy.model))["time"].startswith(f"about {expected:.2g} s")


@pytest.mark.parametrize("orientation", [1, -1])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_range_is_that_of_what_the_network_would_see(make_model, shift, orientation):
    """Of data that are cropped or regridded too; what lies around the domain does not count."""
    toy = make_model()
    coarse = toy.coarse.drop_vars(["elevation", "land_fraction"])
    wide = coarse.pad(lon=2, constant_values=999.0).isel(lat=slice(None, None, orientation))
    lon = coarse.lon.values[0] + 2.0 * np.arange(-2, coarse.sizes["lon"] + 2) + shift
    wide = wide.assign_coords(lon=("lon", lon, coarse.lon.attrs))
    share = float(rows(wide.sr.describe(model=toy.model))["range"].split(" %")[0])
    assert share < 20, "two columns beside the domain reach into it when they are shifted"
    if not shift:
        assert share == float(rows(coarse.sr.describe(model=toy.model))["range"].split(" %")[0])
    warm = (wide + 100).assign_attrs(wide.attrs)
    assert rows(warm.sr.describe(model=toy.model))["range"].startswith("100 % of the cells outside")
    assert "range" not in rows(wide.chunk(time=1).sr.describe(model=toy.model))
