"""A long run on a cluster: many small chunks, workers killed on the way; no task is lost, no memory grows.

    python benchmarks/soak.py [--chunks 100000] [--workers 4] [--kills 3] [--seed 0] [--json OUT]

The chunks come as ten graphs, one after the other. Memory is the resident set of the workers that live from the first
chunk to the last, its mean during the last graph against that during the first; what dask keeps of a graph's tasks is
there in both. dask's profiler is off: it keeps an hour of samples, tens of megabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch
import tqdm
import xarray as xr

import xsuperres
from xsuperres.testing import toy_field

KINDS = 8  # different fields, of which the series is made
PARTS = 10


def fitted() -> tuple[xr.DataArray, xsuperres.SRModel]:
    """Return coarse fields, and a model of their domain with random weights."""
    fine = toy_field(time=KINDS, y=32, x=32)
    settings: dict[str, Any] = {"network": {"width": 4, "depth": 1, "head_width": 4}, "optimization": {"max_steps": 20}}
    model = fine.sr.fit(2, validation=None, progress=False, activate=False, **settings)
    return fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"]), model


def series(coarse: xr.DataArray, chunks: int) -> xr.DataArray:
    """Return a lazy series of so many chunks of one step, each made where it is needed."""
    import dask.array

    numbers = dask.array.arange(chunks, chunks=1)
    data = dask.array.map_blocks(
        _one, numbers[:, None, None], coarse.values, chunks=((1,) * chunks, *((n,) for n in coarse.shape[1:]))
    )
    lazy = xr.DataArray(data.astype(coarse.dtype), dims=coarse.dims, attrs=coarse.attrs, name=coarse.name)
    hours = coarse.time.values[0] + np.arange(chunks) * np.timedelta64(1, "h")
    return lazy.assign_coords({"time": hours, **{dim: coarse[dim] for dim in coarse.dims[1:]}})


def _one(number: np.ndarray, fields: np.ndarray) -> np.ndarray:
    return fields[number.ravel() % KINDS]


class Watcher(threading.Thread):
    """Kills workers at random moments, and notes the memory of all in between."""

    def __init__(self, cluster: Any, *, chunks: int, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.chunks = cluster, chunks
        chance = random.Random(seed)
        self.moments = sorted(chance.uniform(0.1, 0.9) * chunks for _ in range(kills))
        self.victims = chance.sample(range(len(cluster.workers)), kills)
        self.killed_after: list[int] = []
        self.seen: dict[int, list[tuple[int, int]]] = {}  # by process: part, bytes
        self.done, self.part, self.over = 0, 0, threading.Event()

    def processes(self) -> list[int]:
        """Return the process ids of the workers, 0 for one that is being started."""
        return [getattr(nanny.process, "pid", None) or 0 for nanny in self.cluster.workers.values()]

    def run(self) -> None:
        """Watch until it is over."""
        with tqdm.tqdm(total=self.chunks, unit=" chunks") as bar:
            while not self.over.wait(1.0):
                bar.update(self.done - bar.n)
                for process in self.processes():
                    if process and psutil.pid_exists(process):
                        memory = psutil.Process(process).memory_info().rss
                        self.seen.setdefault(process, []).append((self.part, memory))
                if len(self.killed_after) < len(self.moments) and self.done >= self.moments[len(self.killed_after)]:
                    os.kill(self.processes()[self.victims[len(self.killed_after)]], signal.SIGKILL)
                    self.killed_after.append(self.done)

    def growth(self) -> dict[int, float]:
        """Return, for each worker that lives from the first part to the last, the growth of its memory."""
        found = {}
        for process, samples in self.seen.items():
            first, final = ([memory for part, memory in samples if part == which] for which in (0, PARTS - 1))
            if first and final:
                found[process] = float(np.mean(final) / np.mean(first))
        return found


def soak(chunks: int, workers: int, kills: int, seed: int) -> dict[str, Any]:
    """Run; return what was seen."""
    import dask
    from distributed import Client, LocalCluster
    from distributed.diagnostics.plugin import SchedulerPlugin
    from distributed.utils import key_split

    from xsuperres.inference.workers import preparations

    class Counter(SchedulerPlugin):
        def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
            watcher.done += finish == "memory" and key_split(key) == "sum"  # of one chunk, with all before it

    coarse, model = fitted()
    kinds = coarse.sr.downscale(model).astype(np.float64).sum(("lat", "lon")).values
    expected = float(np.bincount(np.arange(chunks) % KINDS, minlength=KINDS) @ kinds)
    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        watcher = Watcher(cluster, chunks=chunks, kills=kills, seed=seed)
        cluster.scheduler.add_plugin(Counter())
        lazy = series(coarse, chunks).sr.downscale(model, check_range="ignore").data.astype(np.float64)
        start = time.perf_counter()
        watcher.start()
        total = 0.0
        for part in np.array_split(np.arange(chunks), PARTS):
            sums = lazy[part[0] : part[-1] + 1].sum(split_every={0: 100, 1: 2, 2: 2})
            total += float(client.compute(sums).result())
            watcher.part += 1
        seconds = time.perf_counter() - start
        watcher.over.set()
        watcher.join()
        loads = client.run(preparations)
    growth = watcher.growth()
    return {
        "chunks": chunks,
        "chunks_computed": watcher.done,  # more than there are: what a killed worker held is computed again
        "seconds": round(seconds),
        "workers": workers,
        "killed_after": watcher.killed_after,
        "relative_error_of_the_sum": abs(total / expected - 1),
        "relative_error_limit": 1e-7,
        "growth_of_memory": [round(g, 3) for g in growth.values()],
        "growth_limit": 1.10,
        "mebibytes_at_the_end": [round(watcher.seen[process][-1][1] / 2**20) for process in growth],
        "loads_of_the_model": [sum(found.values()) for found in loads.values()],
        "versions": {"xsuperres": xsuperres.__version__, "torch": torch.__version__, "xarray": xr.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    if given.kills >= given.workers:
        parser.error(f"--kills {given.kills}: at least one of {given.workers} workers must live")
    warnings.simplefilter("ignore", xsuperres.errors.XSuperResWarning)
    torch.set_num_threads(1)
    record = soak(given.chunks, given.workers, given.kills, given.seed)
    text = json.dumps(record, indent=2)
    if given.json:
        Path(given.json).write_text(text + "\n")
    print(text)
    kept = max(record["growth_of_memory"], default=np.inf) <= record["growth_limit"]
    whole = record["relative_error_of_the_sum"] <= record["relative_error_limit"]
    sys.exit(not (kept and whole and record["chunks_computed"] >= given.chunks))


if __name__ == "__main__":
    main()
