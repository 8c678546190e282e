"""All 48 networks on real data, one CPU budget each: how good, how sharp, at what cost.

    python benchmarks/architectures.py [--budget-seconds 60] [--json OUT] [--markdown benchmarks/architectures.md]

Every network is trained on the embedded ERA5 2 m temperature less the band 180E-288E, `fit` gets the same process CPU
seconds with one torch thread, and is scored on that band. A second column trains the twelve supervised spatial ones on
plain bicubic (``skip="bicubic"``): what each learns by itself. Results are kept in the JSON as they come; what is there
is not run again.
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
from skill import cut_band, load

from xsuperres.demo import score_record

BAND = (180.0, 288.0)
SCALE = 4
TIME_WINDOW = 3
TRAININGS = ("supervised", "adversarial")
WINDOWS = (None, TIME_WINDOW)
BACKBONES = ("conv", "residual", "dense")
UPSAMPLINGS = ("interpolation", "subpixel", "resize", "deconvolution")
# Of all 48 alike. Flips are no default (circulation has a handedness), but without them the networks that upsample
# after the backbone know places by heart within this budget: space-to-depth shows them wide patches of static fields.
SETTINGS: dict[str, object] = {"sampling": {"flip": ("x", "y")}}

Case = tuple[str, int | None, str, str, str, float]


def cases(budget: float) -> list[Case]:
    """Return (training, time window, backbone, upsampling, skip, budget) of every run."""
    matrix = [(*parts, "linear", budget) for parts in itertools.product(TRAININGS, WINDOWS, BACKBONES, UPSAMPLINGS)]
    alone = [("supervised", None, b, u, "bicubic", budget) for b, u in itertools.product(BACKBONES, UPSAMPLINGS)]
    return matrix + alone


def one(case: Case) -> dict[str, object]:
    """Train and score one network."""
    training, window, backbone, upsampling, skip, budget = case
    torch.set_num_threads(1)
    rest, band = cut_band(load("era5_global_1deg", "tas", None), *BAND)
    model = rest.sr.fit(
        SCALE,
        training=training,
        time_window=window,
        backbone=backbone,
        upsampling=upsampling,
        network={"skip": skip},
        optimization={"max_cpu_seconds": budget},
        validation="space",
        progress=False,
        **SETTINGS,
    )
    coarse = band.drop_vars(list(model.static_scaling.names)).sr.coarsen(SCALE)
    table = coarse.sr.downscale(model, static=band).sr.score(band, coarse=coarse)
    here = table.sel(product="network", region="all")
    return {
        **score_record(table, model, {"cpu_seconds": model.training.cpu_seconds}),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "gradient_ratio": float(here.gradient_ratio),
        "validation": model.training.validation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", default=None)
    parser.add_argument("--markdown", default=None)
    arguments = parser.parse_args()
    found = measure(cases(arguments.budget_seconds), arguments.workers, arguments.json)
    text = report(found, arguments.budget_seconds)
    if arguments.markdown:
        Path(arguments.markdown).write_text(text)
    print(text)


def measure(wanted: list[Case], workers: int, path: str | None) -> dict[Case, dict]:
    """Run every case, each in a process of its own; what `path` already holds is not run again."""
    kept = json.loads(Path(path).read_text()) if path and Path(path).exists() else []
    found = {tuple(row["case"]): row for row in kept}
    with ProcessPoolExecutor(workers, max_tasks_per_child=1) as pool:
        pending = {pool.submit(one, case): case for case in wanted if case not in found}
        for future in tqdm.tqdm(as_completed(pending), total=len(pending), unit="fit"):
            case = pending[future]
            found[case] = {**future.result(), "case": list(case)}
            if path:
                Path(path).write_text(json.dumps(list(found.values()), indent=1) + "\n")
    return {case: found[case] for case in wanted}


def report(found: dict[Case, dict], budget: float) -> str:
    """Return the Markdown table, and what must hold of it."""
    rows = []
    for (training, window, backbone, upsampling, skip, _), row in found.items():
        if skip != "linear":
            continue
        alone = found.get(("supervised", None, backbone, upsampling, "bicubic", budget)) if window is None else None
        alone = alone if training == "supervised" else None
        rows.append(
            f"| {training} | {window or 'spatial'} | {backbone} | {upsampling} | {row['parameters']:,} | "
            f"{row['cpu_seconds']:.0f} | {row['steps']} | {row['ratio_to_bicubic']:.3f} | "
            f"{row['gradient_ratio']:.3f} | " + (f"{alone['ratio_to_bicubic']:.3f} |" if alone else "|")
        )
    first = next(iter(found.values()))
    reference = first["rmse"]
    told = ", ".join(
        f"{name} {reference[name] / reference['bicubic']:.3f}" for name in ("lapse", "static_regression", "bilinear")
    )
    versions = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
    return "\n".join(
        [
            "# The 48 networks on real data",
            "",
            f"ERA5 2 m temperature, scale {SCALE}, trained on the globe less {BAND[0]:g}E-{BAND[1]:g}E, scored on it; "
            f"`fit` with {budget:g} process CPU seconds and one torch thread, seed 0; time windows of {TIME_WINDOW}. "
            "RMSE / bicubic, and the ratio of gradient amplitudes to the truth's (1: as sharp). The last column is a "
            'network on plain bicubic (`skip="bicubic"`). All have the same settings: the defaults and random flips '
            "in x and y. "
            f"For comparison, RMSE / bicubic: {told}. Written by `benchmarks/architectures.py`.",
            "",
            "| training | sample | backbone | upsampling | parameters | CPU s | steps | RMSE / bicubic | gradient "
            "amplitude | alone |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"- {line}" for line in checks(found, budget)),
            "",
            f"Versions: {versions}.",
            "",
        ]
    )


def checks(found: dict[Case, dict], budget: float) -> list[str]:
    """Return the claims that the table supports or not."""
    linear = {case: row for case, row in found.items() if case[4] == "linear"}
    ratio = {case: row["ratio_to_bicubic"] for case, row in linear.items()}
    supervised = {case: value for case, value in ratio.items() if case[0] == "supervised"}
    best = {u: min(value for case, value in ratio.items() if case[3] == u) for u in UPSAMPLINGS}
    alone = [row["ratio_to_bicubic"] for case, row in found.items() if case[4] == "bicubic"]
    nearer = sum(
        abs(row["gradient_ratio"] - 1) < abs(linear["supervised", *case[1:]]["gradient_ratio"] - 1)
        for case, row in linear.items()
        if case[0] == "adversarial"
    )
    return [
        f"worst of the {len(ratio)}: {max(ratio.values()):.3f} (below 0.95)",
        f"worst of the {len(supervised)} supervised: {max(supervised.values()):.3f} (below 0.79); median "
        f"{statistics.median(supervised.values()):.3f}",
        "best of each upsampling: " + ", ".join(f"{u} {value:.3f}" for u, value in best.items()) + " (below 0.775)",
        f"worst alone: {max(alone):.3f} (below 0.87)",
        f"adversarial sharper, nearer 1, than its supervised twin: {nearer} of {len(ratio) // 2} pairs (at least 20)",
    ]


if __name__ == "__main__":
    main()
