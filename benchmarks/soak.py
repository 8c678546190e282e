"""A long run on a cluster: many small chunks, workers killed on the way; no task is lost, no memory grows.

    python benchmarks/soak.py [--chunks 100000] [--workers 4] [--kills 3] [--seed 0] [--json OUT]

The chunks come as a hundred graphs, one after the other, as the regions of an archive do. Memory is the resident set of
the workers that live from the first chunk to the last, its mean during the last tenth against that during the first.
Two things that dask's workers gather for long, up to a limit, whatever they compute, are as in a cluster that has run
for days: the names of the last 100,000 tasks (`dask.utils.key_split`) are there from the start, and there is no
profiler, which keeps an hour of samples.
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
GRAPHS, PARTS = 100, 10


def fitted() -> tuple[xr.DataArray, xsuperres.SRModel]:
    """Return coarse fields, and a model of their domain, hardly trained."""
    fine = toy_field(time=KINDS, y=32, x=32)
    settings: dict[str, Any] = {"network": {"width": 4, "depth": 1, "head_width": 4}, "optimization": {"max_steps": 20}}
    model = fine.sr.fit(2, validation=None, progress=False, activate=False, **settings)
    return fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"]), model


def series(like: xr.DataArray, steps: np.ndarray) -> xr.DataArray:
    """Return these steps of an endless series, lazy, one in a chunk, each made where it is needed."""
    import dask.array

    shape = (len(steps), *like.shape[1:])
    chunks = dask.array.core.normalize_chunks((1, -1, -1), shape)
    data = dask.array.map_blocks(_step, int(steps[0]), shape=shape[1:], chunks=chunks, dtype=like.dtype)
    hours = like.time.values[0] + steps * np.timedelta64(1, "h")
    coords = {"time": hours, **{dim: like[dim] for dim in like.dims[1:]}}
    return xr.DataArray(data, coords, like.dims, like.name, like.attrs)


def _step(first: int, *, shape: tuple[int, int], block_id: tuple[int, ...] = (0,)) -> np.ndarray:
    """Return a field (1, *shape) of a wave, one of `KINDS`."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    wave = (first + block_id[0]) % KINDS
    return np.float32(280 + 10 * np.sin(x + wave) * np.cos(y - wave))[None]


def remember_names() -> None:
    """Fill, in a worker, dask's cache of tasks' names."""
    from dask.utils import key_split

    for number in range(key_split.cache_info().maxsize):
        key_split((f"downscale-step-sum-{number:032x}", number, 0, 0))


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

    def mebibytes(self) -> dict[int, list[float]]:
        """Return the mean memory during each part, of the workers that live from the first to the last."""
        found = {}
        for process, samples in self.seen.items():
            parts = [[memory for part, memory in samples if part == which] for which in range(PARTS)]
            if all(parts):
                found[process] = [round(float(np.mean(part)) / 2**20, 1) for part in parts]
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
    waves = series(coarse, np.arange(KINDS)).compute().sr.downscale(model, check_range="ignore")
    sums_of_waves = waves.astype(np.float64).sum(("lat", "lon")).values
    expected = float(np.bincount(np.arange(chunks) % KINDS, minlength=KINDS) @ sums_of_waves)
    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        watcher = Watcher(cluster, chunks=chunks, kills=kills, seed=seed)
        cluster.scheduler.add_plugin(Counter())
        client.run(remember_names)
        start = time.perf_counter()
        watcher.start()
        total = 0.0
        for number, steps in enumerate(np.array_split(np.arange(chunks), GRAPHS)):
            watcher.part = number * PARTS // GRAPHS
            fine = series(coarse, steps).sr.downscale(model, check_range="ignore").data.astype(np.float64)
            total += float(client.compute(fine.sum(split_every={0: 100, 1: 2, 2: 2})).result())
        seconds = time.perf_counter() - start
        watcher.over.set()
        watcher.join()
        loads = client.run(preparations)
    mebibytes = list(watcher.mebibytes().values())
    return {
        "chunks": chunks,
        "chunks_computed": watcher.done,  # more than there are: what a killed worker held is computed again
        "seconds": round(seconds),
        "workers": workers,
        "killed_after": watcher.killed_after,
        "relative_error_of_the_sum": abs(total / expected - 1),
        "relative_error_limit": 1e-7,
        "growth_of_memory": [round(tenths[-1] / tenths[0], 3) for tenths in mebibytes],
        "growth_limit": 1.10,
        "mebibytes_by_tenths": mebibytes,
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
