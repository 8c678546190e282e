"""Models on workers: prepared once per process and device, found by digest, read from a file that is checked."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import xsuperres as xsr
from xsuperres.errors import ModelFileError
from xsuperres.inference import workers
from xsuperres.inference.devices import ON_CPU, Execution
from xsuperres.inference.prepared import bytes_of
from xsuperres.inference.workers import ModelReference, preparations, prepared_model, refer
from xsuperres.model import table


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A process that has prepared nothing, with a cache folder of its own."""
    monkeypatch.setattr(workers, "_PREPARED", {})
    monkeypatch.setattr(workers, "_COUNTS", Counter())
    with xsr.set_options(cache_dir=str(tmp_path / "cache")):
        yield


@pytest.fixture
def forgotten(monkeypatch):
    """A process that knows no model."""

    def forget():
        monkeypatch.setattr(table, "_KNOWN", {})
        monkeypatch.setattr(workers, "_PREPARED", {})

    return forget


@pytest.fixture
def prepared_models(monkeypatch):
    """Count how often models are prepared, slowly enough for threads to meet."""
    calls: list[str] = []
    true_prepare = workers.prepare

    def count(model, execution):
        calls.append(execution)
        time.sleep(0.05)
        return true_prepare(model)

    monkeypatch.setattr(workers, "prepare", count)
    return calls


def test_a_model_is_prepared_once_whatever_the_number_of_tasks(make_model, prepared_models):
    toy = make_model(coarse=(20, 24))
    lazy = toy.coarse.chunk(time=1, lat=10, lon=12).sr.downscale(toy.model)
    lazy.compute(scheduler="threads", num_workers=6)
    lazy.compute(scheduler="threads", num_workers=6)
    toy.coarse.sr.downscale(toy.model)
    assert len(prepared_models) == 1


def test_threads_that_ask_at_once_get_the_same(make_model, prepared_models):
    reference = refer(make_model().model, to_file=False)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: prepared_model(reference, ON_CPU), range(8)))
    assert len(prepared_models) == 1 and all(one is found[0] for one in found)


def test_each_device_and_each_model_is_prepared_apart(make_model, prepared_models):
    first, second = (refer(make_model(seed=seed).model, to_file=False) for seed in (0, 1))
    elsewhere, half = Execution(device="cuda:0"), Execution(device="cpu", precision="bf16")
    one = prepared_model(first, ON_CPU)
    assert prepared_model(first, elsewhere) is not one
    assert prepared_model(first, half) is not one
    assert prepared_model(second, ON_CPU) is not one
    assert prepared_model(first, ON_CPU) is one
    assert prepared_models == [ON_CPU, elsewhere, half, ON_CPU]
    assert set(preparations().values()) == {1}


def test_the_cache_is_bounded(make_model, prepared_models, monkeypatch):
    references = [refer(make_model(seed=seed).model, to_file=False) for seed in range(6)]
    monkeypatch.setattr(workers, "_ROOM", 4 * bytes_of(prepared_model(references[0], ON_CPU)))
    for reference in references[1:]:
        prepared_model(reference, ON_CPU)
    assert len(workers._PREPARED) == 4
    prepared_model(references[-4], ON_CPU)
    assert len(prepared_models) == 6, "the newest are kept"
    prepared_model(references[0], ON_CPU)
    assert len(prepared_models) == 7, "the oldest went first"
    prepared_model(references[-4], ON_CPU)
    assert len(prepared_models) == 7, "what was used since is not the oldest"
    prepared_model(references[-3], ON_CPU)
    assert len(prepared_models) == 8


def test_one_that_is_larger_than_the_cache_is_kept(make_model, prepared_models, monkeypatch):
    monkeypatch.setattr(workers, "_ROOM", 1)
    reference = refer(make_model().model, to_file=False)
    assert prepared_model(reference, ON_CPU) is prepared_model(reference, ON_CPU)


def test_models_that_are_used_in_turn_are_prepared_once_each(make_model, prepared_models):
    """Many variables, or regions, of one archive."""
    references = [refer(make_model(seed=seed).model, to_file=False) for seed in range(8)]
    for reference in references * 3:
        prepared_model(reference, ON_CPU)
    assert len(prepared_models) == 8


def test_a_damaged_copy_says_what_to_do(make_model, tmp_path, forgotten):
    model = make_model().model
    reference = refer(model, to_file=True)
    forgotten()
    path = Path(reference.path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="is damaged; delete this file and downscale again"):
        prepared_model(reference, ON_CPU)


def test_a_model_brought_to_another_domain_is_another(make_model, prepared_models):
    toy = make_model(domain="open")
    elsewhere = toy.fine.assign_coords(lon=toy.fine.lon + 40)
    statics = elsewhere.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    toy.coarse.sr.downscale(toy.model)
    elsewhere.sr.coarsen(2).sr.downscale(toy.model, static=statics)
    elsewhere.sr.coarsen(2).sr.downscale(toy.model, static=statics * 2)
    assert len(prepared_models) == 3


# references


def test_a_reference_is_small_and_picklable(make_model):
    model = make_model().model
    reference = refer(model, to_file=True)
    assert reference.digest == model.digest
    assert len(pickle.dumps(reference)) < 500
    assert pickle.loads(pickle.dumps(reference)) == reference
    assert refer(model, to_file=False).path is None


def test_the_file_is_named_by_its_content_and_written_once(make_model, tmp_path):
    model = make_model().model
    first = refer(model, to_file=True)
    path = tmp_path / "cache" / "models" / f"{model.digest}.safetensors"
    assert first.path == str(path) and path.exists()
    assert xsr.load_model(path).digest == model.digest
    written = path.stat().st_ino
    assert refer(model, to_file=True) == first
    assert path.stat().st_ino == written
    assert refer(make_model(seed=1).model, to_file=True).path != first.path
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_missing_file_is_made_again(make_model, tmp_path):
    model = make_model().model
    reference = refer(model, to_file=True)
    shutil.rmtree(tmp_path / "cache")
    assert refer(model, to_file=True) == reference
    assert xsr.load_model(reference.path).digest == model.digest


def test_a_process_that_knows_nothing_reads_the_file(make_model, forgotten, check):
    toy = make_model()
    lazy = toy.coarse.chunk(time=1).sr.downscale(toy.model)
    forgotten()
    got = lazy.compute(scheduler="synchronous")
    check.same_numbers(got, toy.coarse.sr.downscale(toy.model), toy.model.scaling.sd)


def test_a_model_in_this_process_needs_no_file(make_model, tmp_path):
    toy = make_model()
    lazy = toy.coarse.chunk(time=1).sr.downscale(toy.model)
    shutil.rmtree(tmp_path / "cache")
    assert np.isfinite(lazy.compute(scheduler="synchronous")).all()


def test_neither_process_nor_file_has_it(make_model, tmp_path, forgotten):
    toy = make_model()
    lazy = toy.coarse.chunk(time=1).sr.downscale(toy.model)
    forgotten()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ModelFileError, match="neither in this process nor at .*share the cache folder"):
        lazy.compute(scheduler="synchronous")
    with pytest.raises(ModelFileError, match="Keep the model object alive"):
        prepared_model(ModelReference("0" * 64, None), ON_CPU)


def test_a_file_with_another_model_is_refused(make_model, forgotten):
    first, second = make_model().model, make_model(seed=1).model
    reference = refer(first, to_file=True)
    second.save(reference.path)
    forgotten()
    with pytest.raises(ModelFileError, match="holds another model; delete this file"):
        prepared_model(reference, ON_CPU)


def test_a_damaged_file_is_refused(make_model, forgotten, tmp_path):
    reference = refer(make_model().model, to_file=True)
    path = tmp_path / "cache" / "models" / f"{reference.digest}.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    forgotten()
    with pytest.raises(ModelFileError, match="altered"):
        prepared_model(reference, ON_CPU)


def test_a_failure_is_not_remembered(make_model, forgotten, tmp_path):
    """Once the file is there again, the same task succeeds."""
    model = make_model().model
    reference = refer(model, to_file=True)
    shutil.rmtree(tmp_path / "cache")
    forgotten()
    with pytest.raises(ModelFileError):
        prepared_model(reference, ON_CPU)
    refer(model, to_file=True)
    assert prepared_model(reference, ON_CPU).scale == model.scale


def test_a_cache_folder_that_cannot_be_made(make_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with xsr.set_options(cache_dir=str(tmp_path / "file")), pytest.raises(ModelFileError, match="XSUPERRES_CACHE"):
        refer(make_model().model, to_file=True)


def test_a_relative_cache_folder_is_found_from_elsewhere(make_model, forgotten, tmp_path, monkeypatch):
    """A worker process may run in another folder."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with xsr.set_options(cache_dir="relative"):
        reference = refer(make_model().model, to_file=True)
    monkeypatch.chdir(tmp_path / "there")
    forgotten()
    assert prepared_model(reference, ON_CPU).scale == 2


def test_eager_downscaling_writes_no_file(make_model, tmp_path):
    toy = make_model()
    toy.coarse.sr.downscale(toy.model)
    assert not (tmp_path / "cache").exists()


def test_the_graph_carries_no_weights(make_model):
    toy = make_model(network=(("width", 64), ("depth", 2)))
    weights = sum(p.numel() * 4 for p in toy.model.network.parameters())
    lazy = toy.coarse.chunk(time=1).sr.downscale(toy.model)
    task = lazy.data.dask
    bytes_of_graph = len(cloudpickle.dumps(dict(task))) - toy.coarse.nbytes
    assert weights > 500_000 > bytes_of_graph * 5


@pytest.mark.slow
def test_other_processes_work_from_the_cache_file(make_model, check):
    toy = make_model(coarse=(20, 24), missing=True)
    lazy = toy.coarse.chunk(time=1, lat=10).sr.downscale(toy.model)
    there = lazy.compute(scheduler="processes", num_workers=2)
    check.same_numbers(there, toy.coarse.sr.downscale(toy.model), toy.model.scaling.sd)


def test_copies_that_no_graph_has_referred_to_for_a_month_are_deleted(make_model):
    """The folder would grow without end; one that is referred to again stays."""
    old, kept, new = (make_model(seed=seed).model for seed in range(3))
    paths = [Path(refer(model, to_file=True).path) for model in (old, kept)]
    long_ago = time.time() - 40 * 24 * 3600
    for path in paths:
        os.utime(path, (long_ago, long_ago))
    refer(kept, to_file=True)
    refer(new, to_file=True)
    assert [path.exists() for path in paths] == [False, True]
