"""A cluster of two processes: the same numbers, models that travel once, workers that die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import xsuperres as xsr
from xsuperres.errors import XSuperResError
from xsuperres.inference import workers
from xsuperres.nn.network import build_network
from xsuperres.testing import toy_field

pytestmark = pytest.mark.slow
TINY = {"width": 5, "depth": 1, "head_width": 4}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers in a folder of their own, which do not see the client's cache folder."""
    home = tmp_path_factory.mktemp("workers")
    before = os.environ["XSUPERRES_CACHE"]
    os.environ["XSUPERRES_CACHE"] = str(home / "cache")
    with LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, local_directory=str(home), memory_limit="2GB"
    ) as cluster:
        os.environ["XSUPERRES_CACHE"] = before
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def loads() -> dict[str, int]:
    """Return how often this worker has prepared each model."""
    return {digest: count for (digest, _), count in workers.preparations().items()}


@pytest.fixture
def trained(reinitialise):
    """Return a function that makes a periodic coarse field, and a model with random weights for it."""

    def make(**options) -> tuple[xr.DataArray, xsr.SRModel]:
        fine = toy_field(time=8, y=24, x=36)
        options = {"network": TINY, "optimization": {"max_steps": 1}, "validation": None, "seed": 0} | options
        model = fine.sr.fit(2, progress=False, activate=False, **options)
        network = build_network(model.spec).eval()
        reinitialise(network, seed=options["seed"])
        return fine.sr.coarsen(2), replace(model, network=network)

    return make


@pytest.mark.parametrize("window", [None, 3])
def test_every_scheduler_gives_the_same(client, check, window, trained):
    coarse, model = trained(time_window=window)
    whole = coarse.sr.downscale(model)
    lazy = coarse.chunk(time=3, lat=6, lon=9).sr.downscale(model)
    for how in ("synchronous", "threads", "processes", client):
        got = lazy.compute(scheduler=how)
        check.same_numbers(got, whole, model.scaling.sd)


def test_members_are_those_of_one_process(client, check, trained):
    coarse, model = trained(network=TINY | {"dropout": "spatial"})
    whole = coarse.sr.downscale(model, members=3, seed=4)
    lazy = coarse.chunk(time=2, lon=9).sr.downscale(model, members=3, seed=4)
    assert lazy.data.numblocks[0] == 3, "members are computed one by one"
    check.same_numbers(lazy.compute(), whole, model.scaling.sd)
    assert float(whole.std("member").max()) > 1e-3


def test_a_model_travels_once_and_needs_no_common_disk(client, tmp_path, trained):
    """Its bytes are on the workers when the client's file is gone; each process prepares it once."""
    with xsr.set_options(cache_dir=str(tmp_path / "cache")):
        coarse, model = trained(seed=1)
        lazy = coarse.chunk(time=1, lat=4, lon=6).sr.downscale(model)
    shutil.rmtree(tmp_path / "cache")
    assert not Path(client.run(lambda: os.environ["XSUPERRES_CACHE"]).popitem()[1]).exists()
    np.testing.assert_allclose(lazy.compute(), coarse.sr.downscale(model), rtol=0, atol=1e-4)
    counts = client.run(loads)
    assert [found[model.digest] for found in counts.values()] == [1, 1]
    sent = client.register_plugin
    try:
        client.register_plugin = None  # a second call would fail
        again = coarse.chunk(time=1).sr.downscale(model)
    finally:
        client.register_plugin = sent
    again.compute()
    assert [found[model.digest] for found in client.run(loads).values()] == [1, 1]


def test_a_worker_that_joins_later_has_the_model_too(cluster, client, tmp_path, trained):
    with xsr.set_options(cache_dir=str(tmp_path / "cache")):
        coarse, model = trained(seed=2)
        lazy = coarse.chunk(time=1).sr.downscale(model)
    shutil.rmtree(tmp_path / "cache")
    old = set(client.scheduler_info(n_workers=-1)["workers"])
    cluster.scale(3)
    try:
        client.wait_for_workers(3)
        (new,) = set(client.scheduler_info(n_workers=-1)["workers"]) - old
        got = client.compute(lazy, workers=[new], allow_other_workers=False).result()
        np.testing.assert_allclose(got, coarse.sr.downscale(model), rtol=0, atol=1e-4)
        assert client.run(loads, workers=[new])[new][model.digest] == 1
    finally:
        cluster.scale(2)


def test_a_client_that_comes_after_the_graph(cluster, tmp_path, trained):
    """The file is all there is: where it cannot be seen, the error says what to do."""
    with xsr.set_options(cache_dir=str(tmp_path / "cache")):
        coarse, model = trained(seed=3)
        lazy = coarse.chunk(time=1).sr.downscale(model)
    with Client(cluster) as client:
        np.testing.assert_allclose(lazy.compute(scheduler=client), coarse.sr.downscale(model), rtol=0, atol=1e-4)
    with xsr.set_options(cache_dir=str(tmp_path / "other")):
        coarse, model = trained(seed=5)
        lazy = coarse.chunk(time=1).sr.downscale(model)
    shutil.rmtree(tmp_path / "other")
    with (
        Client(cluster) as client,
        pytest.raises(xsr.errors.ModelFileError, match="connect the client before calling downscale"),
    ):
        lazy.compute(scheduler=client)


def test_a_worker_that_is_killed_costs_a_retry(client, trained):
    """Also the model: the process that takes its place has to find it."""
    coarse, model = trained(seed=6)
    whole = coarse.sr.downscale(model)
    times = 120
    many = xr.concat([coarse.isel(time=[0])] * times, "time").assign_coords(time=np.arange(times))

    def slow(block):
        time.sleep(0.05)
        return block

    lazy = xr.apply_ufunc(slow, many.chunk(time=1), dask="parallelized").assign_attrs(coarse.attrs).sr.downscale(model)
    victim = next(iter(client.run(os.getpid).values()))
    future = client.compute(lazy)
    threading.Timer(0.7, os.kill, (victim, signal.SIGKILL)).start()
    got = future.result()
    np.testing.assert_allclose(got, np.repeat(whole.values[:1], times, axis=0), rtol=0, atol=1e-4)
    assert victim not in client.run(os.getpid).values()


@pytest.mark.parametrize("missing", ["xsuperres", "torch", "safetensors"])
def test_what_workers_lack_is_named_and_the_cluster_lives(trained, missing):
    """Every time it is asked for; workers still come and go, and other work is done."""
    preload = f"import sys; sys.modules['{missing}'] = None"
    alone = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "preload": preload}
    coarse, model = trained(seed=7)
    lazy = coarse.chunk(time=1)
    with LocalCluster(**alone) as cluster, Client(cluster) as client:
        for _ in range(2):
            with pytest.raises(
                XSuperResError, match=f"1 of 1 workers.*{missing}.*Install the same xsuperres, with torch"
            ):
                lazy.sr.downscale(model)
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


def test_a_worker_to_come_that_lacks_the_package_is_no_harm(trained):
    """It starts, for the copy of the model that it is sent says nothing of this package."""
    from distributed.protocol.pickle import dumps

    from xsuperres.inference.plugin import model_copy

    program = f"""
import pickle, sys
sys.modules["xsuperres"] = None
plugin = pickle.loads({dumps(model_copy("digest", b"content"))!r})
class Worker:
    local_directory = sys.argv[1]
plugin.setup(Worker)
"""
    home = Path(os.environ["XSUPERRES_CACHE"])
    home.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", program, str(home)], check=True)
    assert (home / "digest.safetensors").read_bytes() == b"content"


def test_a_scheduler_keeps_the_latest_models_alone(cluster, client, trained, monkeypatch):
    monkeypatch.setattr(workers, "_SENT_AT_MOST", 2)
    models = [trained(seed=seed) for seed in (10, 11, 12)]
    for coarse, model in (*models[:2], models[0], models[2]):
        coarse.chunk(time=1).sr.downscale(model)
    kept = [name for name in cluster.scheduler.worker_plugins if name.startswith("xsuperres")]
    digests = {model.digest for _, model in models}
    assert {name.split("-")[-1] for name in kept} & digests == {models[0][1].digest, models[2][1].digest}
    coarse, model = models[1]  # its copies are on the workers still
    np.testing.assert_allclose(
        coarse.chunk(time=1).sr.downscale(model).compute(), coarse.sr.downscale(model), rtol=0, atol=1e-4
    )


def test_a_client_without_its_scheduler_is_left_alone(trained, caplog):
    """Nobody waits for what will not come; the result can be computed here."""
    coarse, model = trained(seed=8)
    cluster = LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    with Client(cluster, timeout=5) as client:
        cluster.close()
        deadline = time.monotonic() + 20
        while client.status == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        start = time.monotonic()
        lazy = coarse.chunk(time=1).sr.downscale(model)
        assert time.monotonic() - start < 10
        assert "its workers are sent no model" in caplog.text
        np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), coarse.sr.downscale(model), rtol=0, atol=1e-4)


def test_threads_that_ask_at_once_send_it_once(client, trained, monkeypatch):
    coarse, model = trained(seed=9)
    lazy, calls, true = coarse.chunk(time=1), [], client.register_plugin

    def count(*arguments, **options):
        calls.append(1)
        return true(*arguments, **options)

    monkeypatch.setattr(client, "register_plugin", count)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: lazy.sr.downscale(model), range(4)))
    assert len(calls) == 1


def test_the_graph_does_not_grow_with_the_model(client, trained):
    from distributed.protocol import dumps

    sizes = []
    for width in (4, 64):
        coarse, model = trained(network={"width": width, "depth": 2})
        lazy = coarse.chunk(time=1).sr.downscale(replace(model))
        sizes.append(sum(map(len, dumps(lazy.data.__dask_graph__()))))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
