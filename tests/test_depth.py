"""Depth: how many files a call enters, and that a DataArray is asked once what it is."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import xsuperres
from xsuperres.fields.grid import grid_of
from xsuperres.testing import toy_field

ROOT = Path(xsuperres.__file__).parents[1]
FILES_ENTERED = 21  # by the graph of a lazy `downscale`


@pytest.fixture
def depth(monkeypatch):
    """The tracer, which `benchmarks/house.py` uses too."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import depth as module

    yield module
    sys.modules.pop("depth")


@pytest.fixture
def traced(depth):
    """Return the function that runs a call and returns its trace."""
    return lambda work: depth.traced(work, ROOT / "xsuperres")


def test_the_tracer_counts_each_array_apart(traced):
    field, other = toy_field(time=2, y=8, x=8), toy_field(time=2, y=8, x=8)
    trace = traced(lambda: [grid_of(da) for da in (field, other, field.transpose().rename("a"), field.isel(time=[0]))])
    assert sorted(trace.derivations["grid_of"].values()) == [1, 1, 2], "a view is the array, a copy is not"
    assert trace.most("grid_of") == 2 and trace.most("TimeAxes.of") == 0
    assert "fields/grid.py" in trace.files and "fields/resample.py" not in trace.files
    assert traced(lambda: field.sr.coarsen(2)).files > trace.files - {"fields/grid.py"}
    lazy = field.chunk()
    assert traced(lambda: (grid_of(lazy), grid_of(lazy))).most("grid_of") == 2


def test_the_tracer_stops_when_the_call_fails(traced):
    with pytest.raises(ZeroDivisionError):
        traced(lambda: 1 / 0)
    assert sys.getprofile() is None


def test_a_lazy_downscale_enters_few_files(traced, make_model):
    toy = make_model()
    lazy = toy.coarse.chunk(time=1)
    lazy.sr.downscale(toy.model)  # what is imported or cached at the first call is no part of the way
    trace = traced(lambda: lazy.sr.downscale(toy.model))
    assert 5 < len(trace.files) <= FILES_ENTERED, sorted(trace.files)


QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1, "validations": 1},
    "progress": False,
    "activate": False,
}


def calls(toy, folder: Path) -> dict:
    """Return a call of each public method."""
    fine, coarse, model = toy.fine, toy.coarse, toy.model
    year = np.timedelta64(400, "D")  # not what the model was trained on
    truth, later = (da.assign_coords(time=da.time + year).copy(deep=True) for da in (fine, coarse))
    result = later.sr.downscale(model)
    return {
        "fit": lambda: fine.sr.fit(2, **QUICK),
        "coarsen": lambda: fine.sr.coarsen(2),
        "interpolate": lambda: coarse.sr.interpolate(2, like=fine),
        "downscale, lazy": lambda: later.chunk(time=1).sr.downscale(model),
        "downscale, in memory": lambda: later.sr.downscale(model),
        "downscale_to_zarr": lambda: later.sr.downscale_to_zarr(str(folder / "a.zarr"), model, progress=False),
        "score": lambda: result.sr.score(truth, coarse=later, model=model),
        "describe": lambda: later.sr.describe(model=model),
        "with_bounds": lambda: fine.sr.with_bounds(),
    }


METHODS = {name for name in dir(xr.DataArray.sr) if not name.startswith("_")}


def test_a_dataarray_is_asked_once_what_it_is(depth, traced, make_model, tmp_path):
    """In every public method: its grid, its axes, its times."""
    work = calls(make_model(), tmp_path)
    assert {name.split(",")[0] for name in work} == METHODS
    most = Counter()
    for method, call in work.items():
        trace = traced(call)
        most[method] = max(trace.most(name) for name in depth.DERIVATIONS)
    assert all(most.values()), "the functions that are counted are not those that are used"
    assert not {method: count for method, count in most.items() if count > 1}
