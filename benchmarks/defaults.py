"""What the defaults rest on: networks and settings at equal CPU time on the embedded data.

    python benchmarks/defaults.py [--budget-seconds 30] [--seeds 2] [--json OUT] [--markdown benchmarks/defaults.md]

Every run is one process with one torch thread, `fit` gets the same process CPU seconds. Scores are RMSE / bicubic on
data that were held out: two bands of longitude (ERA5), the last third of the times (ERA5, HadGEM2).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
import tqdm
from skill import load, run

SPLITS = {
    "band 180E-288E": ("era5_global_1deg", "band:180,288"),
    "band 0-108E": ("era5_global_1deg", "band:0,108"),
    "ERA5 time 16/7": ("era5_global_1deg", "time:0.7"),
    "HadGEM2 time 70/30": ("hadgem2_north_america", "time:0.7"),
}
NETWORKS = {
    f"{backbone} + {upsampling}": {"backbone": backbone, "upsampling": upsampling}
    for upsampling, backbone in itertools.product(
        ("interpolation", "subpixel", "resize", "deconvolution"), ("conv", "residual", "dense")
    )
}
WIDER = {"network": {"width": 32, "depth": 3}}
SETTINGS = {
    "subpixel, width 32, depth 3": {"upsampling": "subpixel", **WIDER},
    "width 24, depth 3": {"network": {"width": 24, "depth": 3}},
    "width 8, depth 2": {"network": {"width": 8, "depth": 2, "head_width": 8}},
    "learning rate 3e-3": {"optimization": {"learning_rate": 3e-3}},
    "learning rate 3e-4": {"optimization": {"learning_rate": 3e-4}},
    "full fields": {"sampling": {"patch_size": None, "batch_size": 1}},
    "patches of 8": {"sampling": {"patch_size": 8, "batch_size": 8}},
    "loss mae": {"optimization": {"loss": "mae"}},
    "value, not contrast, on open domains": {"data": {"contrast_radius": 0}},
    "flips in x and y": {"sampling": {"flip": ("x", "y")}},
    "bicubic skip": {"network": {"skip": "bicubic"}},
    "no static fields": {"static": []},
}
CASES = {**NETWORKS, **SETTINGS}


def one(case: tuple[str, str, int, float]) -> dict[str, object]:
    """Return one run's record."""
    name, split, seed, budget = case
    torch.set_num_threads(1)
    data, cut = SPLITS[split]
    return run(load(data, "tas", None), 4, cut, budget, seed=seed, **CASES[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--json", default=None)
    parser.add_argument("--markdown", default=None)
    arguments = parser.parse_args()
    cases = [
        (name, split, seed, arguments.budget_seconds)
        for name in arguments.only
        for split in SPLITS
        for seed in range(arguments.seeds)
    ]
    rows = measure(cases, arguments.workers, arguments.json)
    text = table(rows, arguments.budget_seconds)
    if arguments.markdown:
        Path(arguments.markdown).write_text(text)
    print(text)


def measure(cases: list[tuple[str, str, int, float]], workers: int, path: str | None) -> list[dict]:
    """Run every case, each in a process of its own; what `path` already holds is not run again."""
    kept = json.loads(Path(path).read_text()) if path and Path(path).exists() else []
    found = {(row["case"], row["split"], row["seed"], row["budget"]): row for row in kept}
    left = [case for case in cases if case not in found]
    with ProcessPoolExecutor(workers, max_tasks_per_child=1) as pool:
        pending = {pool.submit(one, case): case for case in left}
        for future in tqdm.tqdm(as_completed(pending), total=len(pending), unit="fit"):
            case = pending[future]
            names = dict(zip(("case", "split", "seed", "budget"), case, strict=True))
            found[case] = {**future.result(), **names}
            if path:
                Path(path).write_text(json.dumps(list(found.values()), indent=1) + "\n")
    return [found[case] for case in cases]


def table(rows: list[dict], budget: float) -> str:
    """Return the Markdown table: mean over seeds, steps in brackets."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        "# What the defaults rest on",
        "",
        f"RMSE / bicubic on held-out data, scale 4, `fit` with {budget:g} process CPU seconds and one torch thread, "
        f"mean of {seeds} seeds; in brackets thousands of steps. Written by `benchmarks/defaults.py`; the defaults are "
        "the line residual + interpolation.",
        "",
        "| network or setting | " + " | ".join(SPLITS) + " | mean |",
        "|---|" + "---|" * (len(SPLITS) + 1),
    ]
    for method in ("lapse", "static_regression", "delta", "regression"):
        values = [ratio(rows, "residual + interpolation", split, method) for split in SPLITS]
        lines.append(f"| *{method}* | " + " | ".join("" if v is None else f"{v:.3f}" for v in values) + " | |")
    for case in dict.fromkeys(row["case"] for row in rows):
        values = [ratio(rows, case, split, "network") for split in SPLITS]
        steps = [statistics.fmean(steps_of(rows, case, split)) / 1000 for split in SPLITS]
        cells = [f"{value:.3f} ({count:.1f})" for value, count in zip(values, steps, strict=True)]
        lines.append(f"| {case} | " + " | ".join(cells) + f" | {statistics.fmean(values):.4f} |")
    versions = rows[0]["versions"]
    lines += ["", "Versions: " + ", ".join(f"{name} {value}" for name, value in versions.items()) + "."]
    return "\n".join(lines) + "\n"


def ratio(rows: list[dict], case: str, split: str, method: str) -> float | None:
    """Return RMSE of a method / RMSE of bicubic, mean over seeds, or None where it is not defined."""
    found = [row["rmse"] for row in rows if (row["case"], row["split"]) == (case, split)]
    return statistics.fmean(r[method] / r["bicubic"] for r in found) if found and method in found[0] else None


def steps_of(rows: list[dict], case: str, split: str) -> list[int]:
    return [row["steps"] for row in rows if (row["case"], row["split"]) == (case, split)]


if __name__ == "__main__":
    main()
