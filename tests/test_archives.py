"""Archives as a user has them: checked before anything is written, labelled as by `downscale`, one run's, shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from xsuperres.errors import ConfigError, DataError, StoreError, XSuperResError, XSuperResWarning
from xsuperres.inference import record, store
from xsuperres.inference.tile import Tile
from xsuperres.testing import toy_field

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import kill

FIELD = 28 * 36 * 4  # bytes of a fine field


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch):
    """Blocks of one field, regions of eight."""
    monkeypatch.setattr(store, "region_budget", lambda memory_budget: memory_budget or 8 * FIELD)


@pytest.fixture
def toy(make_model):
    """A model and 24 coarse fields."""
    return SimpleNamespace(model=make_model().model, coarse=toy_field(time=24, y=28, x=36).sr.coarsen(2))


def stored(coarse, place, model, **options):
    return coarse.sr.downscale_to_zarr(place, model, **{"progress": False} | options)


# checked before anything is written


def test_gaps_outside_of_the_models_domain(toy, check, tmp_path):
    """A larger area is cropped first, as by `downscale`."""
    part = toy_field(time=24, y=28, x=36).isel(lon=slice(0, 24))
    model = part.sr.fit(2, optimization={"max_steps": 1}, progress=False, activate=False)
    toy.coarse[:, :, 13:] = np.nan
    assert toy.coarse.sizes["lon"] == 18
    whole = toy.coarse.sr.downscale(model)
    fine = stored(toy.coarse, tmp_path / "fine.zarr", model)
    assert fine.sizes["lon"] == 24 and fine.notnull().all()
    check.same_numbers(fine, whole, model.scaling.sd)


def test_gaps_of_predictors(make_model, tmp_path):
    field = toy_field(time=12, y=28, x=36)
    other = (field * 2).rename("psl").assign_attrs(units="Pa")
    model = field.sr.fit(2, predictors=other, optimization={"max_steps": 1}, progress=False, activate=False)
    shown = other.sr.coarsen(2)
    shown[3] = np.nan
    with pytest.raises(DataError, match="'psl' is NaN in .* complete fields"):
        stored(field.sr.coarsen(2), tmp_path / "fine.zarr", model, predictors=shown)
    assert not list(tmp_path.iterdir())


def warmer(coarse, kelvin=30.0):
    return (coarse + kelvin).assign_attrs(coarse.attrs)


def test_data_in_memory_are_checked_for_their_range_first(toy, tmp_path):
    with pytest.raises(DataError, match="of the coarse values lie outside the range"):
        stored(warmer(toy.coarse), tmp_path / "fine.zarr", toy.model, check_range="raise")
    assert not list(tmp_path.iterdir())
    with pytest.warns(XSuperResWarning, match="of the coarse values lie outside") as caught:
        warmer(toy.coarse).sr.downscale_to_zarr(tmp_path / "fine.zarr", toy.model, progress=False)
    assert [item.filename for item in caught] == [__file__], "told once, at the line of the user"
    with pytest.raises(DataError, match="outside"):  # a finished one too
        stored(warmer(toy.coarse), tmp_path / "fine.zarr", toy.model, check_range="raise")


def test_lazy_data_are_checked_for_their_range_as_they_are_computed(toy, tmp_path):
    lazy = warmer(toy.coarse).chunk(time=8)
    with pytest.raises(DataError, match="outside the range"):
        stored(lazy, tmp_path / "fine.zarr", toy.model, check_range="raise")
    with pytest.warns(XSuperResWarning, match="outside the range"):
        stored(lazy, tmp_path / "fine.zarr", toy.model)
    stored(lazy, tmp_path / "ignored.zarr", toy.model, check_range="ignore")
    stored(lazy, tmp_path / "fine.zarr", toy.model, check_range="raise")  # nothing is computed


def test_a_precision_that_the_device_has_not(toy, tmp_path):
    """In memory it is refused before anything is written; lazy data are computed where the device may be another."""
    with pytest.raises(ConfigError, match="precision='fp16' is not there on 'cpu'"):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model, precision="fp16", device="cpu")
    assert not list(tmp_path.iterdir())
    lazy = toy.coarse.chunk(time=4)
    with pytest.raises(ConfigError, match="precision='fp16' is not there on 'cpu'"):
        stored(lazy, tmp_path / "half.zarr", toy.model, precision="fp16", device="cpu")
    with pytest.raises(StoreError, match="precision='fp16', this run precision='fp32'.*delete that one"):
        stored(lazy, tmp_path / "half.zarr", toy.model)


# whose a place is


OTHER = {
    "settings": (lambda c: c, {"mask": "input"}, "other settings"),
    "data": (lambda c: c.copy(data=c.values + 1), {}, "other coarse data"),
    "shape": (lambda c: c.isel(time=slice(0, 9)), {}, "names, shapes and dtypes"),
    "encoding": (lambda c: c, {"encoding": {"tas": {"chunks": (5, 14, 36)}}}, "other settings"),
    "an empty place expected": (lambda c: c, {"resume": False}, "resume=False expects an empty place"),
}


@pytest.fixture(params=["folder", "memory"])
def nothing_done(toy, tmp_path, monkeypatch, request):
    """An archive whose writer failed in its first region, and the store of one that did not."""
    toy.place, clean = (
        (tmp_path / "a.zarr", tmp_path / "b.zarr") if request.param == "folder" else (MemoryStore(), MemoryStore())
    )
    run, seen = Tile.__call__, []

    def failing(self, *blocks):
        seen.append(blocks)
        if len(seen) > 3:
            raise RuntimeError("boom")
        return run(self, *blocks)

    with monkeypatch.context() as broken:
        broken.setattr(Tile, "__call__", failing)
        with pytest.raises(RuntimeError, match="boom"):
            stored(toy.coarse.chunk(time=1), toy.place, toy.model)
    stored(toy.coarse.chunk(time=1), clean, toy.model)
    toy.contents = lambda: objects(toy.place)
    toy.whole = objects(clean)
    return toy


def objects(place) -> dict[str, bytes]:
    if isinstance(place, MemoryStore):
        return {name: value.to_bytes() for name, value in place._store_dict.items()}
    return kill.contents(place)


@pytest.mark.parametrize(("change", "options", "told"), OTHER.values(), ids=OTHER.keys())
def test_a_run_keeps_its_place_before_anything_is_done(nothing_done, change, options, told):
    """Another one is told whose it is, and changes nothing; the run itself goes on."""
    before = nothing_done.contents()
    with pytest.raises(StoreError, match=f"{told}.* delete (that one|it)"):
        stored(change(nothing_done.coarse), nothing_done.place, nothing_done.model, **options)
    assert nothing_done.contents() == before
    stored(nothing_done.coarse, nothing_done.place, nothing_done.model)
    assert not kill.difference(nothing_done.contents(), nothing_done.whole)


def test_a_run_goes_on_in_its_own_blocks(nothing_done):
    """Whatever the chunks of the data are now, and with another budget."""
    with pytest.warns(XSuperResWarning, match="reach over") as _:
        stored(
            nothing_done.coarse.chunk(time=24, lat=9), nothing_done.place, nothing_done.model, memory_budget=3 * FIELD
        )
    assert not kill.difference(nothing_done.contents(), nothing_done.whole)


# finished ones


def test_a_copy_of_a_part_is_no_archive(toy, tmp_path):
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    xr.open_zarr(tmp_path / "fine.zarr").isel(time=slice(0, 3)).to_zarr(tmp_path / "part.zarr", consolidated=True)
    xr.open_zarr(tmp_path / "fine.zarr").drop_vars("tas").to_zarr(tmp_path / "none.zarr", consolidated=True)
    for name, found in (("part", "'time': 3"), ("none", "of {}")):
        with pytest.raises(StoreError, match=f"has the mark of an archive, but 'tas' .*{found}.*a part of one"):
            stored(toy.coarse, tmp_path / f"{name}.zarr", toy.model)


def test_a_finished_archive_without_consolidated_metadata(toy, tmp_path):
    """Whoever took them out finds the same archive, as it is."""
    fine = stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    root = json.loads((tmp_path / "fine.zarr" / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (tmp_path / "fine.zarr" / "zarr.json").write_text(json.dumps(root))
    before = kill.contents(tmp_path / "fine.zarr")
    xr.testing.assert_identical(stored(toy.coarse, tmp_path / "fine.zarr", toy.model), fine)
    assert kill.contents(tmp_path / "fine.zarr") == before


def test_a_finished_archive_is_read_once(toy, tmp_path, monkeypatch):
    """Its root, and nothing is written, not even in memory; then xarray opens it."""
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    with monkeypatch.context() as broken:
        broken.setattr(xr.Dataset, "to_zarr", None)
        opened, read, get = [], [], zarr.storage.LocalStore.get
        true_open = xr.open_zarr

        async def watched(self, key, *others, **options):
            read.append(key)
            return await get(self, key, *others, **options)

        broken.setattr(zarr.storage.LocalStore, "get", watched)
        broken.setattr(xr, "open_zarr", lambda *places, **options: opened.append(1) or true_open(*places, **options))
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert opened == [1] and set(read) == {"zarr.json"} and len(read) <= 4


def test_the_order_of_predictors_and_others_do_not_matter(tmp_path):
    field = toy_field(time=12, y=28, x=36)
    first, second = (field * 2).rename("psl").assign_attrs(units="Pa"), (field * 3).rename("q").assign_attrs(units="1")
    how = {"optimization": {"max_steps": 1}, "progress": False, "activate": False}
    model = field.sr.fit(2, predictors=[first, second], **how)
    coarse, psl, q = field.sr.coarsen(2), first.sr.coarsen(2), second.sr.coarsen(2)
    stored(coarse, tmp_path / "fine.zarr", model, predictors=[psl, q])
    stored(coarse, tmp_path / "fine.zarr", model, predictors=xr.Dataset({"q": q, "psl": psl, "more": psl + 1}))
    with pytest.raises(StoreError, match="other predictors"):
        stored(coarse, tmp_path / "fine.zarr", model, predictors=[(psl + 1).assign_attrs(units="Pa"), q])


# labels


def test_a_dataset_with_a_grid_mapping_and_others_beside(toy, tmp_path):
    ds = toy.coarse.to_dataset().assign(stations=("station", np.arange(3.0)))
    ds["crs"] = xr.DataArray(0, attrs={"grid_mapping_name": "latitude_longitude"})
    ds.tas.attrs |= {"grid_mapping": "crs", "coordinates": "lat lon"}
    ds = ds.assign_attrs(title="mine")
    whole, fine = ds.sr.downscale(toy.model), stored(ds, tmp_path / "fine.zarr", toy.model)
    xr.testing.assert_identical(fine.compute().assign(tas=whole.tas), whole)
    np.testing.assert_allclose(fine.tas, whole.tas, rtol=1e-6)
    assert fine.tas.attrs == whole.tas.attrs and list(fine.data_vars) == list(whole.data_vars)
    with xr.open_zarr(tmp_path / "fine.zarr", decode_coords=False) as raw:
        assert raw.attrs["title"] == "mine" and raw.tas.attrs["grid_mapping"] == "crs" and "crs" in raw
    fine.to_netcdf(tmp_path / "again.nc", engine="h5netcdf")


def test_coordinates_are_in_memory(toy, tmp_path):
    fine = stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert fine.chunks is not None
    assert all(coordinate.variable._in_memory and coordinate.chunks is None for coordinate in fine.coords.values())


# progress


def test_the_bar_begins_where_the_archive_is_and_moves_with_the_regions(toy, tmp_path, monkeypatch):
    seen = []

    class Bar(SimpleNamespace):
        def __enter__(self):
            seen.append(self.n)
            return self

        def __exit__(self, *_):
            seen.append("end")

        def update(self, n):
            self.n += n
            seen.append(self.n)

    monkeypatch.setattr(store, "tqdm", lambda total, initial, **_: Bar(total=total, n=initial))
    to_zarr = xr.Dataset.to_zarr

    def failing(self, *places, **options):
        if options.get("region", {}).get("time") == slice(16, 24):
            raise MemoryError
        return to_zarr(self, *places, **options)

    with monkeypatch.context() as broken:
        broken.setattr(xr.Dataset, "to_zarr", failing)
        with pytest.raises(MemoryError):
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert seen == [0, 8, 16, "end"]
    seen.clear()
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert seen == [16, 24, "end"]


# other processes


WRITER = """
import sys, warnings
import xarray as xr, xsuperres
from xsuperres.inference import store
store.region_budget = lambda given: 8 * 28 * 36 * 4
warnings.simplefilter("ignore")

def main():
    if sys.argv[4] == "cluster":
        from distributed import Client, LocalCluster
        client = Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
    coarse = xr.open_dataset(sys.argv[1], engine="h5netcdf", chunks={"time": 1}).tas
    coarse.sr.downscale_to_zarr(sys.argv[2], sys.argv[3], progress=False)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def writer(toy, tmp_path):
    """Return a function that starts a process which writes an archive of many regions."""
    coarse = toy_field(time=480, y=28, x=36).sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    coarse.to_netcdf(tmp_path / "coarse.nc", engine="h5netcdf")
    toy.model.save(tmp_path / "model.safetensors")
    (tmp_path / "writer.py").write_text(WRITER)

    def start(how: str = "threads", place: Path = tmp_path / "fine.zarr") -> subprocess.Popen:
        files = [tmp_path / name for name in ("writer.py", "coarse.nc")]
        command = [sys.executable, *map(str, [*files, place, tmp_path / "model.safetensors"]), how]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return SimpleNamespace(start=start, coarse=coarse, place=tmp_path / "fine.zarr")


def done_in(place: Path) -> int:
    """Return how many blocks of an unfinished archive are done, 0 where nothing is begun."""
    root = place / "zarr.json"
    return record.Root.of(root.read_bytes()).progress.done if root.exists() else 0


def wait_for(condition, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_at_once(writer, toy, check):
    first = writer.start()
    wait_for(lambda: len(list(writer.place.glob("tas/c/*"))) >= 8)
    second = writer.start()
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the lock, and is in no hurry
    _, told = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"StoreError: '{writer.place}' is being written by another process" in told
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(120) == 0, first.stderr.read()
    fine = stored(writer.coarse.chunk(time=1), writer.place, toy.model)
    check.same_numbers(fine, writer.coarse.sr.downscale(toy.model), toy.model.scaling.sd)


@pytest.mark.slow
def test_a_client_that_is_killed_while_its_cluster_writes(writer, toy, check):
    """Workers that outlive it may still write a region that does not count; the next run writes it again."""
    process = writer.start("cluster")
    wait_for(lambda: done_in(writer.place))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert 8 <= done_in(writer.place) < 480
    fine = stored(writer.coarse.chunk(time=1), writer.place, toy.model)
    check.same_numbers(fine, writer.coarse.sr.downscale(toy.model), toy.model.scaling.sd)


@pytest.mark.slow
def test_a_worker_that_lacks_what_the_model_needs(toy, tmp_path, monkeypatch):
    """The error of the worker reaches the user, nothing counts as done, and the same call goes on."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        client.run(lambda: __import__("sys").modules.update({"safetensors": None, "safetensors.torch": None}))
        with pytest.raises((ImportError, XSuperResError), match="safetensors"):
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert done_in(tmp_path / "fine.zarr") == 0
    assert stored(toy.coarse, tmp_path / "fine.zarr", toy.model).notnull().all()
