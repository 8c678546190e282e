"""Skill on regions that were never seen: three bands of longitude of the embedded ERA5, several seeds.

    python benchmarks/bands.py [--budget-seconds 60] [--seeds 3] [--json OUT]

Prints RMSE / bicubic of the network and of the lapse rate for each band held out in turn, and the mean over bands
(median over seeds). Every run is one process with one torch thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from skill import load, run

BANDS = ("0,108", "108,216", "216,324")


def one(case: tuple[str, int, float]) -> dict[str, object]:
    """Return one band's record."""
    band, seed, budget = case
    torch.set_num_threads(1)
    return run(load("era5_global_1deg", "tas", None), 4, f"band:{band}", budget, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", default=None)
    arguments = parser.parse_args()
    cases = [(band, seed, arguments.budget_seconds) for seed in range(arguments.seeds) for band in BANDS]
    with ProcessPoolExecutor(arguments.workers) as pool:
        records = dict(zip(cases, pool.map(one, cases), strict=True))
    text = json.dumps(summary(records), indent=2)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    print(text)


def summary(records: dict[tuple[str, int, float], dict[str, object]]) -> dict[str, object]:
    """Return the table of ratios, its mean over bands, and the median of that over seeds."""
    seeds = sorted({seed for _, seed, _ in records})
    ratio = {(band, seed): record["ratio_to_bicubic"] for (band, seed, _), record in records.items()}
    means = {seed: statistics.fmean(ratio[band, seed] for band in BANDS) for seed in seeds}
    lapse = {b: r["rmse"]["lapse"] / r["rmse"]["bicubic"] for (b, _, _), r in records.items()}
    return {
        "ratio_to_bicubic": {band: [round(ratio[band, seed], 4) for seed in seeds] for band in BANDS},
        "lapse_to_bicubic": {band: round(value, 4) for band, value in lapse.items()},
        "mean_over_bands": {seed: round(mean, 4) for seed, mean in means.items()},
        "median_of_means": round(statistics.median(means.values()), 4),
        "cpu_seconds": [record["cpu_seconds"] for record in records.values()],
        "steps": [record["steps"] for record in records.values()],
        "versions": next(iter(records.values()))["versions"],
    }


if __name__ == "__main__":
    main()
