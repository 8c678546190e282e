"""Archives: equal to what `downscale` returns, to the byte after any interruption, and never mixed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import xsuperres as xsr
from xsuperres.errors import ConfigError, DataError, StoreError, XSuperResError, XSuperResWarning
from xsuperres.inference import record, store
from xsuperres.inference.tile import Tile
from xsuperres.testing import toy_field

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import kill

FIELD = 28 * 36 * 4  # bytes of a fine field
TRAINING = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1},
    "validation": None,
    "progress": False,
    "activate": False,
}


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


def progress_of(folder: Path) -> record.Progress | None:
    """Return how far the archive in a folder is; None if it is finished."""
    return record.Root.of((folder / "zarr.json").read_bytes()).progress


def assert_stored_equals(check, opened, expected, sd: float) -> None:
    """Check labels bit for bit and numbers within the bound of the exactness promise."""
    assert opened.chunks is not None
    xr.testing.assert_identical(opened.compute().copy(data=expected.values), expected)
    assert opened.dtype == expected.dtype
    check.same_numbers(opened.values, expected.values, sd)


# equal to `downscale`


@pytest.mark.parametrize(
    "chunks", [None, {"time": 1}, {"time": 5}, {"time": (7, 3, 14)}, {"time": -1}, {"time": 12, "lat": 9, "lon": 12}]
)
def test_it_holds_what_downscale_returns(toy, check, tmp_path, chunks):
    whole = toy.coarse.sr.downscale(toy.model)
    coarse = toy.coarse if chunks is None else toy.coarse.chunk(chunks)
    fine = stored(coarse, tmp_path / "fine.zarr", toy.model)
    assert_stored_equals(check, fine, whole, toy.model.scaling.sd)
    assert not list(tmp_path.glob("*.lock"))


def test_a_dataset_of_two_variables(make_model, check, tmp_path):
    field = toy_field(time=20, y=28, x=36)
    ds = xr.Dataset({"tas": field, "ts": (field + 1).assign_attrs(field.attrs)}, attrs={"title": "two"})
    model = ds.sr.fit(2, **TRAINING)
    coarse = ds.sr.coarsen(2)[["ts", "tas"]].assign_attrs(ds.attrs)
    whole, fine = coarse.sr.downscale(model), stored(coarse, tmp_path / "fine.zarr", model)
    assert list(fine.data_vars) == list(whole.data_vars) and fine.attrs == whole.attrs
    for name in ("tas", "ts"):
        assert_stored_equals(check, fine[name], whole[name], model.scaling.sd)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_goes_with_fields(toy, check, tmp_path, zarr_format):
    """Bounds of times, lazy and with the encodings of the format that they come from; fields of two dtypes."""
    field = toy_field(time=4, y=28, x=36)
    model = xr.Dataset({"tas": field, "ts": (field + 1).assign_attrs(field.attrs)}).sr.fit(2, **TRAINING)
    ds = xr.Dataset({"tas": toy.coarse, "ts": toy.coarse.astype("f8", keep_attrs=True)})
    ds["time_bnds"] = ("time", "bnds"), np.stack([ds.time, ds.time + np.timedelta64(1, "D")], axis=1)
    ds.time.attrs["bounds"] = "time_bnds"
    ds.to_zarr(tmp_path / "coarse.zarr", zarr_format=zarr_format, consolidated=False)
    coarse = xr.open_zarr(tmp_path / "coarse.zarr", consolidated=False, chunks={"time": 4})
    assert coarse.time_bnds.chunks is not None
    whole, fine = coarse.sr.downscale(model), stored(coarse, tmp_path / "fine.zarr", model)
    assert set(fine.coords) == set(whole.coords) and list(fine.data_vars) == list(whole.data_vars)
    for name in ("tas", "ts"):
        assert_stored_equals(check, fine[name], whole[name], model.scaling.sd)
    with xr.open_zarr(tmp_path / "fine.zarr", decode_cf=False) as raw:
        assert raw.time.attrs["bounds"] == "time_bnds" and raw.time_bnds.shape == (24, 2)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "fine.zarr", decode_coords=False).time_bnds, ds.time_bnds)


def test_a_model_of_explicit_pairs_names_what_it_makes(check, tmp_path):
    target = toy_field(time=12, y=28, x=36).rename("obs")
    coarse = target.sr.coarsen(2).rename("gcm")
    model = coarse.sr.fit(target=target, **TRAINING)
    fine = stored(coarse, tmp_path / "fine.zarr", model)
    assert fine.name == "obs"
    assert_stored_equals(check, fine, coarse.sr.downscale(model), model.scaling.sd)


def test_members(make_model, check, tmp_path):
    toy = make_model(network=(("dropout", "vanilla"), ("dropout_rate", 0.3)))
    whole = toy.coarse.sr.downscale(toy.model, members=3, seed=4)
    fine = stored(toy.coarse.chunk(time=1), tmp_path / "fine.zarr", toy.model, members=3, seed=4)
    assert_stored_equals(check, fine, whole, toy.model.scaling.sd)
    assert float(whole.std("member").max()) > 0


def test_missing_values_and_cells_that_are_not_there_yet(make_model, check, tmp_path):
    toy = make_model(missing=True)
    whole = toy.coarse.sr.downscale(toy.model)
    assert whole.isnull().any() and whole.notnull().any()
    assert_stored_equals(check, stored(toy.coarse, tmp_path / "fine.zarr", toy.model), whole, toy.model.scaling.sd)
    assert np.isnan(zarr.open_group(tmp_path / "fine.zarr")["tas"].fill_value)


@pytest.mark.parametrize("dims", [("lat", "lon", "time"), ("run", "time", "lat", "lon"), ("lon", "lat")])
def test_any_dims(toy, check, tmp_path, dims):
    coarse = toy.coarse.expand_dims(run=["a", "b", "c"]) if "run" in dims else toy.coarse
    coarse = coarse if "time" in dims else coarse.isel(time=0)
    coarse = coarse.transpose(*dims)
    whole = coarse.sr.downscale(toy.model)
    assert_stored_equals(check, stored(coarse, tmp_path / "fine.zarr", toy.model), whole, toy.model.scaling.sd)


def test_dates_of_other_calendars(make_model, check, tmp_path):
    toy = make_model(data=(("calendar", True),))
    times = xr.date_range("2001-02-28", periods=3, calendar="360_day", use_cftime=True)
    coarse = toy.coarse.assign_coords(time=times)
    whole = coarse.sr.downscale(toy.model)
    fine = stored(coarse, tmp_path / "fine.zarr", toy.model)
    assert_stored_equals(check, fine, whole, toy.model.scaling.sd)
    assert fine.time.dt.calendar == "360_day"


def test_windows_of_time(make_model, check, tmp_path):
    toy = make_model(options=(("time_window", 3),))
    coarse = toy_field(time=24, y=28, x=36).sr.coarsen(2)
    fine = stored(coarse, tmp_path / "fine.zarr", toy.model)
    assert fine.chunks[0][0] == 16, "frames of windows are encoded twice at the borders of blocks"
    assert_stored_equals(check, fine, coarse.sr.downscale(toy.model), toy.model.scaling.sd)


def test_forecasts_with_leads_and_valid_times(make_model, check, tmp_path):
    toy = make_model(options=(("time_window", 3),))
    coarse = toy_field(time=10, y=28, x=36).sr.coarsen(2).rename(time="lead").drop_vars("lead")
    inits = np.datetime64("2001-01-01", "ns") + np.arange(3) * np.timedelta64(7, "D")
    leads = (np.arange(10) * np.timedelta64(1, "D")).astype("m8[ns]")
    coarse = xr.concat([coarse, coarse + 1, coarse - 1], "init").assign_attrs(coarse.attrs)
    coarse = coarse.assign_coords(
        init=("init", inits, {"standard_name": "forecast_reference_time"}),
        lead=("lead", leads, {"standard_name": "forecast_period"}),
        valid_time=(("init", "lead"), inits[:, None] + leads, {"standard_name": "time"}),
    )
    whole, fine = coarse.sr.downscale(toy.model), stored(coarse, tmp_path / "fine.zarr", toy.model)
    assert fine.lead.dtype == "m8[ns]" and fine.valid_time.dims == ("init", "lead")
    assert_stored_equals(check, fine, whole, toy.model.scaling.sd)


def test_doubles_without_a_name_on_a_rotated_grid(rotated_field, check, tmp_path):
    field = rotated_field.astype("float64", keep_attrs=True)
    model = field.sr.fit(2, **TRAINING)
    coarse = field.sr.coarsen(2).rename(None)
    whole, fine = coarse.sr.downscale(model), stored(coarse, tmp_path / "fine.zarr", model)
    assert fine.name is None and fine.dtype == np.float64
    assert fine.attrs["grid_mapping"] == "rotated_pole" and "grid_mapping" not in fine.encoding
    assert_stored_equals(check, fine, whole, model.scaling.sd)
    with xr.open_zarr(tmp_path / "fine.zarr", decode_coords=False) as raw:
        assert raw.field.attrs["grid_mapping"] == "rotated_pole"


def test_a_single_field_beyond_the_budget_is_cut_in_rows(make_model, check, tmp_path):
    toy = make_model(coarse=(90, 16))
    fine = stored(toy.coarse, tmp_path / "fine.zarr", toy.model, memory_budget=4000)
    done = zarr.open_group(tmp_path / "fine.zarr")["tas"]
    assert fine.chunks[0] == (1, 1, 1) and len(fine.chunks[1]) > 2 and fine.chunks[2] == (32,)
    assert done.nchunks == fine.data.npartitions
    assert_stored_equals(check, fine, toy.coarse.sr.downscale(toy.model), toy.model.scaling.sd)


def test_no_times_at_all(toy, tmp_path):
    coarse = toy.coarse.isel(time=slice(0, 0))
    assert stored(coarse, tmp_path / "fine.zarr", toy.model).shape == (0, 28, 36)


def test_other_schedulers(toy, tmp_path):
    from distributed import Client

    whole = stored(toy.coarse, tmp_path / "fine.zarr", toy.model).values
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(stored(toy.coarse, tmp_path / "alone.zarr", toy.model), whole)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        fine = stored(toy.coarse.chunk(time=4), tmp_path / "cluster.zarr", toy.model)
        np.testing.assert_allclose(fine, whole, atol=1e-5 * toy.model.scaling.sd + 1e-4)


# what is in the store


def test_blocks_are_computed_once_and_regions_fit_the_budget(toy, tmp_path, monkeypatch):
    computed, regions = [], []
    run, to_zarr = Tile.__call__, xr.Dataset.to_zarr

    def counted(self, block, *others):
        computed.append(block.shape[0])
        return run(self, block, *others)

    def watched(self, *places, **options):
        regions.append((options.get("region"), self.nbytes))
        return to_zarr(self, *places, **options)

    monkeypatch.setattr(Tile, "__call__", counted)
    monkeypatch.setattr(xr.Dataset, "to_zarr", watched)
    stored(toy.coarse.chunk(time=(5, 7, 12)), tmp_path / "fine.zarr", toy.model)
    assert computed == [1] * 24
    written = [region["time"] for region, _ in regions if region is not None]
    assert [(part.start, part.stop) for part in written] == [(0, 8), (8, 16), (16, 24)]
    assert max(size for region, size in regions if region is not None) <= 8 * FIELD


def test_the_store_is_cf_and_consolidated(toy, tmp_path):
    toy.coarse.time.encoding |= {"units": "hours since 1900-01-01", "calendar": "standard", "chunks": (3,)}
    toy.coarse.encoding |= {"chunks": (5, 7, 9), "scale_factor": 0.1, "dtype": "int16", "preferred_chunks": {"lat": 7}}
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    with xr.open_dataset(tmp_path / "fine.zarr", engine="zarr", consolidated=True, decode_cf=False) as raw:
        assert raw.attrs["Conventions"] == "CF-1.11"
        assert raw.time.attrs["units"] == "hours since 1900-01-01" and raw.time.encoding["chunks"] == (24,)
        assert raw.tas.attrs["coordinates"] == "elevation land_fraction" and raw.tas.dtype == np.float32
        assert "_FillValue" in raw.tas.attrs and "_FillValue" not in raw.lat.attrs
        assert raw.lat.attrs["bounds"] == "lat_bnds" and raw.lat_bnds.shape == (28, 2)
        assert raw.tas.attrs["history"].count("super-resolution") == 1
    root = zarr.open_group(tmp_path / "fine.zarr", mode="r")
    assert set(root.metadata.consolidated_metadata.metadata) == set(root.array_keys())
    assert not list(root.group_keys()) and not list((tmp_path / "fine.zarr").glob("xsuperres*"))
    # What comes back can be written elsewhere.
    again = xr.open_zarr(tmp_path / "fine.zarr", decode_coords="all").tas
    again.to_dataset().to_netcdf(tmp_path / "again.nc", engine="h5netcdf")


def test_an_encoding_of_ones_own(toy, tmp_path):
    """Blocks become multiples of the chunks; packing works region by region."""
    packed = {"chunks": (5, 14, 36), "dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}
    encoding = {"tas": packed, "lat": {"dtype": "float32"}}
    fine = stored(toy.coarse, tmp_path / "fine.zarr", toy.model, encoding=encoding)
    assert zarr.open_group(tmp_path / "fine.zarr")["tas"].chunks == (5, 14, 36)
    assert zarr.open_group(tmp_path / "fine.zarr")["tas"].dtype == np.int16
    np.testing.assert_allclose(fine, toy.coarse.sr.downscale(toy.model), atol=0.0051)
    sharded = {"tas": {"shards": (6, 28, 36), "chunks": (2, 28, 36)}}
    stored(toy.coarse, tmp_path / "sharded.zarr", toy.model, encoding=sharded)
    assert zarr.open_group(tmp_path / "sharded.zarr")["tas"].shards == (6, 28, 36)
    np.testing.assert_array_equal(
        xr.open_zarr(tmp_path / "sharded.zarr").tas, stored(toy.coarse, tmp_path / "plain.zarr", toy.model)
    )
    with pytest.raises(StoreError, match="encoding"):
        stored(toy.coarse, tmp_path / "sharded.zarr", toy.model)


def test_progress(toy, tmp_path, capsys):
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model, progress=True)
    told = capsys.readouterr().err
    assert "24/24" in told and "fields/s" in told
    stored(toy.coarse, tmp_path / "other.zarr", toy.model, progress=False)
    assert not capsys.readouterr().err


# other places


def test_urls_and_stores(toy, tmp_path):
    whole = stored(toy.coarse, tmp_path / "fine.zarr", toy.model).values
    memory = MemoryStore()
    for place in (f"file://{tmp_path}/url.zarr", "memory://test/fine.zarr", LocalStore(tmp_path / "s"), memory):
        fine = stored(toy.coarse, place, toy.model)
        np.testing.assert_array_equal(fine, whole)
        np.testing.assert_array_equal(stored(toy.coarse, place, toy.model), whole)
    assert (tmp_path / "url.zarr").is_dir()


@pytest.mark.parametrize(
    ("place", "error", "told"),
    [
        (None, ConfigError, "must be a path, a URL"),
        ("", ConfigError, "must be a path, a URL"),
        (3, ConfigError, "must be a path, a URL"),
        ("nowhere://bucket/fine.zarr", StoreError, "Protocol not known"),
    ],
)
def test_no_place(toy, place, error, told):
    with pytest.raises(error, match=told):
        stored(toy.coarse, place, toy.model)


# interrupted and gone on with


class Dying(WrapperStore[Store]):
    """A store that takes no more after `left` changes, as if its process had been killed."""

    left = 10**9

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("killed")

    async def set(self, key, value):
        self._spend()
        await self._store.set(key, value)

    async def set_if_not_exists(self, key, value):
        self._spend()
        await self._store.set_if_not_exists(key, value)

    async def delete(self, key):
        self._spend()
        await self._store.delete(key)

    async def delete_dir(self, prefix):
        self._spend()
        await self._store.delete_dir(prefix)


def in_memory(place: MemoryStore) -> dict[str, bytes]:
    return {name: value.to_bytes() for name, value in place._store_dict.items()}


def assert_survives_every_change(coarse, model) -> int:
    """Stop a writer after each change, let another go on, and compare all bytes; return how many changes there are."""
    whole = MemoryStore()
    counted = Dying(whole)
    stored(coarse, counted, model)
    count = Dying.left - counted.left
    for left in range(count):
        place = MemoryStore()
        dying = Dying(place)
        dying.left = left
        with pytest.raises((OSError, XSuperResError), match="killed"):
            stored(coarse, dying, model)
        assert all(record.Root.of(in_memory(place)["zarr.json"]).identity for _ in range(left > 0))
        stored(coarse, place, model)
        assert not kill.difference(in_memory(place), in_memory(whole)), f"stopped after {left} changes"
    return count


def test_stopped_after_any_change(toy):
    """Root, coordinates, two regions and what is noted of them, the end: all of it is tried."""
    assert assert_survives_every_change(toy.coarse.isel(time=slice(0, 9)), toy.model) >= 29


def test_the_check_sees_a_region_that_counts_too_early(toy, monkeypatch):
    """The control: what is written only after it was noted is missing when the writer is killed in between."""
    to_zarr, claim, finish, late = xr.Dataset.to_zarr, record.ArchiveRecord.claim, record.ArchiveRecord.finish, []

    def flush():
        while late:
            part, places, options = late.pop()
            to_zarr(part, *places, **options)

    def begin(*places, **options):
        late.clear()  # what another process had in memory
        return claim(*places, **options)

    def write(self, *places, **options):
        if not options.get("region"):
            return to_zarr(self, *places, **options)
        flush()
        return late.append((self, places, options))

    def end(self):
        flush()
        finish(self)

    monkeypatch.setattr(store, "confirm", lambda *_: None)  # it would see that
    monkeypatch.setattr(record.ArchiveRecord, "claim", begin)
    monkeypatch.setattr(record.ArchiveRecord, "finish", end)
    monkeypatch.setattr(xr.Dataset, "to_zarr", write)
    with pytest.raises(AssertionError, match="stopped after"):
        assert_survives_every_change(toy.coarse.isel(time=slice(0, 9)), toy.model)


@pytest.mark.parametrize("region", [0, 1, 2])
def test_an_exception_and_on(toy, tmp_path, monkeypatch, region, caplog):
    stored(toy.coarse, tmp_path / "whole.zarr", toy.model)
    to_zarr, regions = xr.Dataset.to_zarr, []

    def failing(self, *places, **options):
        regions.append(options.get("region"))
        if len([part for part in regions if part]) == region + 1:
            self.isel(time=slice(0, 2)).load()
            raise RuntimeError("out of memory")
        return to_zarr(self, *places, **options)

    with monkeypatch.context() as broken:
        broken.setattr(xr.Dataset, "to_zarr", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert progress_of(tmp_path / "fine.zarr").done == 8 * region
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert ("Going on with" in caplog.text) == (region > 0)
    assert not kill.difference(*(kill.contents(tmp_path / f"{name}.zarr") for name in ("fine", "whole")))


def test_going_on_with_another_budget_and_other_chunks(toy, check, tmp_path, monkeypatch):
    """What is left is cut anew: smaller regions help where memory was short."""
    to_zarr, regions = xr.Dataset.to_zarr, []

    def failing(self, *places, **options):
        regions.extend([options["region"]] if options.get("region") else [])
        if options.get("region") and len(regions) == 2:
            raise MemoryError
        return to_zarr(self, *places, **options)

    monkeypatch.setattr(xr.Dataset, "to_zarr", failing)
    with pytest.raises(MemoryError):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    fine = stored(toy.coarse.chunk(time=7), tmp_path / "fine.zarr", toy.model, memory_budget=4 * FIELD, batch_size=1)
    assert [part["time"].start for part in regions] == [0, 8, 8, 12, 16, 20]
    assert_stored_equals(check, fine, toy.coarse.sr.downscale(toy.model), toy.model.scaling.sd)


def test_torn_files_of_a_killed_writer(toy, tmp_path, monkeypatch):
    """Half a chunk of a region that is not done, and files that zarr had not renamed yet."""
    stored(toy.coarse, tmp_path / "whole.zarr", toy.model)
    with monkeypatch.context() as broken:
        broken.setattr(record.ArchiveRecord, "note", _dying_before(0))
        with pytest.raises(KeyboardInterrupt):
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    chunk = tmp_path / "fine.zarr" / "tas" / "c" / "3" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    (chunk.parent / f"0.{'ab' * 16}.partial").write_bytes(b"half")
    (tmp_path / "fine.zarr" / f"zarr.{'cd' * 16}.partial").write_text('{"attr')
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert not kill.difference(*(kill.contents(tmp_path / f"{name}.zarr") for name in ("fine", "whole")))


def _dying_before(done: int):
    """Return an `ArchiveRecord.note` whose process dies before it notes more than so many blocks."""
    true_note = record.ArchiveRecord.note

    def note(self, more, *others):
        if more > done:
            raise KeyboardInterrupt
        true_note(self, more, *others)

    return note


def test_half_written_files_are_left_where_there_is_no_lock(halfway, monkeypatch):
    """Another process of the same run may be about to rename them."""

    def refused(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    left = halfway.place / "tas" / "c" / f"0.{'ab' * 16}.partial"
    left.write_bytes(b"half")
    assert stored(halfway.coarse, halfway.place, halfway.model).notnull().all()
    assert left.exists() and not halfway.place.with_name("fine.zarr.lock").exists()


def test_killed_at_the_first_file(toy, tmp_path):
    """Nothing is there yet, or a part of the root that zarr had not renamed, or the root alone."""
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(store, "_write_template", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            stored(toy.coarse, tmp_path / "root.zarr", toy.model)
    root = (tmp_path / "root.zarr" / "zarr.json").read_bytes()
    assert [path.name for path in (tmp_path / "root.zarr").iterdir()] == ["zarr.json"]
    for name, part in {"nothing": None, "empty": b"", "half": root[:200], "all": root}.items():
        (folder := tmp_path / f"{name}.zarr").mkdir()
        if part is not None:
            (folder / f"zarr.{'ab' * 16}.partial").write_bytes(part)
    stored(toy.coarse, tmp_path / "whole.zarr", toy.model)
    whole = kill.contents(tmp_path / "whole.zarr")
    for folder in sorted(tmp_path.glob("*.zarr")):
        assert stored(toy.coarse, folder, toy.model).notnull().all()
        assert not kill.difference(kill.contents(folder), whole), folder.name


def _interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("consolidated", [False, True])
def test_killed_between_the_last_region_and_the_end(toy, tmp_path, consolidated):
    """Where all is done but not marked so, before or after all metadata were put together."""
    folder = tmp_path / "fine.zarr"
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(record.ArchiveRecord, "_replace" if consolidated else "finish", _dying_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            stored(toy.coarse, folder, toy.model)
    root = record.Root.of((folder / "zarr.json").read_bytes())
    assert root.progress.done == 24 and (root.arrays is not None) == consolidated
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(Tile, "__call__", None)
        stored(toy.coarse, folder, toy.model)
    stored(toy.coarse, tmp_path / "whole.zarr", toy.model)
    assert not kill.difference(*(kill.contents(tmp_path / f"{name}.zarr") for name in ("fine", "whole")))


def _dying_at_the_end(self, *state, true_replace=record.ArchiveRecord._replace):
    if not state or state[-1] is None:
        raise KeyboardInterrupt
    true_replace(self, *state)


@pytest.mark.slow
def test_kill_9(tmp_path):
    """A process of its own is killed at random moments; see the script, which does it more often."""
    kill.prepare(tmp_path, times=300)
    record = kill.survive(tmp_path, 3, seed=1)
    assert record["stores"] == 3 <= record["kills"]
    assert record["identical"] == 3, record


# finished


def test_a_finished_store_is_opened_without_work(toy, tmp_path, monkeypatch, caplog):
    first = stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "fine.zarr").rglob("*")}
    monkeypatch.setattr(Tile, "__call__", None)
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        again = stored(toy.coarse.chunk(time=3), tmp_path / "fine.zarr", toy.model)
    assert "is finished" in caplog.text
    xr.testing.assert_identical(first, again)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "fine.zarr").rglob("*")} == before


@pytest.mark.parametrize("finished", [True, False])
def test_not_resumed_is_refused_and_nothing_deleted(toy, tmp_path, monkeypatch, finished):
    with monkeypatch.context() as broken:
        if not finished:
            broken.setattr(record.ArchiveRecord, "note", _dying_before(8))
        try:
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
        except KeyboardInterrupt:
            assert not finished
    before = kill.contents(tmp_path / "fine.zarr")
    with pytest.raises(StoreError, match="resume=False expects an empty place"):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model, resume=False)
    assert kill.contents(tmp_path / "fine.zarr") == before
    stored(toy.coarse, tmp_path / "new.zarr", toy.model, resume=False)


# never mixed


@pytest.fixture
def halfway(toy, tmp_path, monkeypatch):
    """A store with one region."""
    with monkeypatch.context() as broken:
        broken.setattr(record.ArchiveRecord, "note", _dying_before(8))
        with pytest.raises(KeyboardInterrupt):
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    toy.place = tmp_path / "fine.zarr"
    return toy


CHANGES = {
    "another shape": (lambda c: c.isel(time=slice(0, 20)), {}, "names, shapes and dtypes.*'time': 24.*'time': 20"),
    "another dtype": (lambda c: c.astype("float64", keep_attrs=True), {}, "'float32'.*'float64'"),
    "other values": (lambda c: c.copy(data=c.values + 1), {}, "other coarse data"),
    "other times": (lambda c: c.assign_coords(time=c.time + np.timedelta64(1, "D")), {}, "other coarse data"),
    "another mask": (lambda c: c, {"mask": "input"}, "other settings: it has mask='model', this run mask='input'"),
    "another precision": (lambda c: c, {"precision": "bf16"}, "precision='fp32', this run precision='bf16'"),
    "another encoding": (lambda c: c, {"encoding": {"tas": {"chunks": (2, 28, 36)}}}, "other settings.*encoding"),
}


@pytest.mark.parametrize(("change", "options", "told"), CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("finished", [False, True])
def test_other_inputs_and_settings(halfway, change, options, told, finished):
    if finished:
        stored(halfway.coarse, halfway.place, halfway.model)
    before = kill.contents(halfway.place)
    with pytest.raises(StoreError, match=f"holds an archive of .*{told}.*Name another store, or delete that one"):
        stored(change(halfway.coarse), halfway.place, halfway.model, **options)
    assert kill.contents(halfway.place) == before


def test_another_model(halfway, make_model):
    other = make_model(seed=1).model
    ours, theirs = halfway.model.digest[:16], other.digest[:16]
    with pytest.raises(StoreError, match=f"another model.*{ours}.*{theirs}".replace("another", "other")):
        stored(halfway.coarse, halfway.place, other)


def test_other_seeds_members_predictors_and_static_fields(make_model, tmp_path):
    toy = make_model(network=(("dropout", "vanilla"), ("dropout_rate", 0.3)))
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model, members=2, seed=1)
    for options, told in (
        ({"members": 3, "seed": 1}, "members"),
        ({"members": 2}, "seed=1.*seed=0"),
        ({}, "'member': 2"),
    ):
        with pytest.raises(StoreError, match=told):
            stored(toy.coarse, tmp_path / "fine.zarr", toy.model, **options)
    open_domain = make_model(domain="open")
    stored(open_domain.coarse, tmp_path / "open.zarr", open_domain.model)
    statics = open_domain.fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    statics["elevation"] = (statics.elevation + 100).assign_attrs(statics.elevation.attrs)
    with pytest.raises(StoreError, match="other fine coordinates and static fields"):
        stored(open_domain.coarse, tmp_path / "open.zarr", open_domain.model, static=statics)


def test_predictors(make_model, check, tmp_path):
    field = toy_field(time=12, y=28, x=36)
    other = (field * 2).rename("psl").assign_attrs(units="Pa")
    model = field.sr.fit(2, predictors=other, **TRAINING)
    coarse, shown = field.sr.coarsen(2), other.sr.coarsen(2)
    whole = coarse.sr.downscale(model, predictors=shown)
    fine = stored(coarse.chunk(time=4), tmp_path / "fine.zarr", model, predictors=shown.chunk(time=5))
    assert_stored_equals(check, fine, whole, model.scaling.sd)
    with pytest.raises(StoreError, match="other predictors"):
        stored(coarse, tmp_path / "fine.zarr", model, predictors=(shown + 1).assign_attrs(units="Pa"))


def _array(folder: Path) -> None:
    zarr.create_array(LocalStore(folder), shape=(3,), dtype="f4")


FOREIGN = {
    "another Zarr store": lambda path: toy_field(time=1, y=4, x=4).to_dataset().to_zarr(path, consolidated=False),
    "a store of format 2": lambda path: toy_field(time=1, y=4, x=4).to_dataset().to_zarr(path, zarr_format=2),
    "an array": _array,
    "a folder of files": lambda path: (path.mkdir(), (path / "notes.txt").write_text("mine")),
    "a file": lambda path: path.write_text("mine"),
    "an empty group": lambda path: zarr.open_group(path, mode="w"),
    "a group with attributes": lambda path: zarr.open_group(path, mode="w", attributes={"title": "mine"}),
    "a group with files beside": lambda path: (zarr.open_group(path, mode="w"), _files(path, "x.partial", "mine.nc")),
    "a download": lambda path: (path.mkdir(), _files(path, "era5_2020.nc.partial")),
    "a root that others write": lambda path: (path.mkdir(), _files(path, f"zarr.{'ab' * 16}.partial")),
    "a chunk that others write": lambda path: (path.mkdir(), _files(path, f"0.{'ab' * 16}.partial")),
    "a folder in it": lambda path: (path / "a.partial").mkdir(parents=True),
}


def _files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("mine")


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_store_of_others(toy, tmp_path, make):
    place = tmp_path / "fine.zarr"
    make(place)
    before, tree = kill.contents(place) if place.is_dir() else place.read_text(), sorted(place.rglob("*"))
    for resume in (True, False):
        with pytest.raises(StoreError, match="downscale_to_zarr did not write it; name another store"):
            stored(toy.coarse, place, toy.model, resume=resume)
    assert (kill.contents(place) if place.is_dir() else place.read_text()) == before
    assert sorted(place.rglob("*")) == tree
    assert [path.name for path in tmp_path.iterdir()] == ["fine.zarr"]


def test_files_of_others_beside_those_of_an_archive(halfway):
    """What zarr had not renamed of the archive goes, all else stays, whatever its name ends in."""
    names = ("x.partial", "tas/x.partial", "tas/c/mine.partial", "other/c/0.partial", f"other/0.{'ab' * 16}.partial")
    ours = (
        "zarr.{}.partial",
        "tas/zarr.{}.partial",
        "tas/c/9/0/0.{}.partial",
        "lat/c.{}.partial",
        "lat/c/0.{}.partial",
    )
    for name in (*names, *(name.format("cd" * 16) for name in ours)):
        (halfway.place / name).parent.mkdir(parents=True, exist_ok=True)
        (halfway.place / name).write_text("mine")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at")
        stored(halfway.coarse, halfway.place, halfway.model)
    left = {str(path.relative_to(halfway.place)) for path in halfway.place.rglob("*.partial")}
    assert left == set(names)


def test_a_store_of_another_version(halfway):
    """To come, or the one whose record was a group."""
    path = halfway.place / "zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"format\\": 2', '"format\\": 3'))
    with pytest.raises(StoreError, match="begun in format 3, .* writes 2; go on with the version that began it"):
        stored(halfway.coarse, halfway.place, halfway.model)
    root = json.loads(text)
    del root["attributes"]["xsuperres_record"]
    path.write_text(json.dumps(root))
    zarr.create_group(LocalStore(halfway.place), path="xsuperres_journal", attributes={"format": 1, "done": 8})
    with pytest.raises(StoreError, match="begun in format 1, .* writes 2"):
        stored(halfway.coarse, halfway.place, halfway.model)
    path.write_text(text[:50])
    with pytest.raises(StoreError, match="metadata of the store is damaged.*delete it"):
        stored(halfway.coarse, halfway.place, halfway.model)


def test_a_place_that_cannot_be_written_to(toy, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("/proc/fine.zarr", tmp_path / "file" / "fine.zarr"):
        with pytest.raises(StoreError, match=r"Cannot|cannot be read"):
            stored(toy.coarse, place, toy.model)
    for place in (LocalStore(tmp_path / "new", read_only=True), MemoryStore(read_only=True)):
        with pytest.raises(StoreError, match="opened read-only"):
            stored(toy.coarse, place, toy.model)
    whole = stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    again = stored(toy.coarse, LocalStore(tmp_path / "fine.zarr", read_only=True), toy.model)
    xr.testing.assert_identical(again, whole)


# two at once


def test_another_process_holds_the_lock(halfway):
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True)"
    command = [sys.executable, "-c", f"{code}; input()", f"{halfway.place}.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=r"is being written by .*process.*holds .*fine\.zarr\.lock"):
            stored(halfway.coarse, halfway.place, halfway.model)
        process.kill()
        process.wait()
        stored(halfway.coarse, halfway.place, halfway.model)  # the system released it


class Stopped:
    """A writer in a thread of its own that stops in the middle of its first region, computed but not yet written."""

    def __init__(self, monkeypatch, coarse, place, model, **options):
        self.inside, self.awake, self.error = threading.Event(), threading.Event(), None
        run = Tile.__call__

        def stopping(tile, *block):
            fine = run(tile, *block)
            if threading.current_thread() is self.thread and not self.inside.is_set():
                self.inside.set()
                assert self.awake.wait(60)
            return fine

        def work():
            try:
                with dask.config.set(scheduler="synchronous"):
                    self.fine = stored(coarse, place, model, **options)
            except Exception as error:
                self.error = error

        monkeypatch.setattr(Tile, "__call__", stopping)
        self.thread = threading.Thread(target=work)
        self.thread.start()
        assert self.inside.wait(60)

    def go_on(self) -> None:
        """Wake it up, and wait for its end."""
        self.awake.set()
        self.thread.join()


def test_two_writers_of_one_folder(toy, tmp_path, monkeypatch):
    place = tmp_path / "fine.zarr"
    first = Stopped(monkeypatch, toy.coarse, place, toy.model)
    with pytest.raises(StoreError, match=r"is being written by another process, which holds .*fine.zarr.lock'; wait"):
        stored(toy.coarse, place, toy.model)
    first.go_on()
    assert first.error is None
    assert stored(toy.coarse, place, toy.model).notnull().all()


@pytest.mark.parametrize("lazy", [False, True])
def test_two_writers_of_one_run_do_no_harm(toy, monkeypatch, caplog, lazy):
    """Where there is no lock: the one that was slow finds the archive finished, and opens it."""
    place, clean = MemoryStore(), MemoryStore()
    coarse = toy.coarse.chunk(time=1) if lazy else toy.coarse
    whole = stored(coarse, clean, toy.model)
    first = Stopped(monkeypatch, coarse, place, toy.model)
    second = stored(coarse, place, toy.model)
    before = in_memory(place)
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        first.go_on()
    assert first.error is None and "was finished by another process of the same run" in caplog.text
    assert in_memory(place) == before and not kill.difference(before, in_memory(clean))
    for fine in (first.fine, second):
        xr.testing.assert_identical(fine.compute(), whole.compute())


def test_a_writer_that_is_overtaken_skips_what_is_done(toy, monkeypatch):
    """The other one stops after two regions: the first goes on there."""
    place, regions, to_zarr = MemoryStore(), [], xr.Dataset.to_zarr

    def watched(self, *places, **options):
        regions.extend([options["region"]["time"].start] if options.get("region") else [])
        return to_zarr(self, *places, **options)

    first = Stopped(monkeypatch, toy.coarse, place, toy.model)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(record.ArchiveRecord, "note", _dying_before(16))
        stored(toy.coarse, place, toy.model)
    monkeypatch.setattr(xr.Dataset, "to_zarr", watched)
    first.go_on()
    assert first.error is None and regions == [16]
    clean = MemoryStore()
    stored(toy.coarse, clean, toy.model)
    assert not kill.difference(in_memory(place), in_memory(clean))


@pytest.mark.parametrize("finished", [False, True])
def test_a_writer_that_wakes_up_changes_nothing_of_another_run(toy, make_model, monkeypatch, finished):
    """Its archive was deleted, and another model's is in its place."""
    place, other = MemoryStore(), make_model(seed=1).model
    first = Stopped(monkeypatch, toy.coarse.chunk(time=1), place, toy.model)
    with pytest.raises(StoreError, match="holds an archive of other model"):
        stored(toy.coarse, place, other)
    place._store_dict.clear()
    with monkeypatch.context() as broken, contextlib.suppress(KeyboardInterrupt):
        if not finished:
            broken.setattr(record.ArchiveRecord, "note", _dying_before(8))
        stored(toy.coarse, place, other)
    before = in_memory(place)
    first.go_on()
    assert isinstance(first.error, StoreError)
    assert "holds an archive of other model" in str(first.error) and "was left as it is" in str(first.error)
    assert in_memory(place) == before
    stored(toy.coarse, place, other)


@pytest.mark.parametrize("instead", [False, True])
def test_a_writer_whose_archive_was_deleted(toy, monkeypatch, instead):
    place = MemoryStore()
    first = Stopped(monkeypatch, toy.coarse, place, toy.model)
    place._store_dict.clear()
    if instead:
        zarr.open_group(place, mode="w-", zarr_format=3)
    before = in_memory(place)
    first.go_on()
    assert isinstance(first.error, StoreError) and "was deleted, or something else" in str(first.error)
    assert in_memory(place) == before


# bad input


def test_warnings_point_at_the_line_of_the_user(toy, tmp_path):
    with pytest.warns(XSuperResWarning, match="reach over 6 regions along") as caught:
        toy.coarse.chunk(lat=9, lon=12).sr.downscale_to_zarr(tmp_path / "read.zarr", toy.model, progress=False)
    assert caught[0].filename == __file__
    with pytest.warns(XSuperResWarning, match="smaller than the model's halo") as caught:
        toy.coarse.chunk(lat=1).sr.downscale_to_zarr(tmp_path / "fine.zarr", toy.model, progress=False)
    assert caught[0].filename == __file__


def test_chunks_of_unknown_size(toy, tmp_path):
    import dask.array

    pieces = dask.array.from_delayed(dask.delayed(lambda: toy.coarse.values)(), (np.nan, 14, 18), np.float32)
    unknown = xr.DataArray(pieces, dims=("time", "lat", "lon"), coords={d: toy.coarse[d] for d in ("lat", "lon")})
    with pytest.raises(DataError, match="unknown chunk sizes; compute them first"):
        stored(unknown.rename("tas").assign_attrs(toy.coarse.attrs), tmp_path / "fine.zarr", toy.model)
    assert not list(tmp_path.iterdir())


def test_without_zarr(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr.storage", None)
    with pytest.raises(XSuperResError, match=r"need zarr 3, which is not installed.*'xsuperres\[io\]'"):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model)


def test_gaps_that_the_model_never_saw(toy, tmp_path):
    """In memory they are refused before anything is written, as by `downscale`."""
    toy.coarse[3, 4, 5] = np.nan
    with pytest.raises(DataError, match="complete fields"):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", [0, 1000, "1GB", 2**19])
def test_budgets_that_cannot_be(toy, tmp_path, budget, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="memory_budget is in bytes and at least 1 MiB"):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model, memory_budget=budget)
    with xsr.set_options(memory_budget=2**22):
        assert store.region_budget(None) == 2**22 and store.region_budget(2**21) == 2**21


@pytest.mark.parametrize("options", [{"members": 0}, {"mask": "sea"}, {"batch_size": 0}, {"seed": -1}])
def test_settings_that_downscale_refuses(toy, tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model, **options)
    assert not list(tmp_path.iterdir())
