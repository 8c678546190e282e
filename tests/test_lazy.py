"""Lazy in, lazy out: nothing computed while building, small graphs, any scheduler."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import warnings

import cloudpickle
import dask
import dask.array
import numpy as np
import pytest
import xarray as xr

import xsuperres
from xsuperres.errors import XSuperResWarning
from xsuperres.model.file import model_to_bytes

OPERATIONS = {
    "coarsen": lambda da, model: da.sr.coarsen(2),
    "interpolate": lambda da, model: da.sr.interpolate(2),
    "interpolate like": lambda da, model: da.sr.interpolate(2, like=da.sr.interpolate(2)),
    "downscale": lambda da, model: da.sr.downscale(model),
    "downscale by name": lambda da, model: da.sr.downscale(scale=2),
}
every = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


@pytest.fixture
def toy(make_model):
    from xsuperres.model.table import activate, deactivate

    toy = make_model(scale=2, coarse=(20, 24), missing=True)
    activate(toy.model)
    yield toy
    deactivate()


def chunked(toy) -> xr.DataArray:
    return toy.coarse.chunk(time=1, lat=10, lon=12)


class Refuses:
    """A scheduler that refuses to compute."""

    def __call__(self, graph, keys, **options):
        raise AssertionError("computed while building")


@every
def test_nothing_is_computed_when_building(toy, operation):
    with dask.config.set(scheduler=Refuses()):
        lazy = operation(chunked(toy), toy.model)
        assert lazy.chunks is not None
        repr(lazy)
        lazy._repr_html_()
        with pytest.raises(AssertionError, match="while building"):
            lazy.compute()


@pytest.mark.parametrize("operation", ["coarsen", "interpolate"])
def test_chunked_2d_coordinates_are_not_computed_either(rotated_field, operation):
    """`.chunk()` chunks latitude and longitude of a rotated grid along with the data."""
    da = rotated_field.chunk(rlat=6, rlon=8)
    assert da.lat.chunks is not None
    with dask.config.set(scheduler=Refuses()):
        lazy = getattr(da.sr, operation)(2)
    expected = getattr(rotated_field.sr, operation)(2)
    xr.testing.assert_allclose(lazy.compute(scheduler="synchronous"), expected)


@every
def test_eager_in_eager_out(toy, operation):
    assert operation(toy.coarse, toy.model).chunks is None


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_shape_and_chunks_are_what_was_promised(toy, operation, dtype):
    lazy = operation(chunked(toy).astype(dtype, keep_attrs=True), toy.model)
    done = lazy.compute(scheduler="synchronous")
    assert lazy.dtype == done.dtype == dtype
    assert lazy.data._meta.dtype == dtype
    assert lazy.data._meta.ndim == 3
    factor = lazy.sizes["lat"] / 20
    assert lazy.chunks == ((1, 1, 1), (10 * factor,) * 2, (12 * factor,) * 2)
    for at, block in np.ndenumerate(lazy.data.to_delayed()):
        expected = tuple(lazy.chunks[axis][index] for axis, index in enumerate(at))
        assert block.compute(scheduler="synchronous").shape == expected


@every
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_schedulers_agree(toy, operation, scheduler):
    lazy, eager = operation(chunked(toy), toy.model), operation(toy.coarse, toy.model)
    got = lazy.compute(scheduler=scheduler)
    np.testing.assert_allclose(got, eager, rtol=0, atol=1e-5 * toy.model.scaling.sd + 6.2e-5)
    xr.testing.assert_identical(got.coords.to_dataset(), eager.coords.to_dataset())


@pytest.mark.slow
def test_processes_agree(toy):
    """Another process reads the model from the cache: the graph holds its digest and a path."""
    lazy = [operation(chunked(toy), toy.model) for operation in OPERATIONS.values()]
    here = dask.compute(*lazy, scheduler="synchronous")
    there = dask.compute(*lazy, scheduler="processes", num_workers=1)
    for first, second in zip(here, there, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-5 * toy.model.scaling.sd)
        np.testing.assert_array_equal(first.isnull(), second.isnull())


@every
def test_the_same_call_gives_the_same_keys(toy, operation):
    """Deterministic tokens: dask and caches recognise what was asked before."""
    first, second = (operation(chunked(toy), toy.model) for _ in range(2))
    assert first.data.name == second.data.name


@pytest.mark.parametrize("missing", [False, True])
def test_other_models_inputs_and_settings_give_other_keys(make_model, missing):
    first = make_model(scale=2, coarse=(20, 24), missing=missing)
    second = make_model(scale=2, coarse=(20, 24), missing=missing, seed=1)
    da = chunked(first)
    names = [
        da.sr.downscale(first.model).data.name,
        da.sr.downscale(second.model).data.name,
        (da + 1).assign_attrs(da.attrs).sr.downscale(first.model).data.name,
        da.sr.downscale(first.model, batch_size=1).data.name,
        da.sr.interpolate(2).data.name,
        da.sr.interpolate(2, method="bilinear").data.name,
    ]
    assert len(set(names)) == len(names)


def graph_bytes(lazy: xr.DataArray) -> int:
    return len(cloudpickle.dumps(dict(lazy.data.__dask_graph__())))


def keys(data: str, model: str) -> tuple[str, int]:
    """Return a key of the graph, and the hash of a string."""
    coarse = xr.open_dataset(data, engine="h5netcdf").tas.load()
    lazy = coarse.chunk(time=1, lat=10).sr.downscale(xsuperres.load_model(model))
    return min(map(str, lazy.__dask_keys__())), hash("xsuperres")


def test_processes_give_the_same_keys(toy, tmp_path):
    """Of the same model file and data, whatever the hashes of Python's strings."""
    toy.model.save(tmp_path / "model.safetensors")
    toy.coarse.drop_vars(["elevation", "land_fraction"]).to_netcdf(tmp_path / "coarse.nc", engine="h5netcdf")
    files = str(tmp_path / "coarse.nc"), str(tmp_path / "model.safetensors")
    program = f"import sys, xarray as xr, xsuperres\n{inspect.getsource(keys)}\nprint(*keys(*sys.argv[1:]))"
    command = [sys.executable, "-c", program, *files]
    environment = os.environ | {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    there = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    key, number = keys(*files)
    assert " ".join(there[:-1]) == key and there[-1] != str(number)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(
    ("chunks", "window", "most"),
    [
        ({"time": 1}, None, 3),
        ({"time": 5}, 3, 3 + 2),  # what the next block in time needs of this one is a task of its own
        ({"time": 5, "lat": 18, "lon": 18}, None, 12),
        ({"time": 5, "lat": 18, "lon": 18}, 3, 20),
    ],
)
def test_there_are_few_tasks_per_block(make_model, periodic, chunks, window, most):
    """After optimisation, reading included: less than plain overlap makes."""
    toy = make_model(coarse=(90, 90), periodic=periodic, options=(("time_window", window),))
    series = toy.coarse.isel(time=np.zeros(40, int)).copy(data=np.zeros((40, 90, 90), np.float32))
    series = series.assign_coords(time=np.arange(40)).chunk(chunks)
    data = dask.array.map_blocks(np.array, series.data, dtype=np.float32)  # as from a store: a task per chunk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)
        lazy = series.copy(data=data).sr.downscale(toy.model).data
    (optimised,) = dask.optimize(lazy)
    assert len(optimised.__dask_graph__()) <= most * lazy.npartitions


def test_the_graph_does_not_grow_with_the_network(make_model):
    """A reference travels, never the weights."""
    small = make_model(scale=2, coarse=(20, 24))
    large = make_model(scale=2, coarse=(20, 24), network=(("width", 64), ("depth", 1)))
    sizes = []
    for toy in (small, large):
        source = dask.array.zeros((50, 20, 24), chunks=(1, 20, 24), dtype="float32")
        da = xr.DataArray(source, dims=("time", "lat", "lon"), coords={d: toy.coarse[d] for d in ("lat", "lon")})
        da = da.rename("tas").assign_attrs(toy.coarse.attrs)
        sizes.append(graph_bytes(da.sr.downscale(toy.model)) / 50)
    weights = [len(model_to_bytes(toy.model)) for toy in (small, large)]
    assert weights[1] - weights[0] > 300_000
    assert abs(sizes[1] - sizes[0]) < 100
    assert max(sizes) < 2000


def test_each_task_is_small(toy):
    """What a scheduler sends to a worker per task: no static fields, no weights."""
    lazy = chunked(toy).sr.downscale(toy.model, mask="input")
    tasks = {k: v for k, v in dict(lazy.data.__dask_graph__()).items() if str(k[0]).startswith("downscale")}
    assert max(len(cloudpickle.dumps(task)) for task in tasks.values()) < 4000


def test_a_task_can_be_pickled_and_run(toy):
    lazy = chunked(toy).sr.downscale(toy.model)
    again = pickle.loads(cloudpickle.dumps(lazy))
    np.testing.assert_array_equal(again.compute(scheduler="synchronous"), lazy.compute(scheduler="synchronous"))


def test_small_chunks_are_merged_with_a_warning(toy):
    tiny = toy.coarse.chunk(lat=2, lon=3)
    with pytest.warns(XSuperResWarning, match="smaller than the model's halo"):
        lazy = tiny.sr.downscale(toy.model)
    # Merged as little as that takes.
    assert min(lazy.chunks[1]) >= toy.model.halo * 2
    assert len(lazy.chunks[1]) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy.coarse.chunk(time=1, lat=20, lon=24).sr.downscale(toy.model)


def test_memory_stays_with_the_chunk(toy):
    """A block of many times goes through the network in sub-batches, with the same numbers."""
    whole = chunked(toy).sr.downscale(toy.model).compute(scheduler="synchronous")
    parts = toy.coarse.chunk().sr.downscale(toy.model, batch_size=1).compute(scheduler="synchronous")
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * toy.model.scaling.sd + 6.2e-5)


def test_in_memory_data_are_tiled_to_the_budget(make_model, check, monkeypatch):
    """The budget changes the tiles, not the numbers."""
    from xsuperres.inference import prepared as module
    from xsuperres.inference.tile import plane_tiles

    toy = make_model(scale=2, coarse=(60, 24))
    whole = toy.coarse.sr.downscale(toy.model)
    monkeypatch.setattr(module, "bytes_per_cell", lambda model: 2**30)
    rows, columns = plane_tiles(toy.coarse.shape[-2:], module.prepare(toy.model), 2**30)
    assert len(rows) > 1 and sum(rows) == 60 and sum(columns) == 24
    check.same_numbers(toy.coarse.sr.downscale(toy.model), whole, toy.model.scaling.sd)


def test_missing_cells_for_a_model_that_never_saw_any(make_model):
    """Eager data are refused at once; lazy ones cannot be looked at: filled, restored, and said so."""
    from xsuperres.errors import DataError

    toy = make_model(scale=2)
    holed = toy.coarse.copy(deep=True)
    holed[0, 3, 4] = np.nan
    with pytest.raises(DataError, match=r"NaN in .* of the cells.*trained on complete fields"):
        holed.sr.downscale(toy.model)
    lazy = holed.chunk(time=1).sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="NaN"):
        done = lazy.compute(scheduler="synchronous")
    assert done[0, 6:8, 8:10].isnull().all()
    assert int(done.isnull().sum()) == 4
