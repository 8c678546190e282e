"""How fast training samples are gathered, against the bare strided gather of numpy.

    python benchmarks/gather.py [--json OUT]

Patches of 32 x 32 coarse and 128 x 128 fine cells out of 200 fields in memory, batches of 16: samples per CPU second of
the reader (coarse, skip, target, static planes, weights and cell indices), and of numpy copying the same bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from xsuperres.samples.plan import WindowPlan
from xsuperres.samples.readers import Block, Planes, Reader

FIELDS, SIDE, PATCH, SCALE, BATCH = 200, 64, 32, 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default=None)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    coarse = rng.random((FIELDS, 2, SIDE, SIDE), np.float32)
    fine = rng.random((FIELDS, 1, SIDE * SCALE, SIDE * SCALE), np.float32)
    planes = Planes(rng.random((4, SIDE * SCALE, SIDE * SCALE), np.float32), np.ones((SIDE * SCALE,) * 2, np.float32))
    plan = WindowPlan(SIDE, [slice(0, SIDE)], patch=PATCH)
    block = Block(coarse, fine, fine.copy())
    reader = Reader(lambda _: block, [FIELDS], planes, plan, scale=SCALE, batch_size=BATCH, seed=0)
    ours = rate(lambda epoch: sum(len(batch.target) for batch in reader.batches(epoch)), arguments.epochs)
    bare = rate(lambda epoch: copy(block, planes, plan, epoch), arguments.epochs)
    record = {
        "samples_per_cpu_second": round(ours),
        "bare_numpy_samples_per_cpu_second": round(bare),
        "ratio": round(ours / bare, 3),
        "megabytes_per_cpu_second": round(ours * bytes_per_sample() / 1e6),
    }
    text = json.dumps(record, indent=2)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")
    print(text)


def bytes_per_sample() -> int:
    return 4 * PATCH**2 * (2 + SCALE**2 * (1 + 1 + 4 + 1))


def copy(block: Block, planes: Planes, plan: WindowPlan, epoch: int) -> int:
    """Gather the same windows with nothing but numpy."""
    windows = plan.windows(FIELDS, np.random.default_rng(epoch))
    views = {
        size: [np.lib.stride_tricks.sliding_window_view(a, (size, size), axis=(-2, -1)) for a in arrays]
        for size, arrays in (
            (PATCH, [block.coarse]),
            (PATCH * SCALE, [block.skip, block.target, planes.fine, planes.weight[None]]),
        )
    }
    for start in range(0, len(windows), BATCH):
        field, row, column = windows[start : start + BATCH].T
        for view in views[PATCH]:
            view[field, :, row, column]
        for view in views[PATCH * SCALE]:
            at = row * SCALE, column * SCALE
            _ = view[field, :, *at] if view.ndim == 6 else view[:, *at]
    return len(windows)


def rate(epoch, epochs: int) -> float:
    """Return samples per CPU second, the best of the epochs."""
    best = 0.0
    for index in range(epochs):
        start = time.process_time()
        count = epoch(index)
        best = max(best, count / (time.process_time() - start))
    return best


if __name__ == "__main__":
    main()
