"""How well a network with default settings does on any netCDF file, beside every baseline that is defined.

    python benchmarks/skill.py --data FILE.nc --variable V --scale S [--static NAMES...] \
        --split time:0.8|band:LON0,LON1 --budget-seconds N [--seed K] --json OUT

A time split trains on the first part of the time axis and scores on the rest (one step between them is left out); a
band split trains on the domain less a band of longitudes, which is scored. What scale x scale cells do not tile is cut
off, and the sizes are written down. ``fit`` gets N process CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import xarray as xr

import xsuperres
from xsuperres.demo import score_record
from xsuperres.errors import DataError
from xsuperres.fields.grid import find_axes
from xsuperres.samples.holdout import cut_band, whole_cells


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Run one case and write its JSON."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    da = load(arguments.data, arguments.variable, arguments.static)
    settings = {} if arguments.static is None else {"static": arguments.static}
    record = run(da, arguments.scale, arguments.split, arguments.budget_seconds, seed=arguments.seed, **settings)
    text = json.dumps(record, indent=2)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    print(text)
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="netCDF file, or the name of an embedded set")
    parser.add_argument("--variable", required=True)
    parser.add_argument("--scale", type=int, required=True)
    parser.add_argument("--static", nargs="*", default=None, help="names of 2-D fields in the file")
    parser.add_argument("--split", required=True, help="time:FRACTION or band:LON0,LON1")
    parser.add_argument("--budget-seconds", type=float, required=True, help="process CPU seconds of fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", default=None)
    return parser.parse_args(argv)


def load(path: str, variable: str, static: list[str] | None) -> xr.DataArray:
    """Return a variable in memory, with the static fields that are named, or ride along, as coordinates."""
    ds = xr.open_dataset(path) if Path(path).exists() else xsuperres.tutorial.open_dataset(path)
    da = ds[variable]
    for name in static or []:
        if name not in da.coords:
            da = da.assign_coords({name: (ds[name].squeeze(drop=True).dims, ds[name].squeeze().values, ds[name].attrs)})
    da = da.load()
    return da if da.dtype.kind == "f" and da.dtype.itemsize >= 4 else da.astype("float32")


def divide(da: xr.DataArray, split: str, scale: int) -> tuple[xr.DataArray, xr.DataArray, str]:
    """Return training and test data, each cut to whole coarse cells, and the kind of split."""
    kind, _, value = split.partition(":")
    if kind == "band":
        train, test = cut_band(da, *map(float, value.split(",")))
    elif kind == "time":
        train, test = cut_time(da, float(value))
    else:
        raise SystemExit(f"--split must be time:FRACTION or band:LON0,LON1, got {split!r}")
    return whole_cells(train, scale), whole_cells(test, scale), kind


def cut_time(da: xr.DataArray, fraction: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the first part of the time axis, and the rest less one step between them."""
    dim = find_axes(da).time
    if dim is None or da.sizes[dim] < 3:
        raise SystemExit(f"--split time:FRACTION needs at least 3 times, the data have {dict(da.sizes)}")
    count = da.sizes[dim]
    last = min(max(1, math.floor(fraction * count + 1e-9)), count - 2)
    return da.isel({dim: slice(0, last)}), da.isel({dim: slice(last + 1, None)})


def run(da: xr.DataArray, scale: int, split: str, budget: float, *, seed: int = 0, **settings) -> dict[str, object]:
    """Train, downscale the held-out data, and return the content of score.json."""
    train, test, kind = divide(da, split, scale)
    start = time.process_time(), time.perf_counter()
    settings["optimization"] = {"max_cpu_seconds": budget, **settings.get("optimization", {})}
    model = fit_for(kind, train, scale, seed=seed, progress=False, **settings)
    used = time.process_time() - start[0], time.perf_counter() - start[1]
    names = list(model.static_scaling.names)
    coarse = test.drop_vars(names).sr.coarsen(scale)
    fine = coarse.sr.downscale(model, static=test if kind == "band" and names else None)
    table = fine.sr.score(test, coarse=coarse)
    clock = {"cpu_seconds": round(used[0], 1), "wall_seconds": round(used[1], 1)}
    record = {**score_record(table, model, clock), "split": split, "validation": model.training.validation}
    return record | {"sizes": {"data": dict(da.sizes), "train": dict(train.sizes), "test": dict(test.sizes)}}


def fit_for(kind: str, train: xr.DataArray, scale: int, **settings) -> xsuperres.SRModel:
    """Return a model for another time, or for another domain: validated in space, if the domain is wide enough."""
    if kind == "time" or "validation" in settings:
        return train.sr.fit(scale, **settings)
    try:
        return train.sr.fit(scale, validation="space", **settings)
    except DataError:
        enough = train.sizes.get(find_axes(train).time, 1) > 2
        data = {**settings.pop("data", {}), "domain": "open"}
        return train.sr.fit(scale, validation=0.2 if enough else None, data=data, **settings)


if __name__ == "__main__":
    main()
