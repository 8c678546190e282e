"""The validation score during training: held-out fields through the same `apply` as inference.

Arrays in canonical order.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from xsuperres.errors import DataError
from xsuperres.inference.apply import Prepared, apply, prepare, sub_batch
from xsuperres.model.artefact import SRModel
from xsuperres.nn.network import SuperResolution
from xsuperres.samples.blocks import FieldBlocks, Fields

__all__ = ["Validator", "downscale_window"]


class Validator:
    """Scores a network on held-out fields, or on a held-out stretch of all fields.

    Parameters
    ----------
    model : SRModel
        The untrained model: grid, scaling, baselines.
    blocks : FieldBlocks
        The fields.
    chosen : ndarray of bool (fields,)
        Those that validate.
    weight : ndarray (Y, X)
        Cells that validate, times their areas.
    keep : int
        Bytes up to which the fields stay in memory; more are read again every time.
    """

    def __init__(
        self,
        model: SRModel,
        blocks: FieldBlocks,
        chosen: np.ndarray,
        weight: np.ndarray,
        *,
        device: torch.device,
        keep: int,
    ) -> None:
        self.model, self.blocks, self.device = model, blocks, device
        self.held = blocks.chosen(chosen)
        self.rows, self.columns = (_extent(weight.sum(axis=axis), model.scale) for axis in (1, 0))
        self.window = tuple(slice(s.start * model.scale, s.stop * model.scale) for s in (self.rows, self.columns))
        self.weight = weight[self.window]
        kept = int(chosen.sum()) * self.weight.size * 8 <= keep
        self.kept = [self._read(index, part) for index, part in self.held] if kept else None
        self.baseline = self._baseline()

    def _read(self, index: int, part: np.ndarray) -> Fields:
        """Return the held-out fields of a block; target and bicubic cut to the window that is scored."""
        fields, window = self.blocks.load(index), (slice(None), *self.window)
        return Fields(fields.target[part][window], fields.coarse[part], fields.bicubic[part][window])

    def __call__(self, network: SuperResolution) -> dict[str, float]:
        """Return RMSE in the variable's units, and its ratios to bicubic and to the linear baseline."""
        prepared = prepare(self.model, self.device, network)
        squares, total = 0.0, 0.0
        for fields in self.kept or (self._read(index, part) for index, part in self.held):
            fine = downscale_window(prepared, self.model, fields.coarse, self.rows, self.columns)
            error, size = self._squares(fields, fine)
            squares, total = squares + error, total + size
        rmse = math.sqrt(squares / total)
        ratios = {f"ratio_to_{name}": rmse / value if value else math.nan for name, value in self.baseline.items()}
        return {"rmse": rmse, **ratios}

    def _squares(self, fields: Fields, guess: np.ndarray) -> tuple[float, float]:
        """Return the weighted sum of squared errors where there is a target and an input, and that of the weights.

        A network that has become NaN there gives NaN.
        """
        weight = self.weight * (np.isfinite(fields.target) & np.isfinite(fields.bicubic))
        error = (guess.astype(np.float64) - fields.target) ** 2
        return float((np.where(weight > 0, error, 0) * weight).sum()), float(weight.sum())

    def _baseline(self) -> dict[str, float]:
        """Return the RMSE of bicubic and of the linear baseline."""
        correction = self.model.linear_correction[self.window]
        sums = {"bicubic": 0.0, "linear": 0.0}
        total = 0.0
        for fields in self.kept or (self._read(index, part) for index, part in self.held):
            error, size = self._squares(fields, fields.bicubic)
            sums["bicubic"] += error
            sums["linear"] += self._squares(fields, fields.bicubic + correction)[0]
            total += size
        if not total:
            raise DataError("What is held out for validation has no valid value; choose another validation=.")
        return {name: math.sqrt(value / total) for name, value in sums.items()}


def _extent(line: np.ndarray, scale: int) -> slice:
    """Return the coarse cells from the first to the last that holds a fine cell of `line`."""
    cells = np.flatnonzero(line) // scale
    return slice(int(cells.min()), int(cells.max()) + 1)


def downscale_window(prepared: Prepared, model: SRModel, coarse: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return the fine fields of a window of canonical `coarse` (n, y, x), which covers the model's whole domain.

    The window is widened by the halo, wrapped on a periodic longitude, and run part by part where there are gaps.
    """
    grid, halo, scale = model.coarse_grid, model.halo, model.scale
    low, high = max(0, rows.start - halo), min(grid.y.size, rows.stop + halo)
    pieces = []
    for part in grid.parts():
        start, stop = max(part.start, columns.start), min(part.stop, columns.stop)
        if start >= stop:
            continue
        west, east = start - halo, stop + halo
        if not grid.x.periodic:
            west, east = max(west, part.start), min(east, part.stop)
        index = np.arange(west, east) % grid.x.size
        block = coarse[:, low:high][..., index]
        size = sub_batch(prepared, block.shape[-2] * block.shape[-1])
        fine = apply(prepared, block, np.arange(low, high), index, batch_size=size)
        core = (
            slice((rows.start - low) * scale, (rows.stop - low) * scale),
            slice((start - west) * scale, (stop - west) * scale),
        )
        pieces.append(fine[(slice(None), *core)])
    return np.concatenate(pieces, axis=-1)
