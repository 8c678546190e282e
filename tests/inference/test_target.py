"""Where archives lie, and that what was written is there and on the disk before it counts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from zarr.storage import LocalStore, MemoryStore

from xsuperres.errors import ConfigError, StoreError
from xsuperres.inference import record, store, target
from xsuperres.inference.target import ArchiveTarget, archive_target, chunk_keys, confirm, flush
from xsuperres.testing import toy_field

FIELD = 28 * 36 * 4  # bytes of a fine field


@pytest.fixture
def toy(make_model):
    """A model and 24 coarse fields."""
    return SimpleNamespace(model=make_model().model, coarse=toy_field(time=24, y=28, x=36).sr.coarsen(2))


@pytest.fixture
def small_regions(monkeypatch):
    """Blocks of one field, regions of eight."""
    monkeypatch.setattr(store, "region_budget", lambda memory_budget: memory_budget or 8 * FIELD)
    monkeypatch.setattr(target, "_PATIENCE", 0.0)


# which place is meant


@pytest.mark.parametrize(
    "text", ["{}", "file://{}", "file://localhost{}", "file:{}", "FILE://{}", "File://LOCALHOST{}", "local://{}"]
)
def test_urls_of_local_folders(tmp_path, text):
    found = archive_target(text.format(tmp_path / "fine.zarr"))
    assert found.folder == found.store.root == tmp_path / "fine.zarr"
    assert isinstance(found.store, LocalStore) and found.name == str(tmp_path / "fine.zarr")


@pytest.mark.parametrize("text", ["file://server/data/fine.zarr", "file://", "file:"])
def test_urls_of_other_hosts(text):
    with pytest.raises(ConfigError, match=r"URL of a local folder like 'file:///data/fine.zarr', got 'file:"):
        archive_target(text)


def test_relative_places_are_told_by_their_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = LocalStore("fine.zarr")
    found = archive_target(given)
    assert found.store.root == found.folder == tmp_path / "fine.zarr" and given.root == Path("fine.zarr")
    assert archive_target("fine.zarr").folder == archive_target(Path("fine.zarr")).folder == tmp_path / "fine.zarr"
    assert archive_target("~/fine.zarr").folder == tmp_path / "home" / "fine.zarr"


def test_storage_options_reach_the_file_system():
    class Kept(MemoryFileSystem):
        protocol, given = "kept", []

        def __init__(self, *args, **options):
            self.given.append(options.get("token"))
            super().__init__(*args, **options)

    fsspec.register_implementation("kept", Kept, clobber=True)
    archive_target("kept://bucket/fine.zarr", {"token": "secret"})
    assert Kept.given == ["secret"]


@pytest.mark.parametrize("given", ["fine.zarr", "file:///tmp/fine.zarr", MemoryStore(), LocalStore("fine.zarr")])
def test_storage_options_belong_to_urls(given):
    with pytest.raises(ConfigError, match="storage_options are of the file system behind a URL"):
        archive_target(given, {"token": "secret"})
    archive_target(given, {})


# objects


def test_objects_are_read_and_written_whole(tmp_path):
    for there in (archive_target(tmp_path / "deep" / "fine.zarr"), archive_target(MemoryStore())):
        assert there.read("a/b") is None and there.strangers() == []
        assert not list(tmp_path.iterdir()), "nothing is made by reading"
        there.write_new("a/b", b"first")
        there.write_new("a/b", b"second")
        assert there.read("a/b") == b"first" and there.read("a") is None
        there.write({"a/b": b"third", "c": b""})
        assert there.read("a/b") == b"third" and there.read("c") == b"" and there.strangers() == ["a", "c"]
        shutil.rmtree(tmp_path / "deep", ignore_errors=True)


@pytest.mark.parametrize("error", [ConnectionError("reset by peer"), PermissionError("denied"), TimeoutError("slow")])
def test_what_cannot_be_read_may_still_be_there(monkeypatch, error):
    async def failing(self, *_, **__):
        raise error

    monkeypatch.setattr(MemoryStore, "get", failing)
    with pytest.raises(StoreError, match=f"cannot be read .{error}.; .*check connection and permissions") as caught:
        archive_target(MemoryStore()).read("zarr.json")
    assert "delete" not in str(caught.value)


def test_what_cannot_be_written(monkeypatch):
    async def failing(self, *_, **__):
        raise PermissionError("denied")

    monkeypatch.setattr(MemoryStore, "set", failing)
    with pytest.raises(StoreError, match=r"Cannot write to .*denied.*name a store that you may write to"):
        archive_target(MemoryStore()).write({"zarr.json": b""})


HALF = "ab" * 16


@pytest.mark.parametrize(
    ("name", "arrays", "ours"),
    [
        (f"zarr.{HALF}.partial", (), True),
        (f"0.{HALF}.partial", (), False),
        ("zarr.partial", (), False),
        (f"zarr.{HALF[1:]}.partial", (), False),
        (f"zarr.{HALF.replace('a', 'x')}.partial", (), False),
        (f"results.{HALF}.partial", (), False),
        (f"tas/zarr.{HALF}.partial", (), False),
        (f"tas/zarr.{HALF}.partial", ("tas",), True),
        (f"tas/c/0/12/3.{HALF}.partial", ("tas",), True),
        (f"tas/c.{HALF}.partial", ("tas",), True),
        (f"tas/0.1.{HALF}.partial", ("tas",), True),
        (f"tas/c/mine.{HALF}.partial", ("tas",), False),
        (f"pr/c/0/12/3.{HALF}.partial", ("tas",), False),
    ],
)
def test_what_zarr_has_not_written_to_the_end(tmp_path, name, arrays, ours):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    there = archive_target(tmp_path)
    path.write_text("half")
    assert there.half_written(arrays) == [path] * ours
    assert (there.strangers() == []) == (ours and not arrays)
    path.unlink()
    path.mkdir()
    assert there.half_written(arrays) == []


def test_half_written_files_are_called_as_zarr_calls_them(tmp_path, monkeypatch):
    renamed, seen, replace = [], set(), Path.replace

    def watched(self, other):
        renamed.append(self)
        seen.update(there.half_written(("tas",)))
        return replace(self, other)

    there = archive_target(tmp_path)
    monkeypatch.setattr(Path, "replace", watched)
    root = zarr.open_group(there.store, mode="w-", zarr_format=3)
    root.create_array("tas", shape=(2, 3), chunks=(1, 3), dtype="f4")[:] = 1.0
    assert len(renamed) >= 4 and seen == set(renamed)


# what is there


@pytest.mark.parametrize(("chunks", "shards"), [((2, 3, 4), None), ((1, 3, 2), (2, 3, 4)), ((5, 7, 9), None)])
def test_keys_are_those_that_zarr_writes(chunks, shards):
    memory = MemoryStore()
    dims = ("time", "lat", "lon")
    options = {"chunks": chunks, "shards": shards, "dtype": "f4", "fill_value": np.nan, "dimension_names": dims}
    options["config"] = {"write_empty_chunks": True}
    array = zarr.create_array(memory, name="tas", shape=(5, 7, 9), **options)
    outer = shards or chunks
    for start in np.ndindex(*(-(-size // step) for size, step in zip(array.shape, outer, strict=True))):
        before = set(memory._store_dict)
        parts = [slice(at * n, min((at + 1) * n, size)) for at, n, size in zip(start, outer, array.shape, strict=True)]
        array[tuple(parts)] = np.nan
        assert set(memory._store_dict) - before == set(chunk_keys(array, dict(zip(dims, parts, strict=True))))


def test_what_is_not_there_is_told_after_a_while(tmp_path, monkeypatch):
    there = archive_target(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0").write_bytes(b"x")
    confirm(there, ["c/0"])
    waited = []
    monkeypatch.setattr(target.time, "sleep", waited.append)
    monkeypatch.setattr(target.time, "monotonic", lambda: 10.0 * len(waited))
    with pytest.raises(
        StoreError, match=r"1 of 2 chunks that were just written are not in .*'c/1'.*workers do not see"
    ):
        confirm(there, ["c/0", "c/1"])
    assert len(waited) == 3
    monkeypatch.setattr(target.time, "sleep", lambda _: (tmp_path / "c" / "1").write_bytes(b"y"))
    confirm(there, ["c/0", "c/1"])  # a file system that is slow to show it


def test_a_bucket_is_listed_anew(monkeypatch):
    """File systems of fsspec remember listings, and know nothing of what workers write."""
    listed, bucket = set(), {"c/0"}

    async def exists(key):
        return key in listed

    file_system = SimpleNamespace(invalidate_cache=lambda: listed.update(bucket))
    monkeypatch.setattr(target.time, "sleep", lambda _: None)
    confirm(ArchiveTarget(SimpleNamespace(fs=file_system, exists=exists), "s3://bucket", None), ["c/0"])
    assert listed


class Disk:
    """What would survive a loss of power: files and folders as they were when they were last synchronised."""

    def __init__(self, monkeypatch):
        self.kept = {}
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.kept[path] = frozenset(p.name for p in path.iterdir()) if path.is_dir() else path.read_bytes()

    def lost(self, folder):
        """Return what is in a folder, but would not be after a loss of power."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return [p for p in paths if self.kept.get(p) != p.read_bytes() or not self._named(p, folder)]

    def _named(self, path, folder):
        above = [path, *(parent for parent in path.parents if folder in parent.parents or parent == folder)]
        return all(p.name in self.kept.get(p.parent, ()) for p in above)


def test_files_and_the_folders_that_name_them_are_flushed(tmp_path, monkeypatch):
    disk, folder = Disk(monkeypatch), tmp_path / "fine.zarr"
    for name in ("tas/c/0/0", "tas/c/1/0", "zarr.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert len(disk.lost(folder)) == 3
    flush(folder, ["tas/c/0/0"])
    assert sorted(path.name for path in disk.lost(folder)) == ["0", "zarr.json"]
    flush(folder, ["tas/c/1/0", "zarr.json"])
    assert not disk.lost(folder)
    archive_target(folder).write({"lat/c/0": b"x", "lat/zarr.json": b"{}"})
    assert not disk.lost(folder)


def test_what_counts_as_done_is_on_the_disk(toy, tmp_path, monkeypatch, small_regions):
    disk, folder = Disk(monkeypatch), tmp_path / "fine.zarr"
    note, seen = record.ArchiveRecord.note, []

    def looked(self, done, *others):
        seen.append((done, disk.lost(folder)))
        note(self, done, *others)
        seen.append(disk.lost(folder))

    monkeypatch.setattr(record.ArchiveRecord, "note", looked)
    toy.coarse.sr.downscale_to_zarr(folder, toy.model, progress=False)
    assert seen == [(8, []), [], (16, []), [], (24, []), []]
    assert not disk.lost(folder)


def test_missing_fields_are_written_too(make_model, tmp_path, small_regions):
    """So that a chunk that is not there is one that did not get there."""
    toy = make_model(missing=True)
    coarse = xr.full_like(toy.coarse, np.nan).isel(time=[0, 1, 2, 0, 1]).assign_coords(time=np.arange(5))
    coarse.sr.downscale_to_zarr(tmp_path / "fine.zarr", toy.model, progress=False)
    assert len(list((tmp_path / "fine.zarr" / "tas" / "c").iterdir())) == 5


# workers


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Two processes in another working directory."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "memory_limit": "2GB"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        client.run(os.chdir, tmp_path_factory.mktemp("elsewhere"))
        yield client


@pytest.mark.slow
def test_an_archive_is_written_by_other_processes(client, toy, check, tmp_path, monkeypatch, small_regions):
    whole = toy.coarse.sr.downscale(toy.model)
    monkeypatch.chdir(tmp_path)
    for there in (tmp_path / "path.zarr", "relative.zarr", LocalStore("store.zarr")):
        fine = toy.coarse.chunk(time=2).sr.downscale_to_zarr(there, toy.model, progress=False)
        check.same_numbers(fine, whole, toy.model.scaling.sd)
    assert {path.name for path in tmp_path.iterdir()} == {"path.zarr", "relative.zarr", "store.zarr"}


@pytest.mark.slow
@pytest.mark.parametrize("there", [MemoryStore, lambda: "memory://unseen/fine.zarr"])
def test_workers_that_do_not_see_the_store(client, toy, small_regions, there):
    there = there()
    with pytest.raises(StoreError, match="the workers do not see the store that this process sees.*memory is of one"):
        toy.coarse.sr.downscale_to_zarr(there, toy.model, progress=False)
    root = record.Root.of(archive_target(there).read("zarr.json"))
    assert root.progress.done == 0


@pytest.mark.slow
def test_some_workers_that_do_not_see_the_store(client, toy, tmp_path, small_regions):
    """One of two has a disk of its own: links of the same name lead elsewhere."""
    (shared := tmp_path / "shared").mkdir()
    (other := tmp_path / "other").mkdir()
    first = next(iter(client.scheduler_info()["workers"]))

    def divert():
        put = LocalStore.set

        async def diverted(self, key, value):
            root = Path(str(self.root).replace(str(shared), str(other)))
            await put(LocalStore(root), key, value)

        LocalStore.set, LocalStore._true_set = diverted, put

    def mend():
        LocalStore.set = LocalStore._true_set

    client.run(divert, workers=[first])
    try:
        with pytest.raises(StoreError, match="of 8 chunks that were just written are not in"):
            toy.coarse.chunk(time=1).sr.downscale_to_zarr(shared / "fine.zarr", toy.model, progress=False)
    finally:
        client.run(mend, workers=[first])
    fine = toy.coarse.chunk(time=1).sr.downscale_to_zarr(shared / "fine.zarr", toy.model, progress=False)
    assert fine.notnull().all()
