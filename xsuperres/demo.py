"""The first run: train on real ERA5, downscale a region the network never saw, score it, draw it.

``python -m xsuperres.demo`` (or ``make demo``) writes ``demo_output/``: the model file, the fine field as CF netCDF,
``score.json``, ``maps.png`` and ``history.png``.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from xsuperres import tutorial
from xsuperres.model.artefact import SRModel
from xsuperres.samples.holdout import cut_band
from xsuperres.verify import plots
from xsuperres.verify.baselines import baseline_fields
from xsuperres.verify.score_table import score_table

__all__ = ["main", "score_record"]

BAND = (180.0, 288.0)
SCALE = 4
STATIC = ["elevation", "land_fraction"]


def score_record(table: xr.Dataset, model: SRModel, clock: dict[str, float]) -> dict[str, object]:
    """Return what ``score.json`` holds: RMSE by method, ratio to bicubic, cost, versions."""
    rmse = {str(m): float(table.rmse.sel(product=m, region="all")) for m in table["product"].values}
    return {
        "rmse": rmse,
        "ratio_to_bicubic": rmse["network"] / rmse["bicubic"],
        "units": table.rmse.attrs.get("units"),
        **clock,
        "steps": model.training.steps,
        "seed": model.training.seed,
        "versions": model.training.versions,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Run the demo.

    Parameters
    ----------
    argv : sequence of str, optional
        Command-line arguments; by default those of the process.

    Returns
    -------
    dict
        The content of ``score.json``.
    """
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.WARNING)
    start = time.perf_counter(), time.process_time()
    tas = tutorial.open_dataset("era5_global_1deg").tas.load()
    globe, band = cut_band(tas, *BAND)
    print(f"Training on ERA5 2 m temperature, the globe less {BAND[0]:g}E-{BAND[1]:g}E, {SCALE} x coarsened ...")
    model = globe.sr.fit(
        SCALE,
        validation="space",
        optimization={"max_steps": arguments.steps},
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    coarse = band.drop_vars(STATIC).sr.coarsen(SCALE)
    fine = coarse.sr.downscale(model, static=tas)  # of which the static fields of the band are cut
    seconds = {"cpu_seconds": time.process_time() - start[1], "wall_seconds": time.perf_counter() - start[0]}
    table = fine.sr.score(band, coarse=coarse)
    record = score_record(table, model, {name: round(value, 1) for name, value in seconds.items()})
    folder = Path(arguments.output)
    _write(folder, model, fine, record)
    _draw(folder, model, coarse, fine, band)
    print(f"\n{model}\n\nOn the band {BAND[0]:g}E-{BAND[1]:g}E, which it never saw:\n\n{score_table(table)}\n")
    print(f"Wrote model, netCDF, score.json, maps.png and history.png to {folder}/")
    return record


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m xsuperres.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="demo_output", help="folder to write to")
    parser.add_argument("--steps", type=int, default=900, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def _write(folder: Path, model: SRModel, fine: xr.DataArray, record: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "tas_x4.safetensors")
    fine.sr.with_bounds().to_netcdf(folder / "tas_fine.nc", engine="h5netcdf")
    (folder / "score.json").write_text(json.dumps(record, indent=2) + "\n")


def _draw(folder: Path, model: SRModel, coarse: xr.DataArray, fine: xr.DataArray, truth: xr.DataArray) -> None:
    """Draw one time step, and the training history."""
    at = {"time": truth.sizes["time"] // 2}
    bicubic = baseline_fields(coarse, truth, names=["bicubic"])["bicubic"]
    fields = [field.isel(at) for field in (coarse, bicubic, fine, truth)]
    plots.plot_maps(*fields).savefig(folder / "maps.png", dpi=120)
    plots.plot_history(model).savefig(folder / "history.png", dpi=120)


if __name__ == "__main__":
    main()
