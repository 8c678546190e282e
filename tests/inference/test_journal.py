"""The record in the store: one step each, one writer."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time

import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

from xsuperres.errors import StoreError
from xsuperres.inference import journal
from xsuperres.inference.journal import Journal, is_blank, locked, owned, stored_identity, sweep


@pytest.fixture
def place():
    store = MemoryStore()
    zarr.open_group(store, mode="w-", zarr_format=3)
    return store


def begun(place) -> Journal:
    return Journal.begin(place, {"model": "m"}, {"time": 4, "lat": 2})


def test_what_is_noted_is_found(place):
    assert Journal.find(place) is None and is_blank(place)
    first = begun(place)
    assert not is_blank(place) and stored_identity(place) is None
    first.own()
    first.note({"done": 3})
    found = Journal.find(place).entries
    assert found["done"] == 3 and found["identity"] == {"model": "m"}
    assert dict(found["blocks"]) == {"time": 4, "lat": 2} and [dim for dim, _ in found["blocks"]] == ["time", "lat"]
    assert found["owner"]["pid"] == os.getpid() and found["owner"]["host"] == socket.gethostname()
    first.remove()
    assert Journal.find(place) is None
    first.note({"done": 4})  # a heartbeat that comes too late
    first.release()
    assert Journal.find(place) is None


def test_one_entry_is_one_write(place, monkeypatch):
    kept, written = begun(place), []
    kept.own()
    put = MemoryStore.set

    async def watched(self, key, *others):
        written.append(key)
        await put(self, key, *others)

    monkeypatch.setattr(MemoryStore, "set", watched)
    kept.note({"done": 1, "cells": 8})
    assert written == ["xsuperres_journal/zarr.json"]


def test_begun_twice(place):
    begun(place)
    with pytest.raises(StoreError, match="Another process began"):
        begun(place)


# a lease, where there is no lock


@pytest.fixture
def quick(monkeypatch):
    """Leases of a fifth of a second."""
    monkeypatch.setattr(journal, "_LEASE", 0.2)
    monkeypatch.setattr(journal, "_BEAT", 0.02)
    monkeypatch.setattr(journal, "_SETTLE", 0.0)


@pytest.mark.parametrize("ahead", [0.0, 10_000.0, -10_000.0])
def test_a_second_owner_is_refused_while_the_first_is_alive(place, monkeypatch, caplog, quick, ahead):
    """Whatever the clock of the second's host says."""
    with owned(begun(place), leased=True):
        second, now = Journal.find(place), time.time
        monkeypatch.setattr(journal.time, "time", lambda: now() + ahead)
        with pytest.raises(StoreError, match=rf"process {os.getpid()} on .* heard of just now.*then call again"):
            owned(second, leased=True).__enter__()
    assert "waiting 0 s for a sign of it" in caplog.text
    with owned(Journal.find(place), leased=True):  # the first took itself out
        pass


def test_an_owner_that_ends_while_it_is_watched(place, monkeypatch, quick):
    first = begun(place)
    first.own()
    second = Journal.find(place)
    monkeypatch.setattr(journal.time, "sleep", lambda _: first.entries["owner"] and first.release())
    with pytest.raises(StoreError, match="then call again"):
        owned(second, leased=True).__enter__()


def test_an_owner_that_died_is_followed(place, quick):
    dead = begun(place)
    dead.own()
    begin = time.monotonic()
    with owned(Journal.find(place), leased=True):
        assert time.monotonic() - begin > journal._LEASE
        with pytest.raises(StoreError, match="was taken over by process"):
            dead.note({"done": 1})  # it was only slow
        with pytest.raises(StoreError, match="was taken over by process"):
            dead.remove()
    assert Journal.find(place).entries["done"] == 0


def test_of_two_that_start_at_once_one_goes_on(place, monkeypatch, quick):
    begun(place)
    first, second = Journal.find(place), Journal.find(place)
    monkeypatch.setattr(journal.time, "sleep", lambda _: second.own())
    with pytest.raises(StoreError, match="was taken over by process"):
        owned(first, leased=True).__enter__()
    assert Journal.find(place).entries["owner"]["token"] == second.token


def test_the_heartbeat_goes_on_while_a_region_is_computed_and_no_longer(place, monkeypatch, quick):
    beats, note = [], Journal.note

    def counted(self, entries):
        beats.append(threading.current_thread())
        note(self, entries)
        reached.set()

    reached = threading.Event()
    monkeypatch.setattr(Journal, "note", counted)
    kept = begun(place)
    with owned(kept, leased=True):
        first = kept.entries["owner"]["heartbeat"]
        assert reached.wait(10)
        assert beats[0] is not threading.main_thread()
    assert kept.entries["owner"] is None and first
    assert not beats[0].is_alive()


def test_what_went_wrong_is_not_hidden_by_what_follows(place, monkeypatch, quick):
    def expired(self):
        raise LookupError("token expired")  # of a library, no OSError

    with pytest.raises(RuntimeError, match="boom"), owned(begun(place), leased=False):
        monkeypatch.setattr(Journal, "release", expired)
        raise RuntimeError("boom")


def test_a_heartbeat_that_fails_is_told_and_tried_again(place, monkeypatch, caplog, quick):
    failed, note = threading.Event(), Journal.note

    def failing(self, entries):
        if len(caplog.records) < 1:
            raise OSError("network")
        failed.set()
        note(self, entries)

    monkeypatch.setattr(Journal, "note", failing)
    with owned(begun(place), leased=True):
        assert failed.wait(10)
    assert "could not be renewed: network" in caplog.text


# a lock


def test_the_lock_goes_with_what_is_unfinished(tmp_path):
    folder, lock = tmp_path / "deep" / "fine.zarr", tmp_path / "deep" / "fine.zarr.lock"
    with locked(folder):
        assert lock.exists()
        with pytest.raises(StoreError, match="is being written by another process"):
            locked(folder).__enter__()
        kept = Journal.begin(LocalStore(folder), {}, {})
        kept.own()
        with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}"):
            locked(folder).__enter__()
    assert lock.exists(), "there is something to go on with"
    with locked(folder):
        kept.remove()
    assert not lock.exists()
    with pytest.raises(RuntimeError, match="boom"), locked(folder):
        raise RuntimeError("boom")
    assert not lock.exists()


def test_no_lock_where_there_is_no_folder():
    with locked(None) as held:
        assert not held


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_leases(tmp_path, monkeypatch, quick, code):
    """A process of another host that died there is followed, one that lives is not."""

    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    folder = tmp_path / "fine.zarr"
    with locked(folder) as held:
        assert not held
        dead = Journal.begin(LocalStore(folder), {}, {})
        monkeypatch.setattr(journal.socket, "gethostname", lambda: "another")
        dead.own()
    with locked(folder) as held, owned(Journal.find(LocalStore(folder)), leased=not held):
        assert not locked(folder).__enter__()
        with pytest.raises(StoreError, match="is being written by process .* on another"):
            owned(Journal.find(LocalStore(folder)), leased=True).__enter__()
    with locked(folder):
        kept = Journal.find(LocalStore(folder))
        kept.own()
        kept.remove()
    assert not list(tmp_path.glob("*.lock"))


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot lock .* name a store in a folder that you may write to"):
        locked(tmp_path / "file" / "fine.zarr").__enter__()


# what cannot be read


@pytest.mark.parametrize("error", [ConnectionError("reset by peer"), PermissionError("denied"), TimeoutError("slow")])
def test_what_cannot_be_read_may_still_be_there(place, monkeypatch, error):
    begun(place)

    async def failing(self, *_, **__):
        raise error

    monkeypatch.setattr(MemoryStore, "get", failing)
    with pytest.raises(StoreError, match=f"cannot be read .{error}.; .*check connection and permissions") as caught:
        Journal.find(place)
    assert "delete" not in str(caught.value)


# what killed writers leave


def test_only_what_is_ours_is_swept(tmp_path):
    folder = tmp_path / "fine.zarr"
    (folder / "c" / "0").mkdir(parents=True)
    left = folder / "c" / "0" / f"0.{'ab' * 16}.partial"
    left.write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    sweep(folder, ours=False)
    assert left.exists()
    sweep(folder, ours=True)
    assert not left.exists() and (folder / "notes.txt").exists()
    sweep(tmp_path / "nothing", ours=False)
