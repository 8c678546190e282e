"""The validation score during training: held-out fields through the same `apply` as inference.

Arrays in canonical order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from xsuperres.errors import DataError
from xsuperres.inference.apply import apply
from xsuperres.inference.devices import Execution
from xsuperres.inference.frames import Frames
from xsuperres.inference.prepared import Prepared, prepare, sub_batch
from xsuperres.model.artefact import SRModel
from xsuperres.nn.network import SuperResolution
from xsuperres.nn.place import Place
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
        self.model, self.blocks, self.execution = model, blocks, Execution(device=str(device))
        self.held = blocks.chosen(chosen)
        self.rows, self.columns = (_extent(weight.sum(axis=axis), model.scale) for axis in (1, 0))
        y, x = (slice(s.start * model.scale, s.stop * model.scale) for s in (self.rows, self.columns))
        self.window = y, x
        self.weight = weight[self.window]
        kept = int(chosen.sum()) * self.weight.size * 8 <= keep
        self.kept = [self._read(index, part) for index, part in self.held] if kept else None
        self.baseline = self._baseline()

    def _read(self, index: int, part: np.ndarray) -> tuple[Fields, np.ndarray]:
        """Return the held-out fields of a block, and bicubic; both cut to the window that is scored."""
        fields, window = self.blocks.load(index).take(part), (..., *self.window)
        bicubic = self.blocks.bicubic(fields.coarse)
        return replace(fields, target=fields.target[window]), bicubic[window]

    def _all(self) -> Iterable[tuple[Fields, np.ndarray]]:
        return self.kept or (self._read(index, part) for index, part in self.held)

    def __call__(self, network: SuperResolution) -> dict[str, float]:
        """Return the RMSE and its ratios to bicubic and to the linear baseline.

        Of several variables the RMSE is the root mean square of theirs in standard deviations, the ratios are means.
        """
        prepared = prepare(self.model, self.execution, network)
        squares, total = np.zeros(len(self.model.targets)), np.zeros(len(self.model.targets))
        for fields, bicubic in self._all():
            fine = downscale_window(prepared, self.model, fields, self.rows, self.columns)
            error, size = self._squares(fields, bicubic, fine)
            squares, total = squares + error, total + size
        rmse = np.sqrt(squares / total)
        score = {"rmse": self._joint(rmse)}
        for name, value in self.baseline.items():
            ratio = np.divide(rmse, value, out=np.full_like(rmse, np.nan), where=value > 0)
            score[f"ratio_to_{name}"] = float(ratio.mean())
        return score

    def _joint(self, rmse: np.ndarray) -> float:
        if len(rmse) == 1:
            return float(rmse[0])
        return float(np.sqrt(((rmse / self.spread) ** 2).mean()))

    def _squares(self, fields: Fields, bicubic: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted sums of squared errors where there is a target and an input, and those of the weights.

        A network that has become NaN there gives NaN.
        """
        weight = self.weight * (np.isfinite(fields.target) & np.isfinite(bicubic))
        error = (guess.astype(np.float64) - fields.target) ** 2
        return (np.where(weight > 0, error, 0) * weight).sum(axis=(0, 2, 3)), weight.sum(axis=(0, 2, 3))

    def _baseline(self) -> dict[str, np.ndarray]:
        """Return the RMSE of bicubic and of the linear baseline, by variable, and note the variables' spread."""
        count = len(self.model.targets)
        sums = {name: np.zeros(count) for name in ("bicubic", "linear")}
        total, first, second = np.zeros(count), np.zeros(count), np.zeros(count)
        for fields, bicubic in self._all():
            error, size = self._squares(fields, bicubic, bicubic)
            sums["bicubic"] += error
            sums["linear"] += self._squares(fields, bicubic, self._linear(fields))[0]
            total += size
            first += self._squares(fields, bicubic, np.zeros_like(bicubic))[0]
            weight = self.weight * (np.isfinite(fields.target) & np.isfinite(bicubic))
            second += (np.nan_to_num(fields.target) * weight).sum(axis=(0, 2, 3))
        if not total.all():
            raise DataError("What is held out for validation has no valid value; choose another validation=.")
        self.spread = np.sqrt(np.maximum(first / total - (second / total) ** 2, 1e-30))
        return {name: np.sqrt(value / total) for name, value in sums.items()}

    def _linear(self, fields: Fields) -> np.ndarray:
        """Return the linear baseline in the variables' units, within their bounds as the network is."""
        channels = self.model.channels.cut(self.rows, self.columns, self.model.scale)
        _, _, bicubic = self.blocks.transformed(fields, self.model.channels.before_scale)
        linear = bicubic[..., *self.window] + self.model.linear_correction[:, *self.window]
        scaled = (linear - channels.scale.plane("mean")) / channels.scale.plane("sd")
        return channels.fields(torch.from_numpy(scaled), torch.float64).numpy()


def _extent(line: np.ndarray, scale: int) -> slice:
    """Return the coarse cells from the first to the last that holds a fine cell of `line`."""
    cells = np.flatnonzero(line) // scale
    return slice(int(cells.min()), int(cells.max()) + 1)


def downscale_window(prepared: Prepared, model: SRModel, fields: Fields, rows: slice, columns: slice) -> np.ndarray:
    """Return the fine fields (n, targets, Y, X) of a window of canonical frames, which cover the whole domain.

    The window is widened by the reach, wrapped on a periodic longitude, and run part by part where there are gaps; a
    network that looks at the whole domain is given all of it.
    """
    grid, reach, scale = model.coarse_grid, model.reach, model.scale
    whole = prepared.network.global_context
    low, high = (0, grid.y.size) if whole else (max(0, rows.start - reach), min(grid.y.size, rows.stop + reach))
    pieces = []
    for part in grid.parts():
        start, stop = max(part.start, columns.start), min(part.stop, columns.stop)
        if start >= stop:
            continue
        inner = part if whole else slice(start, stop)
        west, east = inner.start - reach, inner.stop + reach
        if not grid.x.periodic:
            west, east = max(west, part.start), min(east, part.stop)
        index = np.arange(west, east) % grid.x.size
        block = Frames(
            values=fields.inputs[:, :, low:high][..., index],
            rows=np.arange(low, high),
            columns=index,
            calendar=fields.calendar,
            windows=fields.windows if prepared.network.fusion is not None else None,
            place=Place(
                torch.arange(low, high),
                torch.from_numpy(index),
                core=(slice(0, high - low), slice(inner.start - west, inner.stop - west)),
            ),
        )
        fine = apply(prepared, block, batch_size=sub_batch(prepared, (high - low) * len(index)))
        core = (
            slice((rows.start - low) * scale, (rows.stop - low) * scale),
            slice((start - west) * scale, (stop - west) * scale),
        )
        pieces.append(fine[:, :, *core])
    return np.concatenate(pieces, axis=-1)
