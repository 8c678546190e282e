"""A build against that of another revision, in turns: what calls cost, and whether results are equal.

    python benchmarks/house.py --against REV [--json OUT] [--only lazy,score,...] [--trials 7]

REV is a git revision, checked out into a temporary worktree, or a folder with a checkout. Each build runs in a process
that imports its own package, with one thread. The two take turns, call by call, after one that warms up; costs are
medians of CPU seconds, and ratios those of this build to the other. The process exits with 1 if a limit is missed.

    lazy         `downscale` of dask-backed data, the graph alone, and the files of the package that it enters
    memory       `downscale` of 1000 fields in memory; the ratio is one of speeds
    score        `score` with all baselines, metrics and regions, and how far the numbers of both are apart
    archive      `downscale_to_zarr` into a store that the same call has finished
    fit          `fit` of 20 steps
    weights      each of the 48 networks after a few steps: weights and results, compared by digest
    files        a model saved by the other build gives the same bits in this one
    derivations  how often each method asks for the grid of a field: in all, and of one DataArray at most
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dask
import numpy as np
import torch
import tqdm
import xarray as xr
from depth import DERIVATIONS, traced

ROOT = Path(__file__).resolve().parents[1]
SCALE = 4
QUIET: dict[str, Any] = {"progress": False, "activate": False}
LIMITS = {
    "lazy": {"cpu_ratio": 0.40, "files_entered": 16},
    "memory": {"speed_ratio": 0.99},
    "score": {"cpu_ratio": 0.15, "largest_relative_difference": 1e-9},
    "archive": {"cpu_ratio": 0.5},
    "fit": {"cpu_ratio": 0.7},
    "weights": {"equal": 48},
    "files": {"equal": True},
}
AT_LEAST = {"speed_ratio", "equal"}  # of the limits; the others are not to be exceeded


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the measured fields are: as reported, or so small that a test can run them."""

    coarse: tuple[int, int, int] = (24, 32, 48)
    scored: tuple[int, int, int] = (24, 128, 128)
    fields: int = 1000
    steps: int = 20
    networks: int = 48


SMALL = Sizes(coarse=(8, 8, 12), scored=(4, 16, 16), fields=6, steps=2, networks=2)


@dataclass(frozen=True)
class Measure:
    """What one build does for a section: work that is timed, and facts that are looked at once."""

    work: Callable[[], object] = lambda: None
    facts: Callable[[], dict[str, Any]] = field(default=dict)


# In the process of one build: `xsuperres` is the one of its PYTHONPATH.


def toy(time: int, y: int, x: int) -> xr.DataArray:
    from xsuperres.testing import toy_field

    return toy_field(time=time, y=y, x=x)


def pair(sizes: Sizes, *, steps: int = 1) -> tuple[xr.DataArray, xr.DataArray, Any]:
    """Return a fine field, its coarsening and a model of the default settings for its fixed domain."""
    times, y, x = sizes.coarse
    fine = toy(times, SCALE * y, SCALE * x)
    model = fine.sr.fit(SCALE, optimization={"max_steps": steps}, validation=None, **QUIET)
    return fine, fine.sr.coarsen(SCALE), model


def package() -> Path:
    import xsuperres

    return Path(xsuperres.__file__).parent


def lazy(sizes: Sizes, _: Path) -> Measure:
    _, coarse, model = pair(sizes)
    chunked = coarse.chunk(time=2)

    def facts() -> dict[str, Any]:
        trace = traced(lambda: chunked.sr.downscale(model), package())
        return {"files": sorted(trace.files), "calls": sum(trace.calls.values())}

    return Measure(lambda: chunked.sr.downscale(model), facts)


def memory(sizes: Sizes, _: Path) -> Measure:
    _, coarse, model = pair(sizes)
    steps = np.arange(sizes.fields)
    many = coarse.isel(time=steps % coarse.sizes["time"])
    many = many.assign_coords(time=coarse.time.values[0] + steps * np.timedelta64(1, "D"))
    return Measure(lambda: many.sr.downscale(model))


def score(sizes: Sizes, folder: Path) -> Measure:
    truth = toy(*sizes.scored)
    model = truth.sr.fit(SCALE, optimization={"max_steps": 20}, validation=None, **QUIET)
    coarse = truth.sr.coarsen(SCALE)
    # A later year: not what was trained on, which would be warned about.
    later = [da.assign_coords(time=da.time + np.timedelta64(400, "D")) for da in (truth + 0.1 * truth.std(), coarse)]
    truth, coarse = later[0].assign_attrs(truth.attrs), later[1]
    fine = coarse.sr.downscale(model)

    def facts() -> dict[str, Any]:
        table = fine.sr.score(truth, coarse=coarse, model=model)
        table.drop_attrs().to_netcdf(folder / "score.nc", engine="h5netcdf")
        return {"calls": sum(traced(work, package()).calls.values())}

    def work() -> xr.Dataset:
        return fine.sr.score(truth, coarse=coarse, model=model)

    return Measure(work, facts)


def archive(sizes: Sizes, folder: Path) -> Measure:
    _, coarse, model = pair(sizes)
    return Measure(lambda: coarse.sr.downscale_to_zarr(str(folder / "finished.zarr"), model, progress=False))


def fit(sizes: Sizes, _: Path) -> Measure:
    times, y, x = sizes.coarse
    fine = toy(times, SCALE * y, SCALE * x)
    return Measure(lambda: fine.sr.fit(SCALE, optimization={"max_steps": sizes.steps}, **QUIET))


THE_48 = list(
    itertools.product(
        ("supervised", "adversarial"),
        (None, 2),
        ("conv", "residual", "dense"),
        ("interpolation", "subpixel", "resize", "deconvolution"),
    )
)


def weights(sizes: Sizes, _: Path) -> Measure:
    fine = toy(6, 6 * SCALE, 8 * SCALE)
    coarse = fine.sr.coarsen(SCALE)

    def facts() -> dict[str, Any]:
        found = {}
        for training, window, backbone, upsampling in THE_48[:: len(THE_48) // sizes.networks]:
            model = fine.sr.fit(
                SCALE,
                training=training,
                time_window=window,
                backbone=backbone,
                upsampling=upsampling,
                sampling={"patch_size": 4, "batch_size": 2},
                optimization={"max_steps": 4, "validations": 2},
                adversarial={"warm_up": 0.3, "width": 8} if training == "adversarial" else None,
                **QUIET,
            )
            name = f"{training}, {upsampling} after {backbone}, window {window}"
            found[name] = [digest_of(model), digest_of_array(coarse.sr.downscale(model).values)]
        return found

    return Measure(facts=facts)


def digest_of(model: Any) -> str:
    """Return the sha256 of all weights by value: the names of modules may change, numbers may not."""
    networks = [network for network in (model.network, model.discriminator) if network is not None]
    tensors = [tensor for network in networks for tensor in network.state_dict().values()]
    return hashlib.sha256("".join(sorted(digest_of_array(tensor.numpy()) for tensor in tensors)).encode()).hexdigest()


def digest_of_array(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()


def files(sizes: Sizes, folder: Path) -> Measure:
    """Save a model and apply it; where the other build has done so, read its file as well."""
    _, coarse, model = pair(sizes, steps=3)
    path = folder / "model.safetensors"

    def facts() -> dict[str, Any]:
        import xsuperres

        model.save(path)
        theirs = folder.parent / "other" / path.name
        loaded = xsuperres.load_model(theirs) if theirs.exists() else model
        return {"result": digest_of_array(coarse.sr.downscale(loaded).values), "weights": digest_of(loaded)}

    return Measure(facts=facts)


def derivations(sizes: Sizes, folder: Path) -> Measure:
    fine, coarse, model = pair(sizes)
    truth = fine.assign_coords(time=fine.time + np.timedelta64(400, "D"))
    later, chunked = coarse.assign_coords(time=truth.time), coarse.chunk(time=2)
    result = later.sr.downscale(model)
    methods = {
        "fit": lambda: fine.sr.fit(SCALE, optimization={"max_steps": 2}, **QUIET),
        "coarsen": lambda: fine.sr.coarsen(SCALE),
        "interpolate": lambda: coarse.sr.interpolate(SCALE),
        "interpolate, like": lambda: coarse.sr.interpolate(SCALE, like=fine),
        "downscale, lazy": lambda: chunked.sr.downscale(model),
        "downscale, in memory": lambda: coarse.sr.downscale(model),
        "score": lambda: result.sr.score(truth, coarse=later, model=model),
        "describe": lambda: coarse.sr.describe(model=model),
        "with_bounds": lambda: coarse.sr.with_bounds(),
        "downscale_to_zarr": lambda: coarse.sr.downscale_to_zarr(str(folder / "new.zarr"), model, progress=False),
        "downscale_to_zarr, finished": lambda: coarse.sr.downscale_to_zarr(
            str(folder / "new.zarr"), model, progress=False
        ),
    }

    def facts() -> dict[str, Any]:
        found = {}
        for method, call in methods.items():
            trace = traced(call, package())
            counts = {name: (sum(trace.derivations.get(name, {}).values()), trace.most(name)) for name in DERIVATIONS}
            found[method] = ", ".join(f"{name} {total} ({most})" for name, (total, most) in counts.items() if total)
        return found

    return Measure(facts=facts)


SECTIONS = {f.__name__: f for f in (lazy, memory, score, archive, fit, weights, files, derivations)}


def serve(root: str, folder: str, sizes: Sizes) -> None:
    """Answer the commands open, time and facts, a line of JSON each, for the build at `root`."""
    if package() != Path(root).resolve() / "xsuperres":
        raise SystemExit(f"Expected to import the package of {root}, got {package()}.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    measures: dict[str, Measure] = {}
    for line in sys.stdin:
        command, section = line.split()
        reply: object = None
        with dask.config.set(scheduler="synchronous"):
            if command == "open":
                measures = {section: SECTIONS[section](sizes, Path(folder))}
                measures[section].work()
            elif command == "time":
                start = time.process_time()
                measures[section].work()
                reply = time.process_time() - start
            else:
                reply = measures[section].facts()
        print(json.dumps(reply), flush=True)


# In the process that compares.


class Build:
    """A process with the package of one build."""

    def __init__(self, root: Path, folder: Path, *, small: bool) -> None:
        folder.mkdir()
        command = [sys.executable, __file__, "--serve", str(root), str(folder), *(["--small"] if small else [])]
        environment = os.environ | {"PYTHONPATH": str(root)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.folder, self.process = folder, subprocess.Popen(command, env=environment, **pipes)

    def ask(self, command: str, section: str) -> Any:
        """Send a command and return its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{command} {section}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"The build failed in {command} {section}; its error is above.")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """Give the root of a revision: a folder as it is, or a git worktree that is removed in the end."""
    if Path(revision).is_dir():
        yield Path(revision).resolve()
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder.resolve()
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def compared(section: str, this: Build, other: Build, trials: int) -> dict[str, Any]:
    """Run a section in both builds and return its figures."""
    builds = {"other": other, "this": this}
    for build in builds.values():
        build.ask("open", section)
    spent: dict[str, list[float]] = {name: [] for name in builds}
    for _ in range(trials if section not in ("weights", "files", "derivations") else 0):
        for name, build in builds.items():
            spent[name].append(build.ask("time", section))
    facts = {name: build.ask("facts", section) for name, build in builds.items()}
    return figures(section, spent, facts, {name: build.folder for name, build in builds.items()})


def figures(
    section: str, spent: dict[str, list[float]], facts: dict[str, Any], folders: dict[str, Path]
) -> dict[str, Any]:
    """Return what is reported of a section."""
    other, this = facts["other"], facts["this"]
    if section == "derivations":
        return {"calls_and_in_brackets_most_of_one_array": {"this": this, "other": other}}
    if section == "files":
        return {"equal": this == other}
    if section == "weights":
        kinds = ("weights", "results")
        differ = {kind: [n for n in other if this[n][at] != other[n][at]] for at, kind in enumerate(kinds)}
        bad = sorted({*differ["weights"], *differ["results"]})
        return {"equal": len(other) - len(bad), "networks": len(other), "differing": differ if bad else {}}
    cost = {name: statistics.median(seconds) for name, seconds in spent.items()}
    in_turn = sorted(mine / theirs for mine, theirs in zip(spent["this"], spent["other"], strict=True))
    found: dict[str, Any] = {"cpu_seconds": {name: round(seconds, 4) for name, seconds in cost.items()}}
    if section == "memory":
        found["speed_ratio"] = round(cost["other"] / cost["this"], 3)
    else:
        found["cpu_ratio"] = round(cost["this"] / cost["other"], 3)
    found["cpu_ratio_from_to"] = [round(in_turn[0], 3), round(in_turn[-1], 3)]
    if section == "lazy":
        found["files_entered"] = len(this["files"])
        found["files"] = {"this": this["files"], "of_the_other": len(other["files"])}
    if "calls" in this:
        found["calls"] = {"this": this["calls"], "other": other["calls"]}
    if section == "score":
        found |= differences(*(folders[name] / "score.nc" for name in ("this", "other")))
    return found


def differences(mine: Path, theirs: Path) -> dict[str, Any]:
    """Compare two tables of scores by their labels."""
    with xr.open_dataset(mine, engine="h5netcdf") as this, xr.open_dataset(theirs, engine="h5netcdf") as other:
        if set(this) != set(other) or this.sizes != other.sizes:
            raise SystemExit(f"Expected the scores {other}, got {this}.")
        by_metric = {}
        for name in other:
            b = other[name].values
            a = this[name].reindex_like(other[name]).transpose(*other[name].dims).values
            if not np.array_equal(np.isnan(a), np.isnan(b)):
                raise SystemExit(f"Values of {name} are missing in other places.")
            apart = np.abs(a - b) / np.maximum(np.abs(b), np.finfo(float).tiny)
            by_metric[str(name)] = float(f"{np.nanmax(np.where(a == b, 0, apart)):.2g}")
    return {"largest_relative_difference": max(by_metric.values()), "relative_difference_by_metric": by_metric}


def missed(record: dict[str, Any]) -> list[str]:
    """Return the limits that do not hold."""
    found = []
    for section, limits in LIMITS.items():
        for name, limit in limits.items() if section in record else ():
            value = record[section][name]
            if value < limit if name in AT_LEAST else value > limit:
                found.append(f"{section}: {name} is {value}, the limit {limit}")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", help="a git revision, or a folder with a checkout")
    parser.add_argument("--json", default=None)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="tiny fields: does it run, not how fast")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve(*given.serve, SMALL if given.small else Sizes())
        return
    if given.against is None:
        parser.error("--against is needed: a git revision, or a folder with a checkout")
    unknown = set(given.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: {sorted(unknown)} are not among {list(SECTIONS)}")
    record: dict[str, Any] = {"against": given.against}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        theirs = stack.enter_context(checkout(given.against, Path(name) / "worktree"))
        builds = [
            Build(root, Path(name) / label, small=given.small) for label, root in (("other", theirs), ("this", ROOT))
        ]
        for build in builds:
            stack.callback(build.close)
        for section in tqdm.tqdm(given.only.split(","), unit="section"):
            found = compared(section, builds[1], builds[0], given.trials)
            record[section] = found | {"limits": LIMITS[section]} if section in LIMITS else found
    if not given.small:
        record["missed"] = missed(record)
    record["versions"] = {"torch": torch.__version__, "xarray": xr.__version__, "numpy": np.__version__}
    text = json.dumps(record, indent=2)
    if given.json:
        Path(given.json).write_text(text + "\n")
    print(text)
    sys.exit(bool(record.get("missed")))


if __name__ == "__main__":
    main()
