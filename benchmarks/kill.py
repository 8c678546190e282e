"""Archives survive kill -9: a process that writes one is killed at random moments, another goes on, bytes are compared.

    python benchmarks/kill.py [--stores 20] [--seed 0] [--json OUT]

Each store's writer is killed once, or more often, another finishes in the end; then every file is compared with that
of a store that was never interrupted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tqdm

BUDGET = 2**20  # bytes of a region: many small ones


def prepare(folder: Path, *, times: int = 1200, seed: int = 0) -> None:
    """Write a coarse field and a model for it; their result takes several regions."""
    import xsuperres

    fine = xsuperres.testing.toy_field(time=8, y=48, x=64, seed=seed)
    settings: dict[str, Any] = {"network": {"width": 4, "depth": 1, "head_width": 4}, "optimization": {"max_steps": 2}}
    model = fine.sr.fit(2, validation=None, progress=False, activate=False, **settings)
    model.save(folder / "model.safetensors")
    coarse = xsuperres.testing.toy_field(time=times, y=48, x=64, seed=seed).sr.coarsen(2)
    coarse.drop_vars(["elevation", "land_fraction"]).to_dataset().to_netcdf(folder / "coarse.nc", engine="h5netcdf")


def write(folder: Path, name: str) -> None:
    """Write the archive, or what is missing of it."""
    import torch
    import xarray as xr

    import xsuperres

    torch.set_num_threads(1)
    model = xsuperres.load_model(folder / "model.safetensors")
    with xr.open_dataset(folder / "coarse.nc", engine="h5netcdf") as ds:
        ds.tas.load().sr.downscale_to_zarr(folder / name, model, memory_budget=BUDGET, progress=False)


def _work(folder: Path, name: str, ready: Connection) -> None:
    ready.send("ready")
    write(folder, name)
    ready.send("done")


class Killer:
    """Starts processes that write, and kills them; they are forked off one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        modules = ["torch", "dask.array", "zarr", "h5netcdf", "cf_xarray", "xsuperres.inference.store"]
        self.context.set_forkserver_preload([*modules, "xsuperres.inference.chunked", "xarray.backends.zarr"])

    def run(self, name: str, seconds: float | None = None) -> float | None:
        """Write until done, or kill the process after `seconds`; return how long it took, None if it was killed."""
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(self.folder, name, theirs))
        process.start()
        theirs.close()
        ours.recv()
        start = time.perf_counter()
        done = ours.poll(seconds)
        took = time.perf_counter() - start
        process.kill()  # SIGKILL
        process.join()
        if not done:
            return None
        ours.recv()
        return took


def contents(store: Path) -> dict[str, bytes]:
    """Return every file of a store by its path."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def difference(first: dict[str, bytes], second: dict[str, bytes]) -> list[str]:
    """Return the paths that differ; the root's metadata as JSON, whose order zarr leaves open."""
    differ = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    return [n for n in differ if n != "zarr.json" or json.loads(first[n]) != json.loads(second[n])]


def survive(folder: Path, stores: int, seed: int) -> dict[str, Any]:
    """Kill the writers of so many stores, each at least once; return how many are those of no kill in the end."""
    killer, moments = Killer(folder), random.Random(seed)
    killer.run("never.zarr")  # compiles and caches what the first run does
    whole = contents(folder / "never.zarr")
    seconds = killer.run("timed.zarr")
    assert seconds is not None
    done_before: list[int | None] = []
    killed, differing, tries = 0, [], 0
    with tqdm.tqdm(total=stores, unit=" stores") as bar:
        while killed < stores:
            name = f"killed{tries}.zarr"
            tries += 1
            if killer.run(name, moments.uniform(0, seconds)) is not None:
                continue  # it was faster
            again = True
            while again:
                done_before.append(_done(folder / name))
                again = moments.random() < 0.3 and killer.run(name, moments.uniform(0, seconds)) is None
            killer.run(name)
            differing += [f"{name}: {path}" for path in difference(contents(folder / name), whole)]
            killed += 1
            bar.update()
    return {
        "stores": killed,
        "identical": killed - len({line.split(":")[0] for line in differing}),
        "kills": len(done_before),
        "seed": seed,
        "seconds_of_a_run": round(seconds, 2),
        "blocks_done_at_kills": done_before,
        "differing": differing[:10],
        "files": len(whole),
    }


def _done(store: Path) -> int | None:
    """Return how many blocks were done when the writer was killed; None before or after there is a record of that."""
    path = store / "zarr.json"
    record = json.loads(path.read_text())["attributes"].get("xsuperres_record") if path.exists() else None
    return None if record is None else json.loads(record)["done"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stores", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default=None)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        record = survive(Path(name), given.stores, given.seed)
    text = json.dumps(record, indent=2)
    if given.json:
        Path(given.json).write_text(text + "\n")
    print(text)
    sys.exit(record["identical"] != record["stores"])


if __name__ == "__main__":
    main()
