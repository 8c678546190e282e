"""The record in the root of a store: one object, one step, one run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle

import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from xsuperres.errors import StoreError
from xsuperres.inference.record import ROOT, ArchiveRecord, Progress, Root, archive_root, locked, marks
from xsuperres.inference.target import archive_target

RUN = {"model": "m" * 64, "fields": {"tas": {"time": 8, "lat": 2, "dtype": "float32"}}}
OTHER = {**RUN, "model": "o" * 64}
BLOCKS = {"time": 4, "lat": 2}


def template(identity=RUN, title: str = "toy") -> dict[str, bytes]:
    root = {"attributes": {"title": title, **marks(identity, BLOCKS)}, "zarr_format": 3, "node_type": "group"}
    return {ROOT: json.dumps(root).encode(), "tas/zarr.json": b"{}"}


@pytest.fixture
def place():
    return archive_target(MemoryStore())


def claimed(place, identity=RUN, **options) -> ArchiveRecord:
    return ArchiveRecord.claim(place, identity, template(identity), **{"resume": True, "alone": False} | options)


def objects(place) -> dict[str, bytes]:
    return {name: value.to_bytes() for name, value in place.store._store_dict.items()}


# one object


def test_what_is_noted_is_found(place):
    assert archive_root(place, RUN, resume=True) is None
    first = claimed(place)
    assert list(objects(place)) == [ROOT] and first.progress() == first.unfinished() == Progress(BLOCKS)
    assert list(first.progress().blocks) == ["time", "lat"], "in the order of writing"
    assert archive_root(place, RUN, resume=True) == Root(RUN, Progress(BLOCKS), None)
    second = claimed(place)
    first.note(2, 16)
    assert second.progress() == Progress(BLOCKS, 2, 16)


def test_the_first_object_says_whose_it_is(place):
    claimed(place)
    for resume in (True, False):
        with pytest.raises(StoreError, match=f"holds an archive of other model .*{'m' * 16}.*{'o' * 16}.*delete that"):
            claimed(place, OTHER, resume=resume)
    with pytest.raises(StoreError, match="resume=False expects an empty place; pass resume=True .* or delete it"):
        claimed(place, resume=False)
    assert objects(place) == {ROOT: template()[ROOT]}


def test_what_is_done_never_goes_back(place):
    first, second = claimed(place), claimed(place)
    first.note(3, 24)
    before = objects(place)
    second.note(2, 16)
    assert objects(place) == before and second.progress().done == 3


def test_one_note_is_one_write(place, monkeypatch):
    record, written, put = claimed(place), [], MemoryStore.set

    async def watched(self, key, *others):
        written.append(key)
        await put(self, key, *others)

    monkeypatch.setattr(MemoryStore, "set", watched)
    record.note(1, 8)
    assert written == [ROOT]


def finished(place) -> ArchiveRecord:
    record = claimed(place)
    dims = {"dimension_names": ("time", "lat"), "chunks": (4, 2), "dtype": "f4"}
    zarr.create_array(record.writer.store, name="tas", shape=(8, 2), **dims)
    record.note(2, 16)
    record.finish()
    return record


def test_a_finished_archive_says_nothing_of_how_far_it_was(place):
    record = finished(place)
    assert record.progress() is None
    root = json.loads(objects(place)[ROOT])
    assert set(root["attributes"]) == {"title", "xsuperres_archive"}
    assert list(archive_root(place, RUN, resume=True).arrays) == ["tas"]
    for again in (record.unfinished, record.finish):
        with pytest.raises(StoreError, match="was finished by another process of the same run"):
            again()
    before = objects(place)
    record.note(3, 24)
    assert objects(place) == before
    with pytest.raises(StoreError, match="holds an archive of this run already"):
        archive_root(place, RUN, resume=False)


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_part_is_no_archive(place, consolidated):
    finished(place)
    name = ROOT if consolidated else "tas/zarr.json"
    content = json.loads(objects(place)[name])
    array = content["consolidated_metadata"]["metadata"]["tas"] if consolidated else content
    array["shape"] = [3, 2]
    place.write({name: json.dumps(content).encode()})
    if not consolidated:
        root = json.loads(objects(place)[ROOT])
        del root["consolidated_metadata"]
        place.write({ROOT: json.dumps(root).encode()})
    with pytest.raises(StoreError, match="has the mark of an archive, but 'tas' of {'time': 3, 'lat': 2}, not"):
        archive_root(place, RUN, resume=True)


# one run


def test_of_two_that_begin_at_once_the_first_has_the_place(place, monkeypatch):
    """Both found it empty."""
    new = type(place).write_new

    def late(self, key, content):
        monkeypatch.undo()
        claimed(place, OTHER)
        new(self, key, content)

    monkeypatch.setattr(type(place), "write_new", late)
    with pytest.raises(StoreError, match="holds an archive of other model .* took the place .* was left as it is"):
        claimed(place)
    assert objects(place) == {ROOT: template(OTHER)[ROOT]}


@pytest.mark.parametrize("how", ["gone", "no archive", "another run"])
def test_a_record_that_is_not_ours_any_more(place, how):
    record = claimed(place)
    place.store._store_dict.clear()
    if how == "no archive":
        zarr.open_group(place.store, mode="w-", zarr_format=3)
    if how == "another run":
        claimed(place, OTHER)
    before = objects(place)
    told = "holds an archive of other model" if how == "another run" else "was deleted, or something else.*Call again"
    for ask in (record.progress, record.unfinished, lambda: record.note(1, 8), record.finish):
        with pytest.raises(StoreError, match=told):
            ask()
    assert objects(place) == before


@pytest.mark.parametrize("how", ["ours", "finished", "gone", "another run"])
def test_what_is_written_through_it_asks_first(place, how):
    """Also where the store went to another process."""
    writer = pickle.loads(pickle.dumps(claimed(place).writer.store))
    writer._store = place.store
    if how == "finished":
        finished(place)
    elif how != "ours":
        place.store._store_dict.clear()
    if how == "another run":
        claimed(place, OTHER)
    before = objects(place)
    chunk = default_buffer_prototype().buffer.from_bytes(b"values")
    for store in (writer, writer.with_read_only(False)):
        if how == "ours":
            sync(store.set("tas/c/0/0", chunk))
            assert objects(place) == before | {"tas/c/0/0": b"values"}
        else:
            with pytest.raises(StoreError, match="finished by another|is not there where|holds an archive of other"):
                sync(store.set("tas/c/0/0", chunk))
            assert objects(place) == before


# what is there already


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_part_of_this_very_root_gives_way(tmp_path, alone):
    """And only where nobody else writes."""
    place, half = archive_target(tmp_path), tmp_path / f"zarr.{'ab' * 16}.partial"
    half.write_bytes(template(title="another")[ROOT][:100])
    if alone:
        with pytest.raises(StoreError, match="downscale_to_zarr did not write it"):
            claimed(place, alone=True)
        assert [path.name for path in tmp_path.iterdir()] == [half.name]
        half.write_bytes(template()[ROOT][:100])
    claimed(place, alone=alone)
    assert half.exists() != alone


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"attributes": {"xsuperres_archive": "x"}}', b'{"attributes": 3}']
)
def test_a_damaged_root(place, content):
    place.write({ROOT: content})
    with pytest.raises(StoreError, match="metadata of the store is damaged .*; delete it, or name another"):
        archive_root(place, RUN, resume=True)


def test_a_record_of_a_version_to_come():
    attributes = marks(RUN, BLOCKS)
    attributes["xsuperres_record"] = attributes["xsuperres_record"].replace('"format": 2', '"format": 3')
    with pytest.raises(StoreError, match="begun in format 3, .* writes 2; go on with the version that began it"):
        Root.of(json.dumps({"attributes": attributes}).encode())


# a lock


def test_the_lock_goes_with_what_is_unfinished(tmp_path):
    place, lock = archive_target(tmp_path / "deep" / "fine.zarr"), tmp_path / "deep" / "fine.zarr.lock"
    with locked(place) as alone:
        assert alone and lock.exists()
        with pytest.raises(StoreError, match=f"is being written by another process, which holds '{lock}'; wait"):
            locked(place).__enter__()
        record = claimed(place)
    assert lock.exists(), "there is something to go on with"
    with locked(place):
        record.finish()
    assert not lock.exists()
    with pytest.raises(RuntimeError, match="boom"), locked(place):
        raise RuntimeError("boom")
    assert not lock.exists()


def test_no_lock_where_there_is_no_folder(place):
    with locked(place) as alone:
        assert not alone


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    place = archive_target(tmp_path / "fine.zarr")
    with locked(place) as alone, locked(place) as other:
        assert not alone and not other
    assert not list(tmp_path.glob("*.lock"))


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot lock .* name a store in a folder that you may write to"):
        locked(archive_target(tmp_path / "file" / "fine.zarr")).__enter__()
