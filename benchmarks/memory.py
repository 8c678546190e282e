"""Peak memory of Zarr -> downscale -> Zarr does not grow with the length of the archive.

    python benchmarks/memory.py [--json OUT]

The 1 degree field is the coarse input, 24 and 240 times, each in a fresh process. As a control the same is done with
the input loaded first, which must grow.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 1.15


def prepare(folder: Path) -> None:
    """Write the two archives and a model without static fields."""
    import xarray as xr

    import xsuperres

    tas = xsuperres.tutorial.open_dataset("era5_global_1deg").tas.load()
    small = {"width": 4, "depth": 1, "head_width": 4}  # memory of blocks, not speed, is the question
    settings = {"network": small, "optimization": {"max_steps": 20}, "data": {"domain": "open"}}
    tas.sr.fit(4, static=[], validation=None, progress=False, **settings).save(folder / "model.safetensors")
    step = tas.time.values[-1] - tas.time.values[0] + tas.time.diff("time").values[0]
    for copies in (1, 10):
        parts = [tas.assign_coords(time=tas.time + step * copy) for copy in range(copies)]
        archive = xr.concat(parts, "time").drop_vars(["elevation", "land_fraction"]).to_dataset()
        archive.chunk(time=4).to_zarr(folder / f"coarse{copies}.zarr", consolidated=False)


def downscale(folder: Path, copies: int, *, load: bool) -> None:
    """Downscale one archive; print peak memory in MiB."""
    import xarray as xr

    import xsuperres

    model = xsuperres.load_model(folder / "model.safetensors")
    coarse = xr.open_zarr(folder / f"coarse{copies}.zarr", consolidated=False).tas
    if load:
        coarse = coarse.load().chunk(time=4)
        held = coarse.sr.downscale(model).load()  # what a tool without lazy output does
        held.to_dataset().to_zarr(folder / f"loaded{copies}.zarr", consolidated=False)
    else:
        fine = coarse.sr.downscale(model)
        fine.to_dataset().to_zarr(folder / f"fine{copies}.zarr", consolidated=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(folder: Path, copies: int, how: str) -> float:
    """Return the peak memory in MiB of a fresh process."""
    command = [sys.executable, __file__, "--worker", str(folder), str(copies), how]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=None)
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "COPIES", "HOW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        folder, copies, how = arguments.worker
        downscale(Path(folder), int(copies), load=how == "loaded")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        peaks = {how: [round(peak(folder, copies, how)) for copies in (1, 10)] for how in ("lazy", "loaded")}
    growth = {how: round(pair[1] / pair[0], 3) for how, pair in peaks.items()}
    record = {
        "times": [24, 240],
        "peak_mib": peaks,
        "growth": growth,
        "limit": LIMIT,
        "lazy_within_limit": growth["lazy"] < LIMIT,
        "control_breaks_limit": growth["loaded"] >= LIMIT,
    }
    text = json.dumps(record, indent=2)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    print(text)
    sys.exit(not (record["lazy_within_limit"] and record["control_breaks_limit"]))


if __name__ == "__main__":
    main()
