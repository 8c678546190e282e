"""How near inference is to the hardware's limit, how it scales, and what its graphs cost.

    python benchmarks/inference.py [--json OUT] [--only speed,graph,...]

All ratios are from one run: other work on the machine moves both sides. Times are CPU seconds of one thread, the best
of several, except those of processes side by side, which are wall seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tqdm
import xarray as xr

import xsuperres
from xsuperres.errors import XSuperResWarning
from xsuperres.inference.allocator import keep_freed_memory
from xsuperres.inference.prepared import prepare, sub_batch
from xsuperres.testing import toy_field

SCALE, SIZE, BATCH, FIELDS = 4, 32, 16, 128
TRIALS = 5
CHUNKS = 100_000
ROUNDS = 16  # of all fields, where processes are compared


def best(*functions: Callable[[], object]) -> list[float]:
    """Return the least CPU seconds of each function; they take turns, so that a busy spell hits all."""
    for function in functions:
        function()
    found = [float("inf")] * len(functions)
    for _ in range(TRIALS):
        for index, function in enumerate(functions):
            start = time.process_time()
            function()
            found[index] = min(found[index], time.process_time() - start)
    return found


def fitted(**options: object) -> tuple[xr.DataArray, xsuperres.SRModel]:
    """Return coarse fields in memory, and an untrained model of their domain: speed does not depend on weights."""
    fine = toy_field(time=8, y=SIZE * SCALE, x=SIZE * SCALE)
    quiet = {"validation": None, "progress": False, "activate": False, "optimization": {"max_steps": 1}}
    model = fine.sr.fit(SCALE, **quiet, **options)
    coarse = fine.sr.coarsen(SCALE)
    copies = [coarse.assign_coords(time=coarse.time + np.timedelta64(8 * i, "D")) for i in range(FIELDS // 8)]
    return xr.concat(copies, "time").drop_vars(["elevation", "land_fraction"]), model


def tensors(model: xsuperres.SRModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random coarse and fine channels as the network is given them."""
    spec, wide = model.spec, SIZE * SCALE
    coarse = torch.randn(FIELDS, spec.inputs, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    fine = torch.randn(1, spec.statics, wide, wide).contiguous(memory_format=torch.channels_last)
    return coarse, fine


def bare(model: xsuperres.SRModel, batch: int) -> Callable[[], None]:
    """Return a loop of the model's network over tensors that are ready."""
    coarse, fine = tensors(model)

    @torch.inference_mode()
    def loop() -> None:
        for start in range(0, FIELDS, batch):
            model.network(coarse[start : start + batch], fine)

    return loop


def convolutions(
    model: xsuperres.SRModel, batch: int, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], None], float]:
    """Return a loop of nothing but the convolutions of that loop, and their floating-point operations."""
    seen: list[tuple[torch.nn.Module, torch.Tensor]] = []
    flops = 0.0
    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)

    def record(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal flops
        seen.append((module, torch.randn_like(inputs[0]).to(dtype)))
        cells = output if isinstance(module, torch.nn.Conv2d) else inputs[0]
        flops += 2.0 * cells.shape[0] * cells.shape[2] * cells.shape[3] * module.weight.numel()

    hooks = [m.register_forward_hook(record) for m in model.network.modules() if isinstance(m, kinds)]
    coarse, fine = tensors(model)
    model.network(coarse[:batch], fine)  # as in training, where each is a module of torch
    for hook in hooks:
        hook.remove()
    seen = [(copy.deepcopy(module).to(dtype), values) for module, values in seen]

    @torch.inference_mode()
    def loop() -> None:
        for module, values in seen:
            if len(values) > 1 or batch == 1:
                for _ in range(FIELDS // batch):
                    module(values)
            else:  # fixed channels, once for all fields
                module(values)

    return loop, flops * FIELDS / batch


def speed() -> dict[str, object]:
    """Compare `.sr.downscale` in memory with the network alone, its convolutions alone, and matrix products."""
    coarse, model = fitted()
    ours_batch = sub_batch(prepare(model), SIZE * SIZE)
    loop, flops = convolutions(model, BATCH)
    square = torch.randn(1024, 1024)
    ours, alone, same, convs, product = best(
        lambda: coarse.sr.downscale(model), bare(model, BATCH), bare(model, ours_batch), loop, lambda: square @ square
    )
    peak = 2 * 1024**3 / product
    return {
        "network": f"{model.spec.backbone}, {model.spec.upsampling}",
        "milliseconds_per_field": round(1e3 * ours / FIELDS, 3),
        "of_bare_loop": round(alone / ours, 3),
        "of_bare_loop_limit": 0.93,
        f"of_bare_loop_in_batches_of_{ours_batch}": round(same / ours, 3),
        "of_convolutions_alone": round(convs / ours, 3),
        "of_convolutions_alone_limit": 0.85,
        "of_sgemm": round(flops / ours / peak, 3),
        "sgemm_gflops": round(peak / 1e9, 1),
    }


def precision() -> dict[str, object]:
    """Compare bf16 with fp32: speed of the default and of a wide network, and the error of a trained one."""
    table = {}
    for name, size in (("default", {}), ("wide", {"width": 64, "depth": 4, "head_width": 64})):
        coarse, model = fitted(network=size)
        coarse = coarse.isel(time=slice(None if name == "default" else FIELDS // 8))
        batch, kinds = sub_batch(prepare(model), SIZE * SIZE), (torch.float32, torch.bfloat16)
        runs = [lambda p=p, c=coarse, m=model: c.sr.downscale(m, precision=p) for p in ("fp32", "bf16")]
        full, half, *alone = best(*runs, *(convolutions(model, batch, dtype)[0] for dtype in kinds))
        table[name] = {
            "speedup": round(full / half, 2),
            "speedup_of_its_convolutions_alone": round(alone[0] / alone[1], 2),
        }
    fine = xsuperres.tutorial.open_dataset("era5_global_1deg").tas
    early, late = fine.isel(time=slice(16)), fine.isel(time=slice(17, None)).sr.coarsen(4)
    trained = early.sr.fit(4, optimization={"max_steps": 300}, progress=False, activate=False)
    exact, near = (late.sr.downscale(trained, precision=p) for p in ("fp32", "bf16"))
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "bf16": table,
        "bf16_speedup_limit": 2.0,
        "bf16_error_in_sd": round(float(abs(near - exact).max()) / trained.scaling.sd, 5),
        "bf16_error_limit": 0.02,
        "cpu_has": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
    }


def windows() -> dict[str, object]:
    """Compare networks with a time window with their spatial twins, per output step."""
    table = {}
    for upsampling in ("interpolation", "subpixel", "resize", "deconvolution"):
        pairs = [fitted(upsampling=upsampling, time_window=n) for n in (None, 2, 4, 8)]
        base, *rest = best(*(lambda c=coarse, m=model: c.sr.downscale(m) for coarse, model in pairs))
        table[upsampling] = {f"n={n}": round(cost / base, 2) for n, cost in zip((2, 4, 8), rest, strict=True)}
    return {"cost": table, "limits": {"n=2": 1.35, "n=4": 1.6, "n=8": 2.4}}


def graph() -> dict[str, object]:
    """Build and optimise graphs, beside plain overlap + map_blocks + trim on the same chunks."""
    import dask
    import dask.array
    from distributed.protocol import dumps

    from xsuperres.tiles import AxisPlan, map_tiles

    def ours(array: dask.array.Array, plans: list[AxisPlan]) -> dask.array.Array:
        return dask.optimize(map_tiles(_refine, array, plans, dtype=array.dtype, token="benchmark"))[0]

    def plain(array: dask.array.Array, plans: list[AxisPlan]) -> dask.array.Array:
        edge = {axis: "periodic" if plan.periodic else "none" for axis, plan in enumerate(plans)}
        depth = {axis: plan.halo if plan.consumed else plan.halo[0] for axis, plan in enumerate(plans)}
        wide = dask.array.overlap.overlap(array, depth=depth, boundary=edge, allow_rechunk=False)
        scales = [plan.scale for plan in plans]
        chunks = tuple(tuple(size * s for size in sizes) for sizes, s in zip(wide.chunks, scales, strict=True))
        fine = dask.array.map_blocks(_refine, wide, chunks=chunks, dtype=array.dtype, meta=array._meta)
        outer = {axis: plan.halo if plan.consumed else plan.halo[0] * plan.scale for axis, plan in enumerate(plans)}
        return dask.optimize(dask.array.overlap.trim_overlap(fine, depth=outer, boundary=edge))[0]

    table = {}
    for name, chunks, (time_halo, halo, periodic) in (
        ("time", ((1,) * 2000, (45,), (90,)), (0, 3, True)),
        ("space", ((10,) * 40, (90,) * 5, (90,) * 5), (0, 3, False)),
        ("space, periodic", ((10,) * 40, (90,) * 5, (90,) * 5), (0, 3, True)),
        ("space and time", ((10,) * 40, (90,) * 5, (90,) * 5), (3, 3, False)),
        ("space and time, periodic", ((10,) * 40, (90,) * 5, (90,) * 5), (3, 3, True)),
    ):
        array = dask.array.zeros([sum(sizes) for sizes in chunks], chunks=chunks, dtype=np.float32)
        plans = [
            AxisPlan((time_halo, 0), consumed=time_halo > 0),
            AxisPlan((halo, halo), False, SCALE),
            AxisPlan((halo, halo), periodic, SCALE),
        ]
        costs = best(lambda a=array, p=plans: ours(a, p), lambda a=array, p=plans: plain(a, p))
        tasks = [len(build(array, plans).__dask_graph__()) / array.npartitions for build in (ours, plain)]
        table[name] = {
            "tasks_per_chunk": round(tasks[0], 2),
            "tasks_per_chunk_of_plain_overlap": round(tasks[1], 2),
            "cpu_time_of_plain_overlap": round(costs[0] / costs[1], 3),
        }
    coarse, model = fitted()
    many = coarse.isel(time=np.zeros(CHUNKS, int)).assign_coords(time=np.arange(CHUNKS)).chunk(time=1)
    start = time.process_time()
    lazy = many.sr.downscale(model)
    (optimised,) = dask.optimize(lazy.data)
    spent = time.process_time() - start
    nodes = {key: node for key, node in optimised.__dask_graph__().items() if str(key[0]).startswith("downscale")}
    size = sum(map(len, dumps(dict(list(nodes.items())[:1000])))) / 1000
    return {
        "plain_overlap": table,
        "limits": {"tasks": {"time": 3, "space": 12, "space and time": 20}, "cpu_time_of_plain_overlap": 0.6},
        "chunks": CHUNKS,
        "chunks_per_cpu_second": round(CHUNKS / spent),
        "bytes_per_chunk": round(size),
        "tasks_per_chunk": round(len(optimised.__dask_graph__()) / CHUNKS, 2),
    }


def _refine(block: np.ndarray, *_: object) -> np.ndarray:
    return np.repeat(np.repeat(block, SCALE, -2), SCALE, -1)


def memory() -> dict[str, object]:
    """Measure peak memory from Zarr to Zarr, each size in a fresh process."""
    sizes = (1, 4, 10)
    with tempfile.TemporaryDirectory() as name:
        coarse, model = fitted()
        model.save(f"{name}/model.safetensors")
        for size in sizes:
            parts = [coarse.assign_coords(time=coarse.time + np.timedelta64(9999 * i, "h")) for i in range(4 * size)]
            xr.concat(parts, "time").chunk(time=16).to_dataset().to_zarr(f"{name}/{size}.zarr", consolidated=False)
        peaks = {size: _child("zarr-to-zarr", name, str(size)) for size in sizes}
    growth = {f"{size}x": round(peak / peaks[1], 3) for size, peak in peaks.items()}
    return {"fields": {f"{s}x": 4 * s * FIELDS for s in sizes}, "peak_mib": peaks, "growth": growth, "limit": 1.15}


def zarr_to_zarr(folder: str, size: str) -> None:
    """Downscale one archive; print peak memory in MiB."""
    model = xsuperres.load_model(f"{folder}/model.safetensors")
    coarse = xr.open_zarr(f"{folder}/{size}.zarr", consolidated=False).tas
    coarse.sr.downscale_to_zarr(f"{folder}/fine{size}.zarr", model, progress=False)
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent at the fork
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def workers() -> dict[str, object]:
    """Compare what a second worker gains with what a second bare process gains, and count loads of the model."""
    from distributed import Client, LocalCluster

    from xsuperres.inference.workers import preparations

    coarse, model = fitted()
    folder = tempfile.TemporaryDirectory()
    archive = f"{folder.name}/coarse.zarr"
    xr.concat([coarse] * 2 * ROUNDS, "time").chunk(time=128).to_dataset().to_zarr(archive, consolidated=False)
    many = xr.open_zarr(archive, consolidated=False).tas
    model.save(f"{folder.name}/model.safetensors")
    took: dict[tuple[str, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        runs = {}
        for count in (1, 2):
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None, memory_limit=0)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            mean = many.sr.downscale(model).mean().data
            runs["workers", count] = lambda client=client, mean=mean: _wall(client.compute(mean).result)
            runs["bare", count] = lambda count=count: _side_by_side(folder.name, count)
            runs["workers", count]()  # the model is loaded
        for _ in range(TRIALS):  # in turns, so that a busy spell hits all
            for name, run in runs.items():
                took.setdefault(name, []).append(run())
        loads = sum(sum(found.values()) for found in client.run(preparations).values())
    folder.cleanup()
    least = {name: min(seconds) for name, seconds in took.items()}
    ours, theirs = least["workers", 1] / least["workers", 2], 2 * least["bare", 1] / least["bare", 2]
    return {
        "gain_of_a_second_worker": round(ours, 3),
        "gain_of_a_second_bare_process": round(theirs, 3),
        "ratio": round(ours / theirs, 3),
        "limit": 0.93,
        "seconds": {f"{name}, {count}": round(seconds, 2) for (name, count), seconds in least.items()},
        "worker_processes": 2,
        "model_loads": loads,
    }


def _wall(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _side_by_side(folder: str, count: int) -> float:
    """Return the wall seconds of so many processes that each run the bare loop, the slower one's."""
    command = [sys.executable, __file__, "--child", "loop", folder, ""]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return max(float(process.communicate()[0].split()[-1]) for process in running)


def loop(folder: str, _: str) -> None:
    """Run the bare loop when told to, with our batches and allocator, so that it is as fast; print wall seconds."""
    keep_freed_memory()
    model = xsuperres.load_model(f"{folder}/model.safetensors")
    run = bare(model, sub_batch(prepare(model), SIZE * SIZE))
    run()
    print("ready", flush=True)
    sys.stdin.readline()
    print(_wall(lambda: [run() for _ in range(2 * ROUNDS)]))


def _child(how: str, *arguments: str) -> float:
    command = [sys.executable, __file__, "--child", how, *arguments]
    return round(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]), 1)


SECTIONS = {f.__name__: f for f in (speed, precision, windows, graph, memory, workers)}
CHILDREN = {"zarr-to-zarr": zarr_to_zarr, "loop": loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=None)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", XSuperResWarning)
    if arguments.child:
        CHILDREN[arguments.child[0]](*arguments.child[1:])
        return
    record: dict[str, object] = {}
    for name in tqdm.tqdm(arguments.only.split(","), unit="section"):
        record[name] = SECTIONS[name]()
    record["versions"] = {"xsuperres": xsuperres.__version__, "torch": torch.__version__, "xarray": xr.__version__}
    text = json.dumps(record, indent=2)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
